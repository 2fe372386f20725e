"""`handclip demo`: a study that comes with the package, on synthetic hands or on photographs that are given."""

import json
from importlib.resources import as_file, files
from pathlib import Path

from handclip.config.study import load_study
from handclip.datasets.hands11k import has_11k_layout
from handclip.errors import DataError, HandCLIPError
from handclip.files import is_folder, is_there
from handclip.studies import StudyResult, plan_study, run_study

PHOTOGRAPHS_MODELS = ("vit_small",)
"""The models of `real_sample.yml` that the demo trains on photographs; the CNNs beside it would take hours."""

PHOTOGRAPHS_EPOCHS = ("stage1.epochs=90", "stage2.epochs=25")
"""A few hundred photographs need more epochs than thousands of synthetic ones; `real_sample.yml` has to save."""


def run_demo(data: Path | None, out: Path, *, resume: bool = False) -> StudyResult:
    """Run every stage of a small CLIP-shaped model, on synthetic hands beside two CNNs, and compare.

    Args:
        data: a folder in 11k Hands' layout; None draws synthetic hands.
        out: folder for everything that is written.
        resume: go on in an `out` that exists; what has ended there is not run again.

    Raises:
        HandCLIPError: `data` is not in that layout, or `out` exists.
    """
    if is_there(out) and not resume:
        raise HandCLIPError(f"{out} exists already. Add --resume to go on there, or choose another with --out")
    if data is not None and not is_folder(data):
        raise DataError(f"{data}: there is no such folder")
    if data is not None and not has_11k_layout(data):
        raise DataError(f"{data}: is not in the layout of 11k Hands, which has HandInfo.csv and a folder Hands/")
    name, only, changes = "demo.yml", tuple[str, ...](), list[str]()
    if data is not None:
        name, only = "real_sample.yml", PHOTOGRAPHS_MODELS
        changes = [f"common.data_root={json.dumps(str(data))}", *PHOTOGRAPHS_EPOCHS]
    with as_file(files("handclip.config").joinpath("studies", name)) as path:
        study = load_study(path, changes)
    plan = plan_study(study, out, only=only, source=name)
    return run_study(study, plan, out)

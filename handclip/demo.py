"""`handclip demo`: the whole study in small: stages 0, 1 and every loss variant of stage 2, on one table."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config
from handclip.config.naming import run_name
from handclip.console import progress_over
from handclip.datasets.hands11k import has_11k_layout
from handclip.datasets.prepare import PreparedDataset, prepare
from handclip.datasets.synthetic import SyntheticHands, generate
from handclip.engine.study import run_experiments
from handclip.errors import DataError, HandCLIPError
from handclip.report.comparison import compare_outcomes, write_comparison, write_evaluation_logs
from handclip.report.tables import Comparison

logger = logging.getLogger(__name__)

SYNTHETIC = SyntheticHands(identities=60, images_per_aspect=6)


@dataclass(frozen=True)
class DemoResult:
    """The tables of a demo by gallery protocol, and the folder with everything it wrote."""

    tables: dict[str, Comparison]
    folder: Path


def run_demo(data: Path | None, out: Path, *, resume: bool = False) -> DemoResult:
    """Run every stage and compare.

    Args:
        data: a folder in 11k Hands' layout; None draws synthetic hands.
        out: folder for everything that is written.
        resume: go on in an `out` that exists; what has ended there is not run again.

    Raises:
        HandCLIPError: `data` is not in that layout, or `out` exists.
    """
    if out.exists() and not resume:
        raise HandCLIPError(f"{out} exists already. Add --resume to go on there, or choose another with --out")
    if data is not None and not has_11k_layout(data):
        raise DataError(f"{data}: is not in the layout of 11k Hands, which has HandInfo.csv and a folder Hands/")
    hands = "photographs" if data is not None else "synthetic"
    if data is None:
        data = out / "synthetic_hands"
        logger.info(f"Synthetic hands of {SYNTHETIC.identities} people: {data}")
        with progress_over("drawing hands") as report:
            generate(data, SYNTHETIC, report)
    with progress_over("reading images") as report:
        prepared = prepare("11k", data, out / "manifests", allow_missing=True, progress=report)
    _describe(prepared)

    outcomes, _ = run_experiments(demo_configs(out, hands), resume=resume)
    write_evaluation_logs(outcomes)
    tables = {}
    for protocol in ("gallery", "gallery_all"):
        tables[protocol] = compare_outcomes(outcomes, gallery_protocol=protocol, flip="sum")
        write_comparison(tables[protocol], out, f"comparison_{protocol}")
    return DemoResult(tables, out)


def demo_configs(out: Path, hands: str) -> list[ExperimentConfig]:
    """Return the experiments in the order in which they have to run; everything is written below `out`.

    Args:
        out: the folder to write to.
        hands: `synthetic` or `photographs`, whose recipes differ in how long and on what they train.
    """
    text = files("handclip.config").joinpath("demo.yml").read_text(encoding="utf-8")
    recipe: dict[str, dict[str, Any]] = yaml.safe_load(text)
    places = {
        "manifest": str(out / "manifests"),
        "output_dir": str(out / "train_logs"),
        "save_dir": str(out / "saved_models"),
        "eval_dir": str(out / "eval_logs"),
    }

    def config(stage: str, **more: Any) -> ExperimentConfig:
        values: Mapping[str, Any] = {
            **recipe["common"],
            **places,
            **recipe[stage],
            **recipe[hands].get(stage, {}),
            **more,
        }
        return parse_config(values, source=f"demo.yml, {stage}")

    stage1 = config("stage1")
    resume_from = str(stage1.save_dir / f"{run_name(stage1)}.pth")
    variants = [config("stage2", losses=losses, resume_from=resume_from) for losses in recipe["variants"].values()]
    return [config("stage0"), stage1, *variants]


def _describe(prepared: PreparedDataset) -> None:
    for aspect, manifest in prepared.manifests.items():
        missing = f", {manifest.missing_images:,} images absent" if manifest.missing_images else ""
        logger.info(
            f"{aspect}: {len(manifest.identities(manifest.train_all))} identities to train on "
            f"({len(manifest.train)} images, and {len(manifest.val)} for validation), "
            f"{len(manifest.identities(manifest.test))} to test on ({len(manifest.test)} images){missing}"
        )

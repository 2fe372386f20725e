"""Which files of the package a training run enters: before its first step, and from the disk to the optimizer's step.

    python benchmarks/files_entered.py          # a table
    python benchmarks/files_entered.py --list   # with the files and their functions

Trained for one epoch, in one process that reads the images itself, is a small ViT with cross-entropy on drawn hands,
whose manifest is there. Counted are the functions that are called; what runs when a module is imported is not.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

import handclip
from handclip.config.experiment import ExperimentConfig
from handclip.datasets.prepare import prepare
from handclip.runs.train import train
from handclip.synthetic import SyntheticHands, generate

PACKAGE = Path(handclip.__file__).parent


class Profile:
    """Notes which functions of the package are called, by file."""

    def __init__(self) -> None:
        self.entered: dict[str, set[str]] = {}
        self.before_the_first_step: dict[str, set[str]] = {}
        self.from_disk_to_step: dict[str, set[str]] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call, as `sys.setprofile` tells of it."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and code.co_name != "<module>":
            file = str(Path(code.co_filename).relative_to(PACKAGE))
            self.entered.setdefault(file, set()).add(code.co_qualname)

    def batch_begins(self) -> None:
        """Forget what came between a step and the next batch."""
        if self.before_the_first_step:
            self.entered = {}

    def step_begins(self) -> None:
        """Keep what came before the first step, and what the latest batch has passed through."""
        if self.before_the_first_step:
            self.from_disk_to_step = self.entered
        else:
            self.before_the_first_step = self.entered
        self.entered = {}


def first_calling(note: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that notes each call, then is what it was."""

    def noting(*given: Any, **options: Any) -> Any:
        note()
        return function(*given, **options)

    return noting


def profile_training(folder: Path) -> Profile:
    """Train in a folder, and return what was called."""
    generate(folder / "hands", SyntheticHands(identities=12))
    prepare("11k", folder / "hands", folder / "manifests")
    config = ExperimentConfig(
        experiment="profiled", model="vit_small", pretrained="none", dataset="11k", data_root=folder / "hands",
        manifest=folder / "manifests", epochs=1, batch_size=8, num_workers=0, device="cpu", precision="float32",
    )  # fmt: skip
    profile, loader, optimizer = Profile(), _BaseDataLoaderIter, torch.optim.AdamW
    with (
        chdir(folder),
        patch.object(loader, "__next__", first_calling(profile.batch_begins, loader.__next__)),
        patch.object(optimizer, "step", first_calling(profile.step_begins, optimizer.step)),
    ):
        sys.setprofile(profile)
        try:
            train(config)
        finally:
            sys.setprofile(None)
    return profile


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the files and their functions")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        profile = profile_training(Path(folder))
    print("| | files | functions |\n|---|---|---|")
    parts = {
        "entered before the first step": profile.before_the_first_step,
        "a batch passes through, from the disk to the optimizer's step": profile.from_disk_to_step,
    }
    for what, entered in parts.items():
        print(f"| {what} | {len(entered)} | {sum(map(len, entered.values()))} |")
    for what, entered in parts.items() if given.list else ():
        print(f"\n{what}:")
        for file in sorted(entered):
            print(f"  {file}: {', '.join(sorted(entered[file]))}")


if __name__ == "__main__":
    main()

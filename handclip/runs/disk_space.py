"""Whether the disk has room for what a run will write, asked before hours are spent on it."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from handclip.errors import HandCLIPError
from handclip.files import nearest_there
from handclip.runs.run_folder import RunFolder
from handclip.runs.snapshots import Snapshots
from handclip.training.state import Plan
from handclip.training.step import Objective

_MOMENTS = 2
"""Of Adam, each as large as what is trained."""


def check_disk_space(files: RunFolder, objective: Objective, plan: Plan) -> None:
    """Check that snapshots and checkpoints of a run fit on the disk beside what there is of them.

    Counted is what will be there for certain, and of that the tensors: no run is refused that would fit.

    Args:
        files: where the run writes.
        objective: what it trains.
        plan: how many epochs it comes to now, at least, and whether it writes its last checkpoint then.

    Raises:
        HandCLIPError: they do not fit.
    """
    checkpoint = _bytes(objective.state_dict().values())
    trained = [p for p in objective.parameters() if p.requires_grad]
    state = checkpoint + _MOMENTS * _bytes(trained)

    snapshots = Snapshots(files.snapshots)
    there, to_come = len(snapshots.paths()), max(plan.fewest_epochs - snapshots.epochs(), 0)
    new_best = 0 if files.best.exists() else 1
    # Two snapshots are kept while a third is written.
    saving, ending = max(min(there + to_come, 3) - there, 0), max(min(there + to_come, 2) - there, 0)
    checkpoints = new_best + 1 if plan.ends else new_best
    if _disk(files.snapshots) == _disk(files.best):
        of_both = max(saving * state + new_best * checkpoint, ending * state + checkpoints * checkpoint)
        _require(files.snapshots, of_both)
    else:
        _require(files.snapshots, saving * state)
        _require(files.best.parent, checkpoints * checkpoint)


def _require(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(nearest_there(folder)).free
    if free < needed:
        raise HandCLIPError(
            f"{folder}: {_mib(free)} are free on this disk, but the run's states and checkpoints will take "
            f"{_mib(needed)} more. Make room, or set output_dir and save_dir to folders on another disk"
        )


def _disk(path: Path) -> int:
    return nearest_there(path).stat().st_dev


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

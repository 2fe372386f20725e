"""What a model cost to train and to evaluate: the numbers that differ from machine to machine."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from handclip.checksums import require_intact
from handclip.errors import HandCLIPError
from handclip.file_names import RESULT
from handclip.files import read_json_object
from handclip.models.checkpoint import Checkpoint
from handclip.parallel.hardware import describe_device

_FROM_TRAINING = (
    "seconds", "images_per_second", "epochs", "best_epoch", "peak_memory_mib", "peak_gpu_memory_mib", "device",
    "processor", "cores", "precision",
)  # fmt: skip

logger = logging.getLogger(__name__)


def evaluation_cost(seconds: float, images_per_second: float, device: torch.device) -> dict[str, Any]:
    """Return the cost of an evaluation.

    Args:
        seconds: all of it took.
        images_per_second: embedded, a mirrored image being another one.
        device: what it ran on.
    """
    return {
        "seconds": round(seconds, 2),
        "images_per_second": round(images_per_second, 1),
        **describe_device(device),
    }


def training_cost(checkpoint: Checkpoint | None, folders: Iterable[Path]) -> dict[str, Any] | None:
    """Return the cost of the run that wrote a checkpoint, and the file that says so; None where it is not known.

    Args:
        checkpoint: best or last of its run; None of a baseline.
        folders: where the run's records may be; the first that has them counts.
    """
    path = next((folder / RESULT for folder in folders if (folder / RESULT).is_file()), None)
    if checkpoint is None or path is None:
        return None
    try:
        require_intact(path.parent, [path.name], advice="It is left out")
        result = read_json_object(path)
    except HandCLIPError as error:
        logger.warning(f"What training cost is not known: {error}")
        return None
    epochs = (result.get("best_epoch"), result.get("epochs"))
    if result.get("run") != checkpoint.run or checkpoint.epoch not in epochs:
        logger.warning(f"What training cost is not known: {path} is not of the training that made this checkpoint")
        return None
    return {"file": str(path), **{name: result.get(name) for name in _FROM_TRAINING}}

"""What a model cost to train and to evaluate: the numbers that differ from machine to machine."""

from pathlib import Path
from typing import Any

import torch

from handclip.engine.hardware import describe_device
from handclip.files import read_json
from handclip.models.checkpoint import Checkpoint

_FROM_TRAINING = (
    "seconds", "images_per_second", "epochs", "best_epoch", "peak_memory_mib", "peak_gpu_memory_mib", "device",
    "processor", "cores", "precision",
)  # fmt: skip


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


def training_cost(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the cost of the run that wrote a checkpoint, and the file that says so; None where it is not there.

    The file is found by the checkpoint's own config, relative to the working directory.
    """
    path = Path(checkpoint.config["output_dir"]) / checkpoint.run / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    return {"file": str(path), **{name: result.get(name) for name in _FROM_TRAINING}}

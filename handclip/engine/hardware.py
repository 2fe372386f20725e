"""What to run on, and a record of it."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from handclip import __version__
from handclip.cores import available_cores
from handclip.errors import ConfigError

_RECORDED = (
    "torch", "torchvision", "open_clip_torch", "timm", "pytorch-metric-learning", "lightning", "numpy", "pillow",
)  # fmt: skip


def choose_device(device: str) -> torch.device:
    """Return the device to run on; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: the device asked for is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps: this machine has no Apple GPU")
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """Return `float32` or `bfloat16`; `auto` takes bfloat16 where the hardware computes in it."""
    if precision != "auto":
        return precision
    return "bfloat16" if _computes_in_bfloat16(device) else "float32"


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Elsewhere bfloat16 is emulated, and slower than float32.
        return any(bool(getattr(torch.cpu, f"_is_{unit}_supported", bool)()) for unit in ("avx512_bf16", "amx_tile"))
    return False


def choose_workers(num_workers: int | str) -> int:
    """Return how many processes read images; `auto` leaves a core to the training itself, and takes at most eight."""
    return num_workers if isinstance(num_workers, int) else max(1, min(8, available_cores() - 1))


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions in float32; by default a GPU rounds their inputs to the ten bits of TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return what a reader needs to judge speed and to run it again."""
    return {
        "handclip": __version__,
        "commit": _commit(),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        **describe_device(device),
        "precision": precision,
        "libraries": {name: importlib.metadata.version(name) for name in _RECORDED},
    }


@cache
def _commit() -> str | None:
    """Return the commit that runs, `-changed` if files differ from it; None where this is no checkout of its own."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=-changed", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    return None


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return what speed depends on first of all: device, processor, and how many cores."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": available_cores(),
    }


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, so that a run is not charged with what another took before it in the same process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mib() -> float | None:
    """Return the largest resident memory of this process so far, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def peak_gpu_memory_mib(device: torch.device) -> float | None:
    """Return the most GPU memory that tensors have taken so far, in MiB; None without a CUDA device."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

"""What to run on, and a record of it."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handclip import __version__
from handclip.config.experiment import ExperimentConfig
from handclip.cores import available_cores, processes_sharing_cores
from handclip.datasets.formats import HEIF_VERSION
from handclip.datasets.images import SIMPLEJPEG_VERSION
from handclip.errors import ConfigError
from handclip.files import as_text
from handclip.plurals import counted

_RECORDED = (
    "torch", "torchvision", "open_clip_torch", "timm", "pytorch-metric-learning", "numpy", "pillow",
)  # fmt: skip

_CHANGED = "-changed"
"""What follows the commit where files differ from it."""


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
        raise ConfigError(
            f"device: {device}: this machine has {torch.cuda.device_count()} CUDA devices; auto takes what is there"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps: this machine has no Apple GPU")
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """Return `float32`, `tf32` or `bfloat16`; `auto` takes bfloat16 where the hardware computes in it.

    Raises:
        ConfigError: `tf32` on hardware that does not have it.
    """
    if precision == "tf32" and not _has_tf32(device):
        raise ConfigError(
            f"precision: tf32: is for NVIDIA GPUs from 2020 on, and this run is on {device}; use float32, or auto"
        )
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


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_workers(num_workers: int | str) -> int:
    """Return how many processes read images; `auto` leaves a core to the training itself, and takes at most eight.

    With several devices these are the workers of each.
    """
    if isinstance(num_workers, int):
        return num_workers
    return max(1, min(8, available_cores() // processes_sharing_cores() - 1))


def choose_memory_format(memory_format: str, device: torch.device, precision: str, model: nn.Module) -> str:
    """Return `contiguous` or `channels_last`; `auto` takes the latter for CNNs, on a CPU only where it gains.

    A vision transformer has one convolution, and nothing to gain. On a CPU, float32 gains little, bfloat16 much.
    """
    if memory_format != "auto":
        return memory_format
    convolutional = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    gains = device.type == "cuda" or (device.type == "cpu" and precision == "bfloat16")
    return "channels_last" if convolutional and gains else "contiguous"


@dataclass(frozen=True)
class Computation:
    """How a training run computes: what the config asks for and what `auto` has become on this machine."""

    device: torch.device
    precision: str
    memory_format: str
    num_workers: int
    compile: bool
    gradient_checkpointing: bool

    @classmethod
    def of(cls, config: ExperimentConfig, model: nn.Module, device: torch.device, precision: str) -> "Computation":
        """Choose what the device and the precision leave open."""
        return cls(
            device,
            precision,
            choose_memory_format(config.memory_format, device, precision, model),
            choose_workers(config.num_workers),
            config.compile,
            config.gradient_checkpointing,
        )

    def __str__(self) -> str:
        options = [
            f"{self.memory_format} memory format",
            counted(torch.get_num_threads(), "thread"),
            f"{counted(self.num_workers, 'worker process', 'worker processes')} reading images",
            "compiled" if self.compile else "not compiled",
            f"gradient checkpointing {'on' if self.gradient_checkpointing else 'off'}",
        ]
        return f"{self.device} in {self.precision}: {', '.join(options)}"

    def record(self) -> dict[str, Any]:
        """Return what `describe_environment` does not say, for the run's record."""
        return {
            "memory_format": self.memory_format,
            "num_workers": self.num_workers,
            "compile": self.compile,
            "gradient_checkpointing": self.gradient_checkpointing,
        }


def full_float32() -> AbstractContextManager[None]:
    """Compute float32 products in float32; by default a GPU rounds those of convolutions to the ten bits of TF32."""
    return _rounding_to_tf32(False)


def computing_in(precision: str) -> AbstractContextManager[None]:
    """Let products of float32 tensors be what a precision says: full for `float32`, rounded for `tf32`.

    In `bfloat16` the few that are left keep PyTorch's own settings.
    """
    return nullcontext() if precision == "bfloat16" else _rounding_to_tf32(precision == "tf32")


@contextmanager
def _rounding_to_tf32(allowed: bool) -> Iterator[None]:
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = allowed
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return what a reader needs to judge speed and to run it again."""
    return {
        "handclip": __version__,
        "commit": _commit(),
        "command": command_line(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        **describe_device(device),
        "precision": precision,
        "libraries": library_versions(),
    }


def command_line() -> list[str]:
    """Return the words of the command that this process runs, as text."""
    return [as_text(word) for word in sys.argv]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on; PyTorch's says for which devices it was built.

    Without simplejpeg, Pillow decodes all photographs.
    """
    versions = {name: importlib.metadata.version(name) for name in _RECORDED}
    decoders = {"simplejpeg": SIMPLEJPEG_VERSION, "pillow-heif": HEIF_VERSION}
    found = {name: version or "not installed" for name, version in decoders.items()}
    return {**versions, **found, "torch": str(torch.__version__)}


def describe_code() -> dict[str, str | bool | None]:
    """Return HandCLIP's version, the commit, and whether its files were changed since; None outside a checkout."""
    commit = _commit()
    return {
        "handclip": __version__,
        "commit": commit.removesuffix(_CHANGED) if commit is not None else None,
        "changed": commit.endswith(_CHANGED) if commit is not None else None,
    }


@cache
def _commit() -> str | None:
    """Return the commit that runs, `-changed` if files differ from it; None where this is no checkout of its own."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", f"--dirty={_CHANGED}", "--exclude=*"]
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
        torch.cuda.init()  # type: ignore[no-untyped-call]  # nothing before need have touched the GPU
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

"""`handclip doctor`: whether this installation can do its work, and what to do where it cannot."""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from packaging.requirements import Requirement

from handclip import __version__, _torchvision_operators
from handclip.config.experiment import EvaluationConfig, RuntimeConfig, TrainingConfig
from handclip.cores import available_cores, free_shared_memory, processes_sharing_cores
from handclip.errors import HandCLIPError
from handclip.files import cache_folder, nearest_there, write_text

_PATIENCE = 60.0
"""Seconds that a group of checks may take; a network file system may hang."""

_HUB_PATIENCE = 5.0
"""Seconds that the hub may take to answer, and as much again to be found."""

_LITTLE_SPACE_GIB = 2.0
_LITTLE_MEMORY_GIB = 4.0

_SIDE = 224
"""Of the images that most models take."""

_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUPS_ROOT = Path("/sys/fs/cgroup")

_HUB = "model hub"
_WITHOUT_HUB = (
    "Only needed once for each published model. Without it, name a weights file under `pretrained:`, or take "
    "`pretrained: none`"
)

_ALONE = "torchvision by itself"

_TORCH_BUILDS = "https://download.pytorch.org/whl"
"""Of torch and torchvision, those for CPUs in `cpu`, those for CUDA 13.0 in `cu130`."""

_HEAVY = ("torch", "torchvision", "open_clip", "timm")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Check:
    """One line: what was checked, whether it is well, what was found, and what to do about it."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Check the installation; a check that breaks or does not answer is a problem and ends nothing else."""
    return [check for group, checks in _GROUPS.items() for check in _in_time(group, checks)]


def _in_time(group: str, checks: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []

    def work() -> None:
        try:
            found.extend(checks())  # one by one: what was found before a fault stays
        except HandCLIPError as error:
            found.append(Check(group, "problem", str(error)))
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
            found.append(Check(group, "problem", f"could not be checked: {fault}", "Install again: make setup"))

    # A daemon: one that hangs does not keep the program from ending.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    patience = 2 * _HUB_PATIENCE if group == _HUB else _PATIENCE
    worker.join(patience)
    if not worker.is_alive():
        return found
    silent = f"gave no answer in {patience:g} s"
    if group == _HUB:
        return [*found, Check(group, "note", silent, _WITHOUT_HUB)]
    return [*found, Check(group, "problem", silent, "Something that it reads hangs, a network drive perhaps")]


def _check_versions() -> Iterator[Check]:
    yield Check("HandCLIP", "ok", f"{__version__} in {Path(__file__).parent}")
    try:
        own = importlib.metadata.metadata("handclip")
    except importlib.metadata.PackageNotFoundError:
        raise HandCLIPError("HandCLIP runs, but is not installed, so nothing says which versions it needs") from None
    yield _in_range("Python", platform.python_version(), own["Requires-Python"] or "")
    for requirement in map(Requirement, own.get_all("Requires-Dist") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, "problem", "is not installed", f"pip install '{requirement}'")
        else:
            yield _in_range(requirement.name, version, str(requirement.specifier))


def _in_range(name: str, version: str, specifier: str) -> Check:
    if Requirement(f"x{specifier}").specifier.contains(version, prereleases=True):
        return Check(name, "ok", version)
    advice = f"pip install '{name}{specifier}'" if name != "Python" else "Install a newer Python"
    return Check(name, "problem", f"{version}, but HandCLIP needs {specifier}", advice)


def _check_libraries() -> Iterator[Check]:
    for name in _HEAVY:
        try:
            importlib.import_module(name)
        except Exception as error:  # an import can fail in any way
            fault = f"cannot be imported: {type(error).__name__}: {error}"
            yield Check(f"import {name}", "problem", fault, _cure(name, error))
    yield _torch_build()
    if _torchvision_operators.are_stand_ins():
        found = "compiled ones do not load beside this torch, stand-ins are declared; HandCLIP calls none of them"
        yield Check("torchvision's operators", "ok", found)
    else:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        kept = torchvision.ops.nms(boxes, torch.ones(1), 0.5)
        yield Check("torchvision's operators", "ok", f"compiled ones load and work ({len(kept)} of 1 box kept)")


def _cure(name: str, error: Exception) -> str:
    """Return what to do about a library whose import has failed, by the cause."""
    said = str(error)
    if "module://" in said or "is not a valid value for backend" in said:
        return "unset MPLBACKEND: it names a backend of matplotlib, as a notebook does for itself, that is not there"
    # In the words alone where another process has said them.
    if missing := re.search(r"No module named '([^'.]+)(\.?)", said):
        library, is_there_in_part = missing.groups()
        if library in _HEAVY or is_there_in_part:
            return _install_again(library)
        return f"Install {library}, which it needs"
    if "cannot open shared object file" in said:
        return "Install the library of the system that is named, or a build for this machine"
    return _install_again(name)


def _install_again(name: str) -> str:
    """Return how to install a library anew in the version that is there, so that it still fits the others."""
    package = {"open_clip": "open_clip_torch"}.get(name, name)
    try:
        version = importlib.metadata.version(package).partition("+")[0]
        _, _, build = importlib.metadata.version("torch").partition("+")
    except importlib.metadata.PackageNotFoundError:
        return "Install again: make setup"
    index = f" --index-url {_TORCH_BUILDS}/{build}" if build and name in ("torch", "torchvision") else ""
    return f"Install again: pip install --force-reinstall --no-deps {package}=={version}{index}"


def _torch_build() -> Check:
    import torch

    built = f"ROCm {torch.version.hip}" if torch.version.hip else ""
    built = built or (f"CUDA {torch.version.cuda}" if torch.version.cuda else "")
    has_gpu = Path("/proc/driver/nvidia/version").exists()
    if built and not torch.cuda.is_available():
        smaller = "On the CPU it does all; a build for CPUs takes less room: https://pytorch.org/get-started/locally"
        advice = "See that nvidia-smi lists a GPU and that its driver is new enough" if has_gpu else smaller
        return Check("torch's build", "note", f"for {built}, and there is no GPU that it can use", advice)
    if not built and has_gpu:
        advice = "For speed install a torch for CUDA: https://pytorch.org/get-started/locally"
        return Check("torch's build", "note", "for CPUs, though this machine has an NVIDIA GPU", advice)
    return Check("torch's build", "ok", f"for {built or 'CPUs'}")


def _check_torchvision_alone() -> Iterator[Check]:
    """Import torchvision in a process of its own, as programs without HandCLIP do."""
    import torch

    command = [sys.executable, "-P", "-c", "import torchvision"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        yield Check(_ALONE, "ok", "can be imported in programs without HandCLIP")
        return
    fault = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    if "operator torchvision::" not in fault:
        yield Check(_ALONE, "problem", f"cannot be imported: {fault}", _cure("torchvision", ImportError(fault)))
        return
    version, _, build = str(torch.__version__).partition("+")
    found = f"its build does not fit torch {torch.__version__}, so that it is imported after handclip only ({fault})"
    advice = (
        f"HandCLIP works as it is. For other programs: pip uninstall torchvision, then pip install torch=={version} "
        f"torchvision --index-url {_TORCH_BUILDS}/{build or 'cpu'}; or import handclip first"
    )
    yield Check(_ALONE, "note", found, advice)


def _check_devices() -> Iterator[Check]:
    import torch

    from handclip.parallel.hardware import choose_device, choose_precision, describe_device

    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        of = torch.cuda.get_device_properties(device)
        precision = choose_precision("auto", device)
        tf32 = "tf32 too" if of.major >= 8 and torch.version.hip is None else "no tf32"
        found = f"{of.name}, {of.total_memory / 2**30:.0f} GiB; trains in {precision} by default ({tf32})"
        yield Check(f"GPU {number}", "ok", found)
    cpu = describe_device(torch.device("cpu"))
    found = f"{cpu['processor']}: {cpu['cores']} cores may be used; PyTorch's threads: {torch.get_num_threads()}"
    yield Check("processor", "ok", found)
    chosen = choose_device("auto")
    precision, place, why = choose_precision("auto", chosen), str(chosen), ""
    if chosen.type == "cpu":
        place = "the CPU"
        why = ", which it computes in" if precision == "bfloat16" else ", as bfloat16 would be emulated"
    yield Check("precision", "ok", f"trains on {place} in {precision}{why}; evaluates in float32")


def _check_threads() -> Iterator[Check]:
    cores = available_cores()
    for name in _THREADS:
        value = os.environ.get(name)
        if value is None:
            continue
        if not value.isdecimal() or int(value) < 1:
            yield Check(name, "problem", f"is {value!r}, which is no number from 1 up", f"unset {name}")
        elif int(value) > cores:
            advice = f"unset {name}, or set it to {cores} at most"
            yield Check(name, "note", f"is {value}, more than the {cores} cores, which makes everything slower", advice)
    if "LOCAL_WORLD_SIZE" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        processes_sharing_cores()
        yield Check("LOCAL_WORLD_SIZE", "note", "is set outside torchrun", "unset LOCAL_WORLD_SIZE")


def _check_memory() -> Iterator[Check]:
    with suppress(AttributeError, OSError, ValueError):  # not on every system
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        total = (allowed := min([machine, *_memory_limits()])) / 2**30
        of = f", of the machine's {machine / 2**30:.0f} GiB" if allowed < machine else ""
        if total < _LITTLE_MEMORY_GIB:
            advice = "Use small models and batches, or gradient_checkpointing: true"
            yield Check("memory", "note", f"{total:.1f} GiB{of}, little for training", advice)
        else:
            yield Check("memory", "ok", f"{total:.0f} GiB{of}")


def _memory_limits() -> list[int]:
    """Return how many bytes Linux allows this process's control groups, and those that they are in: as of a container.

    See cgroups(7): a line of `/proc/self/cgroup` is `<number>:<controllers>:<group>`, without controllers in version 2.
    """
    limits: list[int] = []
    for line in _PROCESS_GROUPS.read_text().splitlines() if _PROCESS_GROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = _GROUPS_ROOT, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _GROUPS_ROOT / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = root / group.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError):  # version 2 writes `max` where there is none
                    limits.append(int((folder / name).read_text()))
    return limits


def _check_shared_memory() -> Iterator[Check]:
    """See whether the processes that read images have room for what they hand over, with all keys at their defaults."""
    from handclip.datasets.workers import MORE_SHARED_MEMORY, workers_with_room
    from handclip.parallel.hardware import choose_workers

    if (free := free_shared_memory()) is None:
        return
    batch, eval_batch = TrainingConfig().batch_size, EvaluationConfig().eval_batch_size
    largest = 3 * _SIDE * _SIDE * max(4 * batch, eval_batch)
    wanted = choose_workers("auto")
    workers, _ = workers_with_room(wanted, largest)
    found = f"/dev/shm: {free / 2**20:,.0f} MiB free, room for the batches of {workers} of {wanted} worker processes"
    if workers < wanted:
        advice = f"Only these read images, or the main process where there are none; {MORE_SHARED_MEMORY}"
        yield Check("shared memory", "note", found, advice)
    else:
        yield Check("shared memory", "ok", found)


def _check_folders() -> Iterator[Check]:
    yield _writable("working folder", Path.cwd(), "Change to a folder of yours", necessary=True)
    temporary = Path(tempfile.gettempdir())
    yield _writable("temporary folder", temporary, "Set TMPDIR to a folder of yours", necessary=True)
    advice = "Decoded images are not kept, manifests go to the working folder; set XDG_CACHE_HOME to a folder of yours"
    yield _writable("cache folder", cache_folder(), advice, necessary=False)


def _writable(name: str, folder: Path, advice: str, *, necessary: bool) -> Check:
    """Write a file, in the nearest folder above where this one is not there yet."""
    try:
        existing = nearest_there(folder)
        probe = existing / f".handclip_doctor_{os.getpid()}"
        try:
            write_text(probe, "doctor\n")
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        free = shutil.disk_usage(existing).free / 2**30
    except (HandCLIPError, OSError) as error:
        return Check(name, "problem" if necessary else "note", str(error), advice)
    if free < _LITTLE_SPACE_GIB:
        return Check(name, "note", f"{folder}: only {free:.1f} GiB are free", "Make room before a long run")
    return Check(name, "ok", f"{folder}: can be written, {free:,.0f} GiB free")


def _check_locks() -> Iterator[Check]:
    """Hold a lock twice, which must fail: else two processes could write to one run."""
    with tempfile.TemporaryDirectory(prefix=".handclip_doctor_", dir=Path.cwd()) as folder:
        path = Path(folder, "lock")
        try:
            with FileLock(path), FileLock(path, timeout=0):
                advice = "Work in a folder of another file system, or see to it that no two processes use the same run"
                yield Check("file locks", "problem", "do not hold in the working folder", advice)
        except Timeout:
            yield Check("file locks", "ok", "hold in the working folder")


def _check_pixel_cache() -> Iterator[Check]:
    from handclip.datasets.pixel_cache import PixelCache, pixel_folder

    images = PixelCache(folder := pixel_folder(), limit_bytes=0).images()
    gib = sum(image.bytes for image in images) / 2**30
    limit = RuntimeConfig().pixel_cache_gib
    yield Check("pixel cache", "ok", f"{folder}: {len(images):,} images, {gib:.1f} of {limit:g} GiB")


def _check_hub() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Check(_HUB, "note", "HF_HUB_OFFLINE is set: weights come from files and the hub's cache", _WITHOUT_HUB)
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=_HUB_PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in (403, 407):
            yield Check(_HUB, "note", f"{address} answers with error {error.code}", _WITHOUT_HUB)
            return
    except (OSError, ValueError) as error:
        yield Check(_HUB, "note", f"{address} cannot be reached ({error})", _WITHOUT_HUB)
        return
    yield Check(_HUB, "ok", f"{address} answers")


_GROUPS: dict[str, Callable[[], Iterator[Check]]] = {
    "versions": _check_versions,
    "libraries": _check_libraries,
    _ALONE: _check_torchvision_alone,
    "devices": _check_devices,
    "threads": _check_threads,
    "memory": _check_memory,
    "shared memory": _check_shared_memory,
    "folders": _check_folders,
    "file locks": _check_locks,
    "pixel cache": _check_pixel_cache,
    _HUB: _check_hub,
}

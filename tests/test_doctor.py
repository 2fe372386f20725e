import email.message
import errno
import importlib.metadata
import os
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from packaging.requirements import Requirement

from handclip import doctor
from handclip.doctor import Check, examine
from handclip.errors import HandCLIPError

_VERSION = importlib.metadata.version("torchvision").partition("+")[0]


@pytest.fixture(autouse=True)
def _no_hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with nothing wrong in the environment."""
    for name in (*doctor._THREADS, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def checks(group: str) -> dict[str, Check]:
    return {check.name: check for check in doctor._in_time(group, doctor._GROUPS[group])}


@pytest.mark.slow
def test_this_installation_is_well() -> None:
    found = {check.name: check for check in examine()}
    assert [check for check in found.values() if check.state == "problem"] == []
    assert {"torch", "torchvision", "open_clip_torch", "timm", "Python"} <= found.keys()
    assert {"torchvision's operators", "torch's build", "torchvision by itself", "precision"} <= found.keys()
    assert {"processor", "working folder", "temporary folder", "cache folder"} <= found.keys()
    assert {"file locks", "pixel cache", "model hub"} <= found.keys()
    assert all(check.advice for check in found.values() if check.state != "ok")
    assert list(Path.cwd().iterdir()) == []
    assert found["torch"].found.partition("+")[0] == torch.__version__.partition("+")[0]


def test_a_version_out_of_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    own = email.message.Message()
    for needed in ("torch>=99", "no-such-package>1", "pytest>=8; extra == 'dev'"):
        own["Requires-Dist"] = needed
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda _: own)
    found = checks("versions")
    assert found["torch"].state == found["no-such-package"].state == "problem"
    assert "but HandCLIP needs >=99" in found["torch"].found
    assert found["torch"].advice == "pip install 'torch>=99'"
    assert found["no-such-package"].advice == "pip install 'no-such-package>1'"
    assert "pytest" not in found


@pytest.mark.parametrize(
    ("machine", "is_needed"), [("x86_64", True), ("arm64", True), ("riscv64", False), ("x86", False)]
)
def test_simplejpeg_is_needed_where_there_are_wheels_of_it(machine: str, is_needed: bool) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [needed] = [found for found in map(Requirement, project["dependencies"]) if found.name == "simplejpeg"]
    assert (needed.marker is None or needed.marker.evaluate({"platform_machine": machine})) is is_needed


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Key backend: 'module://inline' is not a valid value for backend", "unset MPLBACKEND: it names"),
        ("cannot load the MKL backend libfoo", "--force-reinstall --no-deps timm==2.99.0"),
        ("No module named 'aiohttp'", "Install aiohttp, which it"),
        ("ModuleNotFoundError: No module named 'aiohttp'", "Install aiohttp, which it"),
        ("No module named 'yarl.url'", "--force-reinstall --no-deps yarl==2.99.0"),
        ("No module named 'torch.library'", "torch==2.99.0 --index-url https://download.pytorch.org/whl/cpu"),
        ("No module named 'open_clip'", "--force-reinstall --no-deps open_clip_torch==2.99.0"),
        ("No module named 'timm'", "--force-reinstall --no-deps timm==2.99.0"),
        ("No module named 'gone.part'", "Install again: make setup"),
        ("libGL.so.1: cannot open shared object file: No such file", "Install the library of the system"),
    ],
)
def test_what_to_do_about_a_library_follows_from_the_cause(
    said: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ImportError(said)

    def version(package: str) -> str:
        if package == "gone":
            raise importlib.metadata.PackageNotFoundError(package)
        return "2.99.0+cpu" if package == "torch" else "2.99.0"

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setenv("MPLBACKEND", "agg")  # as the command line sets it
    check = checks("libraries")["import timm"]
    assert check.state == "problem"
    assert advice in check.advice


def test_torchvision_s_operators_are_told_from_stand_ins_and_from_broken_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def broken(*_: Any) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor._torchvision_operators, "are_stand_ins", lambda: True)
    check = checks("libraries")["torchvision's operators"]
    assert check.state == "ok" and "stand-ins are declared" in check.found
    monkeypatch.setattr(doctor._torchvision_operators, "are_stand_ins", lambda: False)
    monkeypatch.setattr(torchvision.ops, "nms", lambda *_: torch.zeros(1))
    assert checks("libraries")["torchvision's operators"].state == "ok"
    monkeypatch.setattr(torchvision.ops, "nms", broken)
    check = checks("libraries")["libraries"]
    assert check.state == "problem" and "operator torchvision::nms does not exist" in check.found


@pytest.mark.parametrize(
    ("stderr", "state", "found", "advice"),
    [
        ("", "ok", "can be imported", ""),
        (
            "Traceback\nRuntimeError: operator torchvision::nms does not exist\n",
            "note",
            "its build does not fit torch 2.99.0+cpu, so that it is imported after handclip only (RuntimeError: ",
            "pip install torch==2.99.0 torchvision --index-url https://download.pytorch.org/whl/cpu; or import",
        ),
        (
            "ModuleNotFoundError: No module named 'torchvision'\n",
            "problem",
            "cannot be imported: ModuleNotFoundError",
            f"Install again: pip install --force-reinstall --no-deps torchvision=={_VERSION}",
        ),
    ],
)
def test_what_torchvision_does_by_itself_is_judged_by_cause(
    stderr: str, state: str, found: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, int(bool(stderr)), "", stderr)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    check = checks("torchvision by itself")["torchvision by itself"]
    assert check.state == state
    assert check.found.startswith(found)
    assert advice in check.advice


@pytest.mark.parametrize(
    ("cuda", "driver", "state", "sentence"),
    [
        ("12.8", False, "note", "for CUDA 12.8, and there is no GPU"),
        (None, True, "note", "for CPUs, though this machine has an NVIDIA GPU"),
        (None, False, "ok", "for CPUs"),
    ],
)
def test_a_build_of_torch_that_does_not_fit_the_machine_is_noted(
    cuda: str | None, driver: bool, state: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: driver if "nvidia" in str(path) else exists(path))
    check = doctor._torch_build()
    assert check.state == state
    assert sentence in check.found


def test_numbers_of_threads_that_are_none_or_too_many_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks("threads") == {}
    for name, value in (("OMP_NUM_THREADS", "many"), ("MKL_NUM_THREADS", "5000"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert [check.state for check in checks("threads").values()] == ["problem", "note", "note"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    assert "must be how many processes" in checks("threads")["threads"].found


def test_a_folder_that_cannot_be_written_is_a_problem_but_the_cache_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise HandCLIPError(f"cannot write {path}: {os.strerror(errno.EROFS)}")

    with monkeypatch.context() as patch:
        patch.setattr(doctor, "_LITTLE_SPACE_GIB", 2.0**40)
        assert checks("folders")["working folder"].state == "note"
    monkeypatch.setattr(doctor, "write_text", refuse)
    found = checks("folders")
    states = {"working folder": "problem", "temporary folder": "problem", "cache folder": "note"}
    assert {name: check.state for name, check in found.items()} == states
    assert "Read-only file system" in found["working folder"].found
    monkeypatch.setenv("XDG_CACHE_HOME", "n" * 300)
    cache = checks("folders")["cache folder"]
    assert (cache.state, cache.found.endswith(": cannot be read: File name too long")) == ("note", True)


def test_locks_that_do_not_hold_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileLock, "_acquire", lambda lock: setattr(lock._context, "lock_file_fd", 0))
    monkeypatch.setattr(FileLock, "_release", lambda lock: setattr(lock._context, "lock_file_fd", None))
    assert checks("file locks")["file locks"].state == "problem"


def test_a_hub_that_is_out_of_reach_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_HUB_OFFLINE is set" in checks("model hub")["model hub"].found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    check = checks("model hub")["model hub"]
    assert check.state == "note"
    assert "http://127.0.0.1:9 cannot be reached" in check.found
    assert "name a weights file under `pretrained:`" in check.advice


@pytest.mark.promise("doctor")
def test_a_check_that_hangs_or_breaks_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, released = threading.Event(), threading.Event()

    class Thread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            # Patience begins where it hangs, so that a busy machine does not count.
            while self.is_alive() and not hanging.wait(0.01):
                pass
            hanging.clear()
            super().join(timeout)

    def hangs() -> Iterator[Check]:
        yield Check("first", "ok", "found")
        hanging.set()
        released.wait()

    def breaks() -> Iterator[Check]:
        yield Check("second", "ok", "found")
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(doctor.threading, "Thread", Thread)
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    monkeypatch.setattr(doctor, "_HUB_PATIENCE", 0.1)
    monkeypatch.setattr(doctor, "_GROUPS", {"slow": hangs, "odd": breaks, "model hub": hangs})
    found = [(check.name, check.state) for check in examine()]
    released.set()
    slow, odd = [("first", "ok"), ("slow", "problem")], [("second", "ok"), ("odd", "problem")]
    assert found == [*slow, *odd, ("first", "ok"), ("model hub", "note")]


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({"groups": "0::/box/own\n", "box/memory.max": "1073741824", "box/own/memory.max": "max"}, 1.0),
        ({"groups": "0::/\n", "memory.max": "536870912\n"}, 0.5),
        ({"groups": "0::/\n4:cpu:/x\n3:memory:/box\n", "memory/box/memory.limit_in_bytes": "1073741824"}, 1.0),
        ({}, None),
        ({"groups": "0::/\n"}, None),
        ({"groups": "0::/\n", "memory.max": "max\n"}, None),
    ],
)
def test_the_memory_of_a_container_is_what_it_is_allowed(
    files: dict[str, str], gib: float | None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    monkeypatch.setattr(doctor, "_PROCESS_GROUPS", here / "groups")
    monkeypatch.setattr(doctor, "_GROUPS_ROOT", here)
    check = checks("memory")["memory"]
    if gib is None:  # there is no limit but the machine's
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        assert check.found.startswith((f"{machine:.0f} GiB", f"{machine:.1f} GiB, little"))
    else:
        assert check.state == "note"
        assert check.found.startswith(f"{gib} GiB, of the machine's ")
        assert check.found.endswith(" GiB, little for training")


@pytest.mark.promise("little-shared-memory")
@pytest.mark.parametrize(
    ("free_mib", "state", "found"),
    [
        (24_000, "ok", "/dev/shm: 24,000 MiB free, room for the batches of 4 of 4 worker processes"),
        (64, "note", "/dev/shm: 64 MiB free, room for the batches of 1 of 4 worker processes"),
        (0, "note", "/dev/shm: 0 MiB free, room for the batches of 0 of 4 worker processes"),
        (None, None, None),
    ],
)
def test_little_shared_memory_is_noted(
    free_mib: int | None, state: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("handclip.doctor", "handclip.datasets.workers"):
        monkeypatch.setattr(f"{module}.free_shared_memory", lambda: None if free_mib is None else free_mib * 2**20)
    monkeypatch.setattr("handclip.parallel.hardware.available_cores", lambda: 5)
    check = checks("shared memory").get("shared memory")
    assert (check and (check.state, check.found)) == (state and (state, found))
    if state == "note":
        assert check is not None and "docker's --shm-size=1g" in check.advice

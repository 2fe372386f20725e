"""A short form of `make fuzz`: a few hundred inputs for each reader, and every input that it has ever found."""

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from handclip.errors import HandCLIPError

ROOT = Path(__file__).parents[1]
INPUTS = {"images": 500, "configs": 150, "manifests": 500}


def target(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"fuzz_{name}", ROOT / "fuzz" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def mutated(seeds: list[bytes], tokens: list[bytes], count: int) -> Iterator[bytes]:
    """Seeds with flipped, lost, doubled and foreign bytes."""
    choose = random.Random(0)
    for _ in range(count):
        data = bytearray(choose.choice(seeds))
        for _ in range(choose.randint(0, 4)):
            start = choose.randrange(len(data) + 1)
            stop = min(len(data), start + choose.randint(0, 8))
            data[start:stop] = choose.choice(
                [b"", bytes(data[start:stop]) * 2, choose.randbytes(stop - start), choose.choice(tokens)]
            )
        yield bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", INPUTS)
def test_any_input_is_read_or_refused_with_an_explanation(name: str) -> None:
    module = target(name)
    seeds = list(module.seeds())
    accepted = 0
    for data in [*seeds, *mutated(seeds, module.TOKENS, INPUTS[name])]:
        try:
            module.one(data)
            accepted += 1
        except HandCLIPError:
            pass
    assert accepted >= 2


def run_fuzzer(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    """The runner by itself, with another target."""
    pytest.importorskip("atheris")
    (folder / "images.py").write_text(target)
    (folder / "run.py").write_text((ROOT / "fuzz" / "run.py").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, str(folder / "run.py"), "images", "--out", str(folder / "out"), "--runs", "50"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


FAULTY = """
TOKENS, LONGEST = [b"x"], 9
def seeds():
    yield b"seed"
def one(data):
    if len(data) > 2:
        raise KeyError("fault")
"""


def test_an_uncaught_exception_is_kept_and_fails_the_run(tmp_path: Path) -> None:
    result = run_fuzzer(tmp_path, FAULTY)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "KeyError in " in result.stdout
    [crash] = (tmp_path / "out").glob("crash_images_*")
    assert len(crash.read_bytes()) > 2


@pytest.mark.parametrize("end", ["import os; os._exit(0)", "import os; os._exit(1)", "import os; os.abort()"])
def test_a_target_that_dies_fails_the_run(tmp_path: Path, end: str) -> None:
    result = run_fuzzer(tmp_path, FAULTY.replace('raise KeyError("fault")', end))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "too slow, too large or dead" in result.stdout

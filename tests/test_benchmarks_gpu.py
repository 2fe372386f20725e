"""The GPU benchmark's own logic; what it measures needs a GPU."""

import csv
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from handclip.synthetic import SyntheticHands, generate


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    return importlib.import_module("gpu")


def test_every_case_is_measured_once_and_the_goals_come_first(gpu: ModuleType) -> None:
    cases = list(gpu.cases(gpu.FULL))
    assert len(cases) == len(set(cases))
    assert cases[0] == gpu.Case("training", "vitb16", 256)
    assert "study" in [case.work for case in cases[:4]]
    # Photographs reach the training as in a run.
    assert {case.memory_format for case in cases if case.work in ("input path", "study")} == {"auto"}
    grid = {(c.work, c.model, c.batch, c.precision, c.compiled, c.memory_format) for c in cases}
    for work in ("training", "inference"):
        for model in ("vitb16", "rn50", "mbanet"):
            for batch in (32, 64, 256):
                assert {
                    (work, model, batch, precision, compiled, order)
                    for precision in ("float32", "tf32", "bfloat16")
                    for compiled in (False, True)
                    for order in ("contiguous", "channels_last")
                } <= grid


def test_peaks_are_found_by_the_gpus_name_and_no_chip_is_taken_for_another(gpu: ModuleType) -> None:
    peaks = {"H200": 989, "H100 80GB HBM3": 989, "H100 PCIe": 756, "A100-SXM4-80GB": 312, "L40S": 362, "L4": 121}
    assert {name: gpu.data_sheet(f"NVIDIA {name}")[0] for name in peaks} == peaks
    for name in ("Some other chip", "NVIDIA RTX A1000", "NVIDIA L400", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert gpu.data_sheet(name) is None


def test_hands_of_one_aspect_become_large_photographs(gpu: ModuleType, tmp_path: Path) -> None:
    hands = generate(tmp_path / "hands", SyntheticHands(identities=4, images_per_aspect=1, size=32))
    gpu.enlarge(hands, "dorsal right")
    with (hands / "HandInfo.csv").open(newline="", encoding="utf-8") as file:
        aspects = {row["imageName"]: row["aspectOfHand"] for row in csv.DictReader(file)}
    assert "dorsal right" in aspects.values()
    for name, aspect in aspects.items():
        with Image.open(hands / "Hands" / name) as image:
            assert image.size == ((1600, 1200) if aspect == "dorsal right" else (32, 32))


def test_a_row_that_takes_too_long_is_stopped(gpu: ModuleType) -> None:
    with pytest.raises(gpu.TimeOut), gpu.limited(0.05):
        time.sleep(5)


def test_what_fails_is_a_row_that_says_so(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = iter([torch.OutOfMemoryError("CUDA out of memory"), ValueError("a fault"), gpu.TimeOut()])

    def speed(self: object, case: object, row: object) -> None:
        raise next(faults)

    monkeypatch.setattr(gpu.Bench, "_speed", speed)
    monkeypatch.setattr(gpu, "cases", lambda plan: [gpu.Case("training", "vit_small", size) for size in (2, 4, 8)])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu.main()
    (table,) = tmp_path.glob("*.csv")
    with table.open(newline="", encoding="utf-8") as file:
        notes = [row["note"] for row in csv.DictReader(file)]
    assert notes[:2] == ["out of memory", "ValueError: a fault"]
    assert notes[2].startswith("stopped after")
    assert "out of memory" in capsys.readouterr().out


def test_a_tiny_row_is_measured(gpu: ModuleType, tmp_path: Path) -> None:
    bench = gpu.Bench(torch.device("cpu"), gpu.QUICK, tmp_path)
    result = bench.measure(gpu.Case("training", "resnet_small", 2, "float32", memory_format="channels_last"))
    assert result.images_per_second > 0
    assert result.share_of_peak > 0
    assert "tf32" in bench.measure(gpu.Case("training", "resnet_small", 2, "tf32")).note

import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import read_table, tiny_config
from torch import nn

from handclip.cores import available_cores
from handclip.errors import ConfigError
from handclip.parallel.hardware import (
    choose_device,
    choose_memory_format,
    choose_precision,
    choose_workers,
    computing_in,
    describe_environment,
    full_float32,
    library_versions,
    peak_memory_mib,
    reset_peak_memory,
)
from handclip.runs.train import train


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="cuda:1: this machine has 1 CUDA devices"):
        choose_device("cuda:1")
    with pytest.raises(ConfigError, match="no Apple GPU"):
        choose_device("mps")


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_follows_the_hardware(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "bfloat16" if supported else "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision("auto", torch.device("cuda")) == expected
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == expected
    assert choose_precision("auto", torch.device("mps")) == "float32"
    for asked in ("float32", "bfloat16"):
        assert choose_precision(asked, torch.device("cpu")) == asked


def test_workers_leave_a_core_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr("handclip.parallel.hardware.available_cores", lambda cores=cores: cores)
        assert choose_workers("auto") == workers
    assert choose_workers(0) == 0
    assert choose_workers(12) == 12


def test_the_environment_is_recorded() -> None:
    environment = json.loads(json.dumps(describe_environment(torch.device("cpu"), "float32")))
    assert environment["device"] == "cpu"
    assert environment["precision"] == "float32"
    assert 1 <= environment["cores"] == available_cores() <= (os.cpu_count() or 1)
    assert set(environment["libraries"]) > {"torch", "open_clip_torch", "timm"}
    assert peak_memory_mib() > 50


@pytest.mark.parametrize("version", [None, "1.9.0"])
@pytest.mark.parametrize(("name", "library"), [("SIMPLEJPEG_VERSION", "simplejpeg"), ("HEIF_VERSION", "pillow-heif")])
def test_the_record_says_what_decoded_photographs(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str, version: str | None
) -> None:
    monkeypatch.setattr(f"handclip.parallel.hardware.{name}", version)
    assert library_versions()[library] == (version or "not installed")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot forget its peak")
def test_a_run_is_not_charged_with_the_memory_of_another() -> None:
    # A mapping of its own goes back to the system at once; what is freed to an allocator, that may keep.
    with mmap.mmap(-1, 400 * 2**20) as block:
        for _ in range(400):
            block.write(bytes([1]) * 2**20)
        before = peak_memory_mib()
    reset_peak_memory(torch.device("cpu"))
    after = peak_memory_mib()
    assert before is not None and after is not None
    assert after < before - 300


def test_the_gpu_is_there_before_its_peak_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(f"reset {device}"))
    reset_peak_memory(torch.device("cuda:0"))
    assert calls == ["init", "reset cuda:0"]


def test_tf32_is_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"precision: tf32: is for NVIDIA GPUs.*on cpu"):
        choose_precision("tf32", torch.device("cpu"))
    gpu = torch.device("cuda")
    for capability, hip, there in (((9, 0), None, True), ((7, 5), None, False), ((9, 4), "6.2", False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        monkeypatch.setattr(torch.version, "hip", hip)
        if there:
            assert choose_precision("tf32", gpu) == "tf32"
        else:
            with pytest.raises(ConfigError, match="tf32"):
                choose_precision("tf32", gpu)


@pytest.mark.parametrize(("precision", "during"), [("float32", (False, False)), ("tf32", (True, True))])
def test_products_are_rounded_only_where_asked_for(precision: str, during: tuple[bool, bool]) -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = settings()
    with computing_in(precision):
        assert settings() == during
        with full_float32():  # validation, within a run in TF32
            assert settings() == (False, False)
        assert settings() == during
    assert settings() == before
    with computing_in("bfloat16"):
        assert settings() == before


@pytest.mark.parametrize(
    ("device", "precision", "model", "chosen"),
    [
        ("cuda", "float32", "cnn", "channels_last"),
        ("cuda", "bfloat16", "cnn", "channels_last"),
        ("cuda", "bfloat16", "vit", "contiguous"),
        ("cpu", "bfloat16", "cnn", "channels_last"),
        ("cpu", "bfloat16", "vit", "contiguous"),
        ("cpu", "float32", "cnn", "contiguous"),
        ("mps", "float32", "cnn", "contiguous"),
    ],
)
def test_the_memory_format_follows_device_precision_and_model(
    device: str, precision: str, model: str, chosen: str
) -> None:
    network = {"cnn": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "vit": nn.Conv2d(3, 4, 16)}[model]
    assert choose_memory_format("auto", torch.device(device), precision, network) == chosen
    for asked in ("contiguous", "channels_last"):
        assert choose_memory_format(asked, torch.device(device), precision, network) == asked


def test_a_run_says_how_it_computes(manifests: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    result = train(tiny_config(manifests, epochs=1, memory_format="channels_last", gradient_checkpointing=True))
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["memory_format"] == "channels_last"
    assert (environment["gradient_checkpointing"], environment["compile"], environment["num_workers"]) == (
        True,
        False,
        0,
    )
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("Training on"))
    for part in ("cpu in float32", "channels_last", "thread", "0 worker processes", "not compiled", "checkpointing on"):
        assert part in line


@pytest.mark.parametrize(
    ("model", "changes", "tolerance"),
    [
        ({"model": "vit_small"}, {"gradient_checkpointing": True}, 1e-4),
        ({"model": "vit_small"}, {"memory_format": "channels_last"}, 1e-4),
        # Adam's first steps are as long as the learning rate, however small the gradient: rounding shows.
        ({"model": "rn_small", "input_size": 64}, {"memory_format": "channels_last"}, 1e-3),
        ({"model": "mbanet_small", "input_size": 64, "neck": "hidden"}, {"memory_format": "channels_last"}, 1e-3),
    ],
)
def test_how_a_run_computes_does_not_change_what_it_learns(
    model: dict[str, Any], changes: dict[str, Any], tolerance: float, manifests: Path, here: Path
) -> None:
    values = {**model, "memory_format": "contiguous"}
    plain = train(tiny_config(manifests, experiment="plain", **values))
    other = train(tiny_config(manifests, experiment="other", **{**values, **changes}))
    losses = [[float(row["loss_total"]) for row in read_table(run.folder / "metrics.csv")] for run in (plain, other)]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_networks_with_batch_norm_are_told_at_the_start(manifests: Path, here: Path) -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing: rn_small has batch norm"):
        train(tiny_config(manifests, model="rn_small", input_size=64, gradient_checkpointing=True))
    assert not list(here.rglob("config.yml"))

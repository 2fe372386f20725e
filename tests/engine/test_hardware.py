import json
import os

import pytest
import torch

from handclip.cores import available_cores
from handclip.engine.hardware import (
    choose_device,
    choose_precision,
    choose_workers,
    describe_environment,
    peak_memory_mib,
    reset_peak_memory,
)
from handclip.errors import ConfigError


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
        monkeypatch.setattr("handclip.engine.hardware.available_cores", lambda cores=cores: cores)
        assert choose_workers("auto") == workers
    assert choose_workers(0) == 0
    assert choose_workers(12) == 12


def test_the_environment_is_recorded() -> None:
    environment = json.loads(json.dumps(describe_environment(torch.device("cpu"), "float32")))
    assert environment["device"] == "cpu"
    assert environment["precision"] == "float32"
    assert 1 <= environment["cores"] == available_cores() <= (os.cpu_count() or 1)
    assert set(environment["libraries"]) > {"torch", "open_clip_torch", "lightning"}
    assert peak_memory_mib() > 50


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot forget its peak")
def test_a_run_is_not_charged_with_the_memory_of_another() -> None:
    block = torch.ones(100 * 2**20)
    before = peak_memory_mib()
    del block
    reset_peak_memory(torch.device("cpu"))
    after = peak_memory_mib()
    assert before is not None and after is not None
    assert after < before - 300

"""torch.compile: the same numbers and names, and one clear error where it cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import read_table, tiny_config

from handclip.errors import ConfigError
from handclip.models.builder import build_model
from handclip.runs.train import train
from handclip.training.compilation import compiled_forward, naming_compile


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Compile with another back end: the default one calls a C++ compiler, for half a minute and more."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))


def test_a_compiled_model_gives_the_same_embeddings_and_gradients(
    manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_backend(monkeypatch, "aot_eager")
    model = build_model(tiny_config(manifests)).encoder
    names = list(model.state_dict())
    images, weights, found = torch.randn(4, 3, 32, 32), torch.randn(4, 256), []
    for compiled in (False, True):
        encode = compiled_forward(model) if compiled else model
        embedding = encode(images)["projected"]
        model.zero_grad()
        (embedding * weights).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        found[-1]["features"] = embedding.detach()
    assert list(model.state_dict()) == names
    plain, fast = found
    assert plain.keys() == fast.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()), msg=name)


def test_a_compiler_that_fails_is_a_config_error(manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_backend(graph: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler was found")

    with_backend(monkeypatch, no_backend)
    with pytest.raises(ConfigError, match=r"compile: true: the model could not be compiled .*no C\+\+ compiler"):
        train(tiny_config(manifests, compile=True))


def test_a_platform_without_compilation_is_a_config_error(manifests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(function: Any) -> Any:
        raise RuntimeError("torch.compile is not supported on this platform")

    monkeypatch.setattr(torch, "compile", unsupported)
    model = build_model(tiny_config(manifests)).encoder
    with pytest.raises(ConfigError, match="not supported on this platform"):
        compiled_forward(model)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), naming_compile():
        raise RuntimeError("out of memory")


def test_training_compiles_and_validation_does_not(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted with a back end that compiles nothing: only the training mode's graph reaches it."""
    modes: list[bool] = []

    def count(graph: Any, inputs: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return graph.forward

    plain = train(tiny_config(manifests, experiment="plain"))
    with_backend(monkeypatch, count)
    compiled = train(tiny_config(manifests, experiment="compiled", compile=True))
    assert modes and all(modes)
    for first, second in zip(*(read_table(run.folder / "metrics.csv") for run in (plain, compiled)), strict=True):
        assert float(first["loss_total"]) == pytest.approx(float(second["loss_total"]), rel=1e-5)

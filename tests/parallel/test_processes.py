"""Two processes on the CPU, by gloo, do what one does."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_study import tiny_config
from torch import Tensor, nn

from handclip.config.experiment import ExperimentConfig
from handclip.errors import ConfigError, DataError, HandCLIPError
from handclip.parallel.batch_norm import SynchronizedBatchNorm, synchronize_batch_norm
from handclip.parallel.launching import on_devices
from handclip.parallel.processes import (
    combine,
    current,
    first_before_others,
    gather_rows,
    is_first_process,
    on_first,
    own_share,
)

LENGTHS = [3, 2]
"""Images of a batch of five that the two processes hold."""

NORMS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "vectors": (nn.BatchNorm1d, (5, 4)),
    "maps": (nn.BatchNorm2d, (5, 4, 3, 2)),
    "without momentum": (lambda channels: nn.BatchNorm2d(channels, momentum=None), (5, 4, 3, 2)),
}


def part(whole: Tensor) -> Tensor:
    return whole.split(LENGTHS)[current().rank]


def images_and_slopes(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Activations far from zero mean, and the gradient of some loss by what is made of them."""
    random = torch.Generator().manual_seed(1)
    return 3 + 2 * torch.randn(shape, generator=random).double(), torch.randn(shape, generator=random).double()


def norm_after_two_batches(layer: nn.Module, values: Tensor, slopes: Tensor) -> dict[str, Tensor]:
    """Output and gradients of the second batch, and what the layer has counted up."""
    layer.double()
    layer(values.flip(1) - 1)
    values = values.clone().requires_grad_()
    output = layer(values)
    (output * slopes).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    found = {"output": output.detach(), "of_inputs": values.grad, **gradients, **dict(layer.named_buffers())}
    return {name: value for name, value in found.items() if value is not None}


def encoder_and_loss() -> tuple[nn.Linear, nn.Linear, Callable[[Tensor], Tensor]]:
    torch.manual_seed(2)
    encoder, classifier = nn.Linear(6, 4).double(), nn.Linear(4, 3).double()
    # Every row acts on every other, as in a triplet loss.
    return encoder, classifier, lambda rows: torch.cdist(rows, rows + 1).square().sum() + classifier(rows).exp().sum()


def exercise(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Do in each process what the tests below look at; return what each has found."""
    found: dict[str, Any] = {"rank": current().rank, "first": is_first_process(), "threads": torch.get_num_threads()}
    values, _ = images_and_slopes((5, 6))
    encoder, classifier, loss = encoder_and_loss()
    rows = gather_rows(encoder(part(values)), LENGTHS)
    loss(rows).backward()
    found["gathered"] = rows.detach()
    found["labels"] = gather_rows(part(torch.arange(5)), LENGTHS)
    found["half"] = gather_rows(part(values.bfloat16()), LENGTHS)
    found["gradients"] = [p.grad for module in (encoder, classifier) for p in module.parameters()]

    for name, (make, shape) in NORMS.items():
        values, slopes = images_and_slopes(shape)
        layer = nn.Sequential(make(shape[1]))
        synchronize_batch_norm(layer)
        assert isinstance(layer[0], SynchronizedBatchNorm)
        found[name] = norm_after_two_batches(layer[0], part(values), part(slopes))
    values, _ = images_and_slopes((5, 4))
    found["bfloat16"] = SynchronizedBatchNorm.of(nn.BatchNorm1d(4))(part(values).bfloat16()).detach()

    table = np.zeros((3, 2), np.float32)
    for row in own_share(range(3)):
        table[row] = [-0.0, np.nan] if row == 1 else row + 0.1
    combine(table)
    found["table"] = table
    found["told"] = on_first(lambda: f"by {current().rank}")
    made = Path(str(config.output_dir)) / "made"
    found["made"] = first_before_others(lambda: made.read_text() if made.exists() else str(made.write_text("once")))
    try:
        on_first(refuse)
    except DataError as error:
        found["refused"] = str(error)
    everything: list[Any] = [None] * current().size
    dist.all_gather_object(everything, found)
    return everything


def refuse() -> None:
    raise DataError("the first has found a fault")


@pytest.fixture(scope="module")
def found(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place = tmp_path_factory.mktemp("exercise")
    return on_devices(exercise, tiny_config(manifests, devices=2, output_dir=str(place)))


def test_two_processes_know_their_numbers(found: list[dict[str, Any]]) -> None:
    assert [(own["rank"], own["first"], own["threads"]) for own in found] == [(0, True, 1), (1, False, 1)]
    assert current().size == 1 and is_first_process()


def test_gathered_rows_are_the_whole_batch_in_its_order(found: list[dict[str, Any]]) -> None:
    values, _ = images_and_slopes((5, 6))
    encoder, _, _ = encoder_and_loss()
    for own in found:
        torch.testing.assert_close(own["gathered"], encoder(values).detach())
        assert own["labels"].tolist() == list(range(5))
        assert torch.equal(own["half"], values.bfloat16())


def test_the_mean_of_the_gradients_is_that_of_one_process(found: list[dict[str, Any]]) -> None:
    values, _ = images_and_slopes((5, 6))
    encoder, classifier, loss = encoder_and_loss()
    loss(encoder(values)).backward()
    expected = [p.grad for module in (encoder, classifier) for p in module.parameters()]
    means = [(first + second) / 2 for first, second in zip(*(own["gradients"] for own in found), strict=True)]
    torch.testing.assert_close(means, expected)
    # What stands behind the gathered rows needs no mean.
    torch.testing.assert_close(found[0]["gradients"][2:], expected[2:])


@pytest.mark.parametrize("name", NORMS)
def test_synchronised_batch_norm_is_that_of_the_whole_batch(name: str, found: list[dict[str, Any]]) -> None:
    make, shape = NORMS[name]
    expected = norm_after_two_batches(make(shape[1]), *images_and_slopes(shape))
    first, second = (own[name] for own in found)
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        if key in ("output", "of_inputs"):
            torch.testing.assert_close(torch.cat([first[key], second[key]]), value)
        elif key in ("weight", "bias"):  # each its own images' share, as every parameter
            torch.testing.assert_close(first[key] + second[key], value)
        else:
            torch.testing.assert_close(first[key], value)
            torch.testing.assert_close(second[key], value)


def test_synchronised_batch_norm_keeps_the_type_of_its_input(found: list[dict[str, Any]]) -> None:
    assert [own["bfloat16"].dtype for own in found] == [torch.bfloat16, torch.bfloat16]


def test_a_synchronised_layer_has_the_state_of_the_plain_one() -> None:
    plain = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(3)))
    before, parameters = plain.state_dict(), list(plain.parameters())
    plain[1].eval()
    synchronize_batch_norm(plain)
    assert plain.state_dict().keys() == before.keys()
    assert all(own is other for own, other in zip(plain.parameters(), parameters, strict=True))
    assert plain[0].training and not plain[1][0].training
    inputs = torch.randn(2, 3)
    assert torch.equal(plain[1](inputs), nn.BatchNorm1d(3).eval()(inputs))


def test_a_batch_norm_of_another_kind_is_refused() -> None:
    for layer in (nn.SyncBatchNorm(4), nn.BatchNorm2d(4, affine=False)):
        with pytest.raises(ConfigError, match=rf"^devices: the model has a batch norm \({type(layer).__name__} 0\)"):
            synchronize_batch_norm(nn.Sequential(layer))


def test_a_combined_table_has_every_bit(found: list[dict[str, Any]]) -> None:
    expected = np.array([[0.1, 0.1], [-0.0, np.nan], [2.1, 2.1]], np.float32)
    for own in found:
        assert own["table"].tobytes() == expected.tobytes()


def test_what_the_first_process_finds_all_are_told(found: list[dict[str, Any]]) -> None:
    assert [own["told"] for own in found] == ["by 0", "by 0"]
    assert [own["refused"] for own in found] == ["the first has found a fault"] * 2
    assert [own["made"] for own in found] == ["4", "once"]


def fail(config: ExperimentConfig, how: str) -> None:
    """Fail in the second process while the first waits for it."""
    if current().rank == 1:
        if how in ("killed", "told to end"):
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGTERM)
        raise DataError("hand.jpg: is not a hand") if how == "of the user's" else ValueError("a mistake")
    dist.barrier()


def processes_left() -> list[BaseProcess]:
    """Processes that still run, but for those that read images, which are daemons: another test may have left some."""
    return [process for process in multiprocessing.active_children() if not process.daemon]


class FromAScript:
    """What a process cannot import: it is defined below `if __name__ == "__main__"`, say."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return importlib.import_module, ("a_script_that_is_not_there",)


def test_a_process_that_does_not_start_is_not_said_to_want_memory(
    manifests: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HandCLIPError, match=r"^process \d of 2 ended \(exit code 1\) before .* __name__ ==") as raised:
        on_devices(fail, tiny_config(manifests, devices=2), how=FromAScript())
    assert "memory" not in str(raised.value)
    assert "No module named 'a_script_that_is_not_there'" in capfd.readouterr().err
    assert not processes_left()


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("of the user's", DataError, "^hand.jpg: is not a hand$"),
        ("of the program's", RuntimeError, "(?s)^process 2 of 2 failed:\nTraceback.*ValueError: a mistake"),
        ("killed", Exception, r"^process 2 of 2 was ended from outside \(exit code -9\)"),
        ("told to end", Exception, r"^process 2 of 2 was ended from outside \(exit code 143\)"),
    ],
)
def test_a_process_that_fails_ends_all(how: str, kind: type[Exception], message: str, manifests: Path) -> None:
    with pytest.raises(kind, match=message):
        on_devices(fail, tiny_config(manifests, devices=2), how=how)
    assert not processes_left()

"""What is shown of training, and what ends it."""

import io
import logging
from pathlib import Path
from typing import cast

import pytest
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn
from tiny_study import tiny_config

from handclip import console
from handclip.interruption import AskedToStop, StopRequest
from handclip.loss.criterion import LossOutput
from handclip.runs import hooks
from handclip.runs.evaluate import evaluate
from handclip.runs.train import train
from handclip.training.state import Plan, TrainState


class Loss:
    """Counts how often it is read, which on a GPU is to wait."""

    reads = 0

    def __float__(self) -> float:
        Loss.reads += 1
        return 1.25


STEP = LossOutput(torch.tensor(1.0), {"cross_entropy": cast(torch.Tensor, Loss())})


def state_at(epoch: int, step: int) -> TrainState:
    """After so many epochs and steps."""
    return TrainState(Plan(3, 100), history=[{}] * epoch, steps_taken=100 * epoch + step)


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Progress:
    bar = Progress(TextColumn("{task.fields[note]}"), console=Console(file=io.StringIO()))
    monkeypatch.setattr(hooks, "progress_bar", lambda: bar)
    monkeypatch.setattr(Loss, "reads", 0)
    return bar


@pytest.mark.parametrize(("seconds", "reads"), [(0.01, 4), (3.0, 100)], ids=["fast steps", "slow steps"])
def test_losses_are_read_at_most_four_times_a_second(seconds: float, reads: int, at_a_terminal: Progress) -> None:
    now = [100.0]
    with hooks.showing_progress("run", state_at(0, 0), lambda: now[0]) as progress:
        for step in range(100):
            progress(state_at(0, step + 1), STEP)
            now[0] += seconds
    assert Loss.reads == reads
    [task] = at_a_terminal.tasks
    assert (task.completed, task.total, task.fields["note"]) == (100, 300, "cross_entropy 1.250")


def test_without_a_terminal_long_epochs_say_how_far_they_are_and_no_loss_is_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "handclip")
    monkeypatch.setattr(Loss, "reads", 0)
    now = [0.0]
    for seconds_per_step, epoch, first in ((0.0625, 0, 0), (1.0, 1, 0), (1.0, 2, 52)):  # the last one goes on
        with hooks.showing_progress("run", state_at(epoch, first), lambda: now[0]) as progress:
            for step in range(first, 100):
                progress(state_at(epoch, step + 1), STEP)
                now[0] += seconds_per_step
    assert Loss.reads == 0
    assert caplog.messages[0] == "Epoch 2/3, steps: 11 of 100 (11%); 0:01:29 to go"
    assert [message.split(" of ")[0] for message in caplog.messages] == [
        *(f"Epoch 2/3, steps: {done}" for done in range(11, 100, 10)),
        *(f"Epoch 3/3, steps: {done}" for done in range(63, 100, 10)),
    ]
    assert caplog.messages[9] == "Epoch 3/3, steps: 63 of 100 (63%); 0:00:37 to go"


def test_a_signal_ends_training_after_the_step() -> None:
    request = StopRequest()
    stop = hooks.stop_within_an_epoch(request)
    stop(state_at(0, 1), STEP)
    request.signum = 15
    with pytest.raises(AskedToStop):
        stop(state_at(0, 99), STEP)


def test_d64_early_stopping_says_what_it_watched(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    state = TrainState(Plan(9, 1, patience=2), history=[{}] * 3, validations_without_gain=1)
    hooks.log_early_stopping(state)
    state.validations_without_gain = 2
    hooks.log_early_stopping(state)
    assert caplog.messages == ["No better val_map in 2 validations: training stops early."]


def test_called_from_python_work_is_not_silent(manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, soft_wrap=True))
    monkeypatch.setattr(logging.root, "handlers", [])
    config = tiny_config(manifests, epochs=1, num_splits=1, explained_images=0)
    train(config)
    evaluate(config)
    lines = screen.getvalue().splitlines()
    assert lines[0].startswith("Run tiny_vit_small_")
    assert any(line.startswith("Epoch 1/1: total ") for line in lines)
    assert lines[-1].startswith("Evaluating on cpu")
    assert logging.getLogger("handclip").handlers == []

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_study import tiny_config

from handclip import console
from handclip.runs.evaluate import evaluate
from handclip.runs.progress import TrainingProgress
from handclip.runs.train import train


class Loss:
    """Counts how often it is read, which on a GPU is to wait."""

    reads = 0

    def __float__(self) -> float:
        Loss.reads += 1
        return 1.25


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> tuple[TrainingProgress, list[float]]:
    now = [100.0]
    progress = TrainingProgress("run", epochs=2, steps_per_epoch=100, clock=lambda: now[0])
    monkeypatch.setattr(progress._bar, "disable", False)
    monkeypatch.setattr(Loss, "reads", 0)
    return progress, now


def step(progress: TrainingProgress, epoch: int = 0, batch: int = 0) -> None:
    trainer: Any = SimpleNamespace(current_epoch=epoch)
    terms = {"terms": {"cross_entropy": Loss()}}
    progress.on_train_batch_end(trainer, None, terms, None, batch)  # type: ignore[arg-type]


def test_losses_are_read_at_most_four_times_a_second(bar: tuple[TrainingProgress, list[float]]) -> None:
    progress, now = bar
    for _ in range(100):  # a second of steps
        step(progress)
        now[0] += 0.01
    assert Loss.reads == 4
    task = progress._bar.tasks[0]
    assert task.completed == 100
    assert task.fields["note"] == "cross_entropy 1.250"


def test_a_slow_step_is_always_shown(bar: tuple[TrainingProgress, list[float]]) -> None:
    progress, now = bar
    for _ in range(5):
        step(progress)
        now[0] += 3.0
    assert Loss.reads == 5


def test_without_a_terminal_no_loss_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = TrainingProgress("run", epochs=1, steps_per_epoch=3)
    monkeypatch.setattr(Loss, "reads", 0)
    monkeypatch.setattr(progress._bar, "disable", True)
    step(progress)
    assert Loss.reads == 0


def test_without_a_terminal_long_epochs_say_how_far_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    now = [0.0]
    progress = TrainingProgress("run", epochs=3, steps_per_epoch=100, clock=lambda: now[0])
    assert progress._bar.disable
    for seconds_per_step, epoch, first in ((0.0625, 0, 0), (1.0, 1, 0), (1.0, 2, 52)):  # the last one goes on
        for batch in range(first, 100):
            step(progress, epoch, batch)
            now[0] += seconds_per_step
    assert caplog.messages[0] == "Epoch 2/3, steps: 11 of 100 (11%); 0:01:29 to go"
    assert [message.split(" of ")[0] for message in caplog.messages] == [
        *(f"Epoch 2/3, steps: {done}" for done in range(11, 100, 10)),
        *(f"Epoch 3/3, steps: {done}" for done in range(63, 100, 10)),
    ]
    assert caplog.messages[9] == "Epoch 3/3, steps: 63 of 100 (63%); 0:00:37 to go"


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

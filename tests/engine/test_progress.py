from types import SimpleNamespace
from typing import Any

import pytest

from handclip.engine.progress import TrainingProgress


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


def step(progress: TrainingProgress) -> None:
    trainer: Any = SimpleNamespace(current_epoch=0)
    progress.on_train_batch_end(trainer, None, {"terms": {"cross_entropy": Loss()}}, None, 0)  # type: ignore[arg-type]


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

"""The loop with a step that computes nothing: what comes when, what is remembered, and how it goes on."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handclip.loss.criterion import LossOutput
from handclip.training.loop import Hooks, fit
from handclip.training.state import Plan, Row, TrainState, describe_epoch

STEPS = 3
"""Steps an epoch."""


class StopError(Exception):
    """As a signal would end it."""


class Fake:
    """Batches, step, validation and hooks in one; notes what happens."""

    def __init__(self, *values: float, stop_at: str = "") -> None:
        self.values = values or (0.5,) * 99
        """What each validation finds; the epoch chooses."""
        self.stop_at = stop_at
        self.happened: list[str] = []
        self.epoch = 0

    def note(self, what: str) -> None:
        if what == self.stop_at:
            raise StopError
        self.happened.append(what)

    def of_epoch(self, epoch: int, first: int) -> Iterator[Any]:
        self.epoch = epoch
        return iter(range(first, STEPS))

    def images_in(self, number: int) -> int:
        return 4 - (number == STEPS - 1)

    def __call__(self, batch: Any, number: int) -> LossOutput:
        self.note(f"step {number}")
        return LossOutput(torch.tensor(float(number)), {"ce": torch.tensor(float(number))})

    def finish(self) -> None:
        self.note("finish")

    def learning_rates(self) -> Mapping[str, float]:
        return {"new": 0.1}

    def validate(self) -> dict[str, float]:
        self.note(f"validate {self.epoch + 1}")
        return {"val_rank1": 1 - self.values[self.epoch], "val_map": self.values[self.epoch]}

    def fit(self, state: TrainState) -> TrainState:
        hooks = Hooks(
            after_step=[lambda state, output: self.note(f"after step {state.steps_taken}")],
            after_epoch=[lambda state: self.note(f"after epoch {state.epochs}")],
        )
        fit(state, self, self, self.validate, hooks)
        return state


def plan(**changes: Any) -> Plan:
    return Plan(**{"epochs": 3, "steps_per_epoch": STEPS, "validation_images": 5, **changes})


def trained(*values: float, **changes: Any) -> TrainState:
    return Fake(*values).fit(TrainState(plan(**{"epochs": len(values), **changes})))


def without_time(history: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


def test_each_batch_is_a_step_and_each_epoch_is_judged_validated_and_closed() -> None:
    fake = Fake()
    state = fake.fit(TrainState(plan(epochs=2)))
    steps = [what for number in range(2 * STEPS) for what in (f"step {number}", f"after step {number + 1}")]
    assert fake.happened == [
        *steps[: 2 * STEPS], "finish", "validate 1", "after epoch 1",
        *steps[2 * STEPS :], "finish", "validate 2", "after epoch 2",
    ]  # fmt: skip
    assert without_time(state.history) == [
        {
            "epoch": epoch, "loss_total": mean, "loss_ce": mean, "lr_new": 0.1, "val_rank1": 0.5, "val_map": 0.5,
            "validation_images": 5,
        }
        for epoch, mean in ((1, 1.0), (2, 4.0))
    ]  # fmt: skip
    assert state.finished and state.has_ended
    line = describe_epoch({**state.history[1], "images_per_second": 9.5}, 2)
    assert line == (
        "Epoch 2/2: total 4.0000, ce 4.0000; Rank-1 50.00%, mAP 50.00% of 5 validation images; 9.5 images/s"
    )


@pytest.mark.promise("exact-resume")
@given(
    stops=st.lists(
        st.sampled_from([f"{what} {n}" for what in ("step", "after step") for n in range(9)] + ["finish"])
        | st.sampled_from([f"{what} {n}" for what in ("validate", "after epoch") for n in range(1, 4)]),
        max_size=4,
    )
)
def test_what_is_interrupted_anywhere_goes_on_to_the_same_end(stops: list[str]) -> None:
    """A state that was saved at its latest step, wherever training broke off, is gone on from."""
    whole = trained(0.3, 0.9, 0.5)
    kept: dict[str, Any] = TrainState(plan()).to_dict()
    for stop in stops:
        fake, state = Fake(0.3, 0.9, 0.5, stop_at=stop), TrainState(plan())
        state.restore(kept)
        with suppress(StopError):
            fake.fit(state)
        kept = state.to_dict()
    fake, state = Fake(0.3, 0.9, 0.5), TrainState(plan())
    state.restore(kept)
    fake.fit(state)
    assert without_time(state.history) == without_time(whole.history)
    assert (state.best_epoch, state.best_value, state.steps_taken) == (2, 0.9, 9)


@pytest.mark.parametrize(
    ("values", "best"), [((0.5, 0.9, 0.9, 0.3), 3), ((0.9, 0.5), 1), ((0.0, 0.0), 2)], ids=["equals", "first", "zero"]
)
def test_d47_the_best_epoch_is_the_last_of_the_best(values: tuple[float, ...], best: int) -> None:
    state = trained(*values)
    assert (state.best_epoch, state.best_value) == (best, max(values))
    assert state.is_best == (best == len(values))


def test_the_monitored_metric_selects() -> None:
    assert trained(0.9, 0.8).best_epoch == 1
    assert trained(0.9, 0.8, monitor="val_rank1").best_epoch == 2


@pytest.mark.promise("exact-resume")
def test_d64_early_stopping_waits_for_its_patience_and_survives_an_interruption() -> None:
    values = (0.5, 0.4, 0.6, 0.6, 0.5, 0.9, 0.9)
    state = trained(*values, patience=2)
    assert (state.epochs, state.best_epoch, state.has_lost_patience, state.has_ended) == (5, 4, True, True)
    half = trained(*values, patience=2, stop_after=4)
    assert (half.epochs, half.finished, half.has_ended) == (4, True, False)
    other = TrainState(plan(epochs=7, patience=2))
    other.restore(half.to_dict())
    assert without_time(Fake(*values).fit(other).history) == without_time(state.history)


def test_validation_is_due_every_interval_and_at_the_end() -> None:
    assert ["val_map" in row for row in trained(0.1, 0.9, 0.2, validation_interval=2).history] == [False, True, True]


def test_without_validation_images_the_last_epoch_is_the_best() -> None:
    state = trained(0.1, 0.9, 0.2, validation_images=0)
    assert (state.best_epoch, [list(row) for row in state.history[:1]]) == (
        3,
        [["epoch", "loss_total", "loss_ce", "lr_new", "images_per_second", "seconds"]],
    )


@pytest.mark.parametrize(
    ("changes", "fewest", "ends"),
    [
        ({}, 3, True),
        ({"stop_after": 2}, 2, False),
        ({"stop_after": 9}, 3, True),
        ({"epochs": 9, "patience": 1}, 2, True),
        ({"epochs": 9, "patience": 1, "validation_interval": 3}, 6, True),
    ],
)
def test_a_plan_knows_what_is_certain_to_come(changes: dict[str, Any], fewest: int, ends: bool) -> None:
    assert (plan(**changes).fewest_epochs, plan(**changes).ends) == (fewest, ends)

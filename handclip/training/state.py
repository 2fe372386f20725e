"""How far a training has come: its history, its best epoch, its patience, and the sums of the epoch under way."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from handclip.config.experiment import ExperimentConfig
from handclip.loss.criterion import LossOutput

Row = dict[str, float | int | str]
"""What is known of an epoch: a line of `metrics.csv`."""


@dataclass(frozen=True)
class Plan:
    """When a training ends, and what selects its best epoch."""

    epochs: int
    steps_per_epoch: int
    validation_images: int = 0
    """Without any, the last epoch is the best."""
    validation_interval: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    monitor: str = "val_map"
    patience: int | None = None
    """End after so many validations without a better `monitor`."""
    stop_after: int | None = None
    """End after so many epochs although there are more, which another process goes on with."""

    @classmethod
    def of(
        cls, config: ExperimentConfig, steps_per_epoch: int, validation_images: int, stop_after: int | None = None
    ) -> "Plan":
        """Return the plan of an experiment."""
        return cls(
            config.epochs,
            steps_per_epoch,
            validation_images,
            config.validation_interval,
            config.monitor,
            config.early_stopping_patience,
            stop_after,
        )

    @property
    def stops_at(self) -> int:
        """The epoch after which this process stops, if not earlier."""
        return self.epochs if self.stop_after is None else min(self.stop_after, self.epochs)

    @property
    def ends(self) -> bool:
        """Whether the run comes to its end in this process."""
        return self.stops_at == self.epochs

    @property
    def fewest_epochs(self) -> int:
        """After how many epochs this process may be done: early stopping can end a run sooner."""
        if self.patience is None:
            return self.stops_at
        return min(self.stops_at, (self.patience + 1) * self.validation_interval)


@dataclass
class TrainState:
    """Everything that a training remembers beside its weights. Whatever is random follows from the step's number."""

    plan: Plan
    history: list[Row] = field(default_factory=list)
    """A row for each epoch that is done."""
    best_epoch: int = 0
    best_value: float = float("-inf")
    validations_without_gain: int = 0
    training_seconds: float = 0.0
    validation_seconds: float = 0.0
    steps_taken: int = 0
    """Steps of the whole run."""
    images: int = 0
    """Of the epoch under way, as are the following."""
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Of each loss term. They stay on the device: to read one would be to wait for it."""

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    @property
    def steps(self) -> int:
        """Steps of the epoch under way."""
        return self.steps_taken - self.epochs * self.plan.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether training ends here."""
        return self.has_lost_patience or self.epochs >= self.plan.stops_at

    @property
    def has_ended(self) -> bool:
        """Whether the run is complete, rather than to be gone on with."""
        return self.has_lost_patience or self.epochs >= self.plan.epochs

    @property
    def has_lost_patience(self) -> bool:
        """Whether early stopping ends it."""
        return self.plan.patience is not None and self.validations_without_gain >= self.plan.patience

    @property
    def validation_is_due(self) -> bool:
        """Whether the epoch under way is to be validated."""
        epoch, plan = self.epochs + 1, self.plan
        return plan.validation_images > 0 and (epoch % plan.validation_interval == 0 or epoch == plan.epochs)

    @property
    def is_best(self) -> bool:
        """Whether the epoch that was closed last is the best so far."""
        return self.best_epoch == self.epochs

    def add(self, output: LossOutput, images: int, *, since: float) -> float:
        """Add up a step on so many images that has begun `since`, as `time.perf_counter` counts; return the time."""
        for name, value in {"total": output.total, **output.terms}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.images += images
        self.steps_taken += 1
        return self.add_seconds(since=since)

    def add_seconds(self, *, since: float) -> float:
        """Add what has passed to the epoch's time; return the time."""
        now = time.perf_counter()
        self.seconds += now - since
        return now

    def close_epoch(
        self, validation: Mapping[str, float], learning_rates: Mapping[str, float], validation_seconds: float
    ) -> None:
        """Add the epoch's row, and judge whether it is the best; of equal ones the later is: it has learned longer.

        Args:
            validation: `val_...` metrics; nothing where it was not validated.
            learning_rates: by group, of its last step.
            validation_seconds: what validation has taken.
        """
        plan, epoch = self.plan, self.epochs + 1
        if validation:
            value = validation[plan.monitor]
            self.validations_without_gain = 0 if value > self.best_value else self.validations_without_gain + 1
            if value >= self.best_value:
                self.best_epoch, self.best_value = epoch, value
        elif not plan.validation_images and epoch == plan.epochs:
            self.best_epoch = epoch
        self.training_seconds += self.seconds
        self.validation_seconds += validation_seconds
        self.history.append(
            {
                "epoch": epoch,
                **{f"loss_{name}": float(total) / self.steps for name, total in self.sums.items()},
                **{f"lr_{name}": rate for name, rate in learning_rates.items()},
                **validation,
                **({"validation_images": plan.validation_images} if validation else {}),
                "images_per_second": round(self.images / self.seconds, 1),
                "seconds": round(self.seconds, 2),
            }
        )
        self.images, self.seconds, self.sums = 0, 0.0, {}

    def to_dict(self) -> dict[str, Any]:
        """Return what `restore` takes, as plain values and tensors on the CPU."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "plan"}
        return {**kept, "history": list(self.history), "sums": {name: total.cpu() for name, total in self.sums.items()}}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` has returned."""
        for name in self.to_dict():
            setattr(self, name, kept[name])


def validation_of(row: Row) -> dict[str, float]:
    """Return the metrics that an epoch was validated with; none if it was not."""
    return {name: float(value) for name, value in row.items() if name.startswith("val_")}


def describe_epoch(row: Row, epochs: int) -> str:
    """Return one line on an epoch of so many."""
    losses = ", ".join(
        f"{name.removeprefix('loss_')} {value:.4f}" for name, value in row.items() if name.startswith("loss_")
    )
    validation = ""
    if found := validation_of(row):
        of = f"of {row['validation_images']:,} validation images"
        validation = f"; Rank-1 {found['val_rank1']:.2%}, mAP {found['val_map']:.2%} {of}"
    return f"Epoch {row['epoch']}/{epochs}: {losses}{validation}; {row['images_per_second']} images/s"

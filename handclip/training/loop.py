"""The training loop: for each epoch, for each batch, a step; then validate, and close the epoch.

It writes no file and knows no signal. What is to be kept, shown or stopped comes from outside, as hooks:
`handclip.runs.train` says which, and in which order.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from handclip.datasets.torch_dataset import Batch
from handclip.loss.criterion import LossOutput
from handclip.training.state import TrainState


class Batches(Protocol):
    """The batches of an epoch, the same for the same number of an epoch."""

    def of_epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield those of an epoch, counted from 0, but the `first` ones, which are done."""

    def images_in(self, number: int) -> int:
        """Return how many images a batch of any epoch has, counted from 0."""


class TrainingStep(Protocol):
    """What is done with a batch: forward, losses, backward, and the optimizer's step."""

    def __call__(self, batch: Batch, number: int) -> LossOutput:
        """Do the step of this number, counted from 0 over the whole run."""

    def finish(self) -> None:
        """Judge the last step and the weights, before anything is recorded or saved; raise if they are not finite."""

    def learning_rates(self) -> Mapping[str, float]:
        """Return those of the last step, by group."""


@dataclass(frozen=True)
class Hooks:
    """What happens after each step, and after each epoch, in this order."""

    after_step: Sequence[Callable[[TrainState, LossOutput], None]] = ()
    after_epoch: Sequence[Callable[[TrainState], None]] = ()


def fit(
    state: TrainState,
    batches: Batches,
    step: TrainingStep,
    validate: Callable[[], Mapping[str, float]],
    hooks: Hooks = Hooks(),
) -> None:
    """Train until the state says that it is enough; an interrupted run goes on with the very next step.

    Args:
        state: how far training has come; it is changed in place.
        batches: of the training images.
        step: what is done with a batch.
        validate: returns `val_...` metrics of the model as it is.
        hooks: what else happens; what one raises ends training here.
    """
    while not state.finished:
        clock = time.perf_counter()
        for batch in batches.of_epoch(state.epochs, first=state.steps):
            output = step(batch, state.steps_taken)
            clock = state.add(output, batches.images_in(state.steps), since=clock)
            for after_step in hooks.after_step:
                after_step(state, output)
        step.finish()
        clock = state.add_seconds(since=clock)

        metrics = validate() if state.validation_is_due else {}
        state.close_epoch(metrics, step.learning_rates(), time.perf_counter() - clock)
        for after_epoch in hooks.after_epoch:
            after_epoch(state)

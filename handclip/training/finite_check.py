"""Refusing losses, gradients and weights that are not finite, without making a GPU wait."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from handclip.errors import TrainingError
from handclip.loss.loss_factory import LossOutput


@dataclass(frozen=True)
class _Step:
    epoch: int
    number: int
    total: Tensor
    terms: dict[str, Tensor]
    finite: Tensor
    """Whether loss and gradient are, in the memory of the host once `copied` has happened."""
    copied: torch.cuda.Event | None

    def check(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        if self.finite:
            return
        bad = [f"{name} is {value.item():g}" for name, value in self.terms.items() if not torch.isfinite(value)]
        overflow = "the gradient" if torch.isfinite(self.total) else "the weighted sum"
        raise TrainingError(
            f"the loss stopped being finite in epoch {self.epoch + 1}, step {self.number + 1}: "
            f"{', '.join(bad) or f'{overflow} overflows'}. Lower lr or the loss's weight, or train with "
            "precision: float32."
        )


class FiniteCheck:
    """Refuses a step that would spoil the weights: a loss may be finite and its gradient not.

    To read a number from a GPU is to wait for everything that it has been told to do. There a step is therefore judged
    one step late, when the next has been queued behind it; by then it has spoilt the weights, so that `finish` must
    judge the last one before anything is saved.
    """

    def __init__(self, *, one_step_late: bool) -> None:
        self._one_step_late = one_step_late
        self._waiting: _Step | None = None

    def add(self, epoch: int, step: int, output: LossOutput, gradient_norm: Tensor) -> None:
        """Judge a step, or the one before; `epoch` and `step` count from 0.

        Raises:
            TrainingError: says in which step which term is not finite.
        """
        finite = torch.isfinite(output.total.detach()) & torch.isfinite(gradient_norm)
        on_host = finite.to("cpu", non_blocking=True)
        copied = None
        if finite.is_cuda:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        terms = {name: value.detach() for name, value in output.terms.items()}
        self.finish()
        self._waiting = _Step(epoch, step, output.total.detach(), terms, on_host, copied)
        if not self._one_step_late:
            self.finish()

    def finish(self) -> None:
        """Judge the step that still waits.

        Raises:
            TrainingError: see `add`.
        """
        step, self._waiting = self._waiting, None
        if step is not None:
            step.check()


def require_finite(state: Mapping[str, Tensor], steps: int) -> None:
    """Check weights and buffers, which a finite loss with a finite gradient may still spoil (running statistics, say).

    Args:
        state: a module's state dict.
        steps: how many were taken, for the error.

    Raises:
        TrainingError: names the first tensor that holds NaN or infinity.
    """
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    # One number, so that a GPU is waited for once.
    if not floats or torch.stack([torch.isfinite(value).all() for value in floats.values()]).all():
        return
    name = next(name for name, value in floats.items() if not torch.isfinite(value).all())
    raise TrainingError(
        f"{name} holds NaN or infinity after step {steps}, so nothing of it is saved. Lower lr, or train with "
        "precision: float32."
    )

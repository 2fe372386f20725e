"""One training step: forward, losses, backward, clipping, and the optimizer's step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.sampling import PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.datasets.torch_dataset import Batch, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.errors import TrainingError
from handclip.loss.criterion import LossOutput, TrainingCriterion
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.hardware import Computation
from handclip.parallel.processes import current, gather_rows, share_gradients
from handclip.training.compilation import compiled_forward
from handclip.training.optimization import build_optimizer, lr_factors

_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

_MOST_STEPS = 10**9
"""More steps than any run takes, so that no two seeds share a step's random numbers."""


class Objective(nn.Module):
    """What training minimises: the losses of the embeddings of a batch."""

    def __init__(self, config: ExperimentConfig, model: EmbeddingModel, criterion: TrainingCriterion) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self._seed = config.seed * _MOST_STEPS
        self._encode = compiled_forward(model.encoder) if config.compile else model.encoder.__call__

    def forward(self, images: Tensor, labels: Tensor, number: int, lengths: Sequence[int] | None = None) -> LossOutput:
        """Return the losses of a batch.

        Args:
            images: (B, 3, height, width), normalised.
            labels: (B,) class indices.
            number: of the step, from 0. Whatever is random in it depends on this and the seed alone, so that going on
                after an interruption is exact.
            lengths: where processes share the batch, how many images each has.
        """
        torch.manual_seed(self._seed + number)
        encoded = self._encode(images)
        if lengths is not None:
            encoded, labels = _gather(encoded, lengths), gather_rows(labels, lengths)
            # The necks, too, are to do the same in every process, whatever the encoder has drawn for its own images.
            torch.manual_seed(self._seed + number)
        output: LossOutput = self.criterion(embeddings=self.model.add_necks(encoded), labels=labels)
        return output


class Step:
    """Does the steps of a run, on its device and in its precision.

    Args:
        config: how to train.
        objective: what is minimised; it is moved to the device.
        transform: makes images of a batch's pixels.
        computation: device, precision and memory format.
        sampler: says how many steps an epoch has, by which the learning rate counts, and how many images a batch.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        objective: Objective,
        transform: ImageTransform,
        computation: Computation,
        sampler: PKBatchSampler | RandomBatchSampler,
    ) -> None:
        self.config = config
        self.objective = objective.to(computation.device)
        self.memory_format = _MEMORY_FORMATS[computation.memory_format]
        objective.model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.transform = transform
        self.computation = computation
        self.sampler = sampler
        self._steps_per_epoch = len(sampler)
        self._lr_factors = lr_factors(config, len(sampler))
        self.optimizer = build_optimizer(config, objective.model, objective.criterion)
        self._processes = current().size
        self._losses = share_gradients(objective, computation.device) if self._processes > 1 else objective
        self._check = FiniteCheck(one_step_late=computation.device.type == "cuda")
        self._taken = 0

    def __call__(self, batch: Batch, number: int) -> LossOutput:
        """Do a step.

        Args:
            batch: as an `ImageLoader` yields it; this process's part of the whole.
            number: of the step, from 0 over the whole run.

        Returns:
            Its losses, detached.

        Raises:
            TrainingError: see `FiniteCheck`.
        """
        device = self.computation.device
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._lr_factors[number]
        lengths = None
        if self._processes > 1:
            lengths = part_lengths(self.sampler.batch_length(number % self._steps_per_epoch), self._processes)
        # Without the cache, gradients of a weight that is used several times (MBA-Net's) are added up in float32.
        bfloat16 = self.computation.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            pixels = to_images(batch, self.transform, device).contiguous(memory_format=self.memory_format)
            output = self._losses(pixels, batch.labels.to(device), number, lengths)
            self.optimizer.zero_grad(set_to_none=True)
            output.total.backward()
            parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            gradient_norm = clip_grad_norm_(parameters, self.config.gradient_clip or math.inf)
            self._check.add(number // self._steps_per_epoch, number, output, gradient_norm)
            self.optimizer.step()
        self._taken = number + 1
        return LossOutput(output.total.detach(), {name: term.detach() for name, term in output.terms.items()})

    def finish(self) -> None:
        """Judge the last step and the weights, before anything is recorded or saved.

        Raises:
            TrainingError: says in which step which loss, or which weight, is not finite.
        """
        self._check.finish()
        require_finite(self.objective.state_dict(), self._taken)

    def learning_rates(self) -> Mapping[str, float]:
        """Return the learning rate of each group of the optimizer; those that do not decay learn at the same."""
        groups = self.optimizer.param_groups
        return {group["name"]: group["lr"] for group in groups if "(" not in group["name"]}


def _gather(encoded: dict[str, Tensor], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return the embeddings of the whole batch; all of an image's travel together."""
    rows = gather_rows(torch.cat(list(encoded.values()), dim=1), lengths)
    parts = torch.split(rows, [part.shape[1] for part in encoded.values()], dim=1)
    return dict(zip(encoded, parts, strict=True))


@dataclass(frozen=True)
class _Taken:
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
        self._waiting: _Taken | None = None

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
        self._waiting = _Taken(epoch, step, output.total.detach(), terms, on_host, copied)
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

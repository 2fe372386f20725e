"""One training step: forward, losses, backward, clipping, and the optimizer's step."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.sampling import PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.datasets.torch_dataset import Batch, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.loss.loss_factory import LossOutput
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.hardware import Computation
from handclip.parallel.processes import current, gather_rows, share_gradients
from handclip.training.compilation import training_forward
from handclip.training.criterion import TrainingCriterion
from handclip.training.finite_check import FiniteCheck, require_finite
from handclip.training.optimization import build_optimizer, lr_factor

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
        self._encode = training_forward(model.encoder, compiled=config.compile)

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
        self.optimizer = build_optimizer(config, objective.model, objective.criterion)
        self._losses = share_gradients(objective, computation.device)
        self._processes = current().size
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
        device, steps_per_epoch = self.computation.device, len(self.sampler)
        factor = lr_factor(self.config, steps_per_epoch, number)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        lengths = None
        if self._processes > 1:
            lengths = part_lengths(self.sampler.batch_length(number % steps_per_epoch), self._processes)
        # Without the cache, gradients of a weight that is used several times (MBA-Net's) are added up in float32.
        bfloat16 = self.computation.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            pixels = to_images(batch, self.transform, device).contiguous(memory_format=self.memory_format)
            output = self._losses(pixels, batch.labels.to(device), number, lengths)
            self.optimizer.zero_grad(set_to_none=True)
            output.total.backward()
            parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            gradient_norm = clip_grad_norm_(parameters, self.config.gradient_clip or math.inf)
            self._check.add(number // steps_per_epoch, number, output, gradient_norm)
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
        """Return the learning rate of each group of the optimizer; those that do not decay have it of the others."""
        groups = self.optimizer.param_groups
        return {group["name"]: group["lr"] for group in groups if "(" not in group["name"]}


def _gather(encoded: dict[str, Tensor], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return the embeddings of the whole batch; all of an image's travel together."""
    rows = gather_rows(torch.cat(list(encoded.values()), dim=1), lengths)
    parts = torch.split(rows, [part.shape[1] for part in encoded.values()], dim=1)
    return dict(zip(encoded, parts, strict=True))

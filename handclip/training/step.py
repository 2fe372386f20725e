"""One training step on images that are ready."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from handclip.config.experiment import ExperimentConfig
from handclip.loss.loss_factory import LossOutput
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.processes import gather_rows
from handclip.training.compilation import training_forward
from handclip.training.criterion import TrainingCriterion
from handclip.training.finite_check import FiniteCheck
from handclip.training.optimization import lr_factor

_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

_MOST_STEPS = 10**9
"""More steps than any run takes, so that no two seeds share a step's random numbers."""


class Step:
    """Forward, losses, backward, clipping and the optimizer's step, in whatever precision the caller has set.

    Args:
        config: how to train.
        model: moved to the memory format here, and to the device by the caller.
        criterion: the losses.
        steps_per_epoch: what the learning rate counts epochs by.
        memory_format: `contiguous` or `channels_last`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: EmbeddingModel,
        criterion: TrainingCriterion,
        steps_per_epoch: int,
        memory_format: str,
    ) -> None:
        self.config = config
        self.memory_format = _MEMORY_FORMATS[memory_format]
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.criterion = criterion
        self.steps_per_epoch = steps_per_epoch
        self.finite_check = FiniteCheck(one_step_late=False)
        self._encode = training_forward(model.encoder, compiled=config.compile)

    def loss(self, images: Tensor, labels: Tensor, number: int, lengths: Sequence[int] | None = None) -> LossOutput:
        """Return the loss of a batch.

        Args:
            images: (B, 3, height, width), normalised.
            labels: (B,) class indices.
            number: of the step, from 0. Whatever is random in it depends on this and the seed alone, so that going on
                after an interruption is exact.
            lengths: where processes share the batch, how many images each has.
        """
        seed = self.config.seed * _MOST_STEPS + number
        torch.manual_seed(seed)
        encoded = self._encode(images.contiguous(memory_format=self.memory_format))
        if lengths is not None:
            encoded, labels = _gather(encoded, lengths), gather_rows(labels, lengths)
            # The necks, too, are to do the same in every process, whatever the encoder has drawn for its own images.
            torch.manual_seed(seed)
        output: LossOutput = self.criterion(embeddings=self.model.add_necks(encoded), labels=labels)
        return output

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        number: int,
        optimizer: torch.optim.Optimizer,
        *,
        backward: Callable[[Tensor], None],
        lengths: Sequence[int] | None = None,
    ) -> LossOutput:
        """Do a step; return its loss.

        Args:
            images, labels, number, lengths: see `loss`.
            optimizer: as `build_optimizer` makes it.
            backward: computes the gradients of the total.

        Raises:
            TrainingError: see `FiniteCheck`.
        """
        factor = lr_factor(self.config, self.steps_per_epoch, number)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        output = self.loss(images, labels, number, lengths)
        optimizer.zero_grad(set_to_none=True)
        backward(output.total)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradient_norm = clip_grad_norm_(parameters, self.config.gradient_clip or math.inf)
        self.finite_check.add(number // self.steps_per_epoch, number, output, gradient_norm)
        optimizer.step()
        return output


def _gather(encoded: dict[str, Tensor], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return the embeddings of the whole batch; all of an image's travel together."""
    rows = gather_rows(torch.cat(list(encoded.values()), dim=1), lengths)
    parts = torch.split(rows, [part.shape[1] for part in encoded.values()], dim=1)
    return dict(zip(encoded, parts, strict=True))

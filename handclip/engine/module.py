"""One training step, as Lightning runs it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.sampling import PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.datasets.torch_dataset import Batch, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.engine.compilation import training_forward
from handclip.engine.criterion import TrainingCriterion
from handclip.engine.distributed import current, gather_rows
from handclip.engine.finite_check import FiniteCheck
from handclip.engine.optimization import build_optimizers, lr_factor
from handclip.loss.loss_factory import LossOutput
from handclip.models.embedding_model import EmbeddingModel

_MEMORY_FORMATS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}
"""PyTorch's names of the memory formats."""

_MOST_STEPS = 10**9
"""More steps than any run takes, so that no two seeds share a step's random numbers."""


class TrainingModule(LightningModule):
    """Model, criterion and optimizers.

    Optimization is manual because the centres of a center loss have an optimizer of their own.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: EmbeddingModel,
        criterion: TrainingCriterion,
        sampler: PKBatchSampler | RandomBatchSampler,
        transform: ImageTransform,
        memory_format: str = "contiguous",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.memory_format = getattr(torch, _MEMORY_FORMATS[memory_format])
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self._encode = training_forward(self.model.encoder, compiled=config.compile)
        self._finite_check = FiniteCheck(one_step_late=False)
        self.criterion = criterion
        self.sampler = sampler
        self.transform = transform
        self.steps_taken = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizers; the learning rate is set before each step from `lr_factor`."""
        main, centres = build_optimizers(self.config, self.model, self.criterion)
        for group in main.param_groups:
            group["initial_lr"] = group["lr"]
        return [main, centres] if centres else [main]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Choose the batches of the epoch to go on with: workers fetch the first ones before the epoch starts."""
        self.sampler.set_epoch(checkpoint["epoch"] + 1)

    def on_train_start(self) -> None:
        """Know the device, and so when a step can be judged."""
        self._finite_check = FiniteCheck(one_step_late=self.device.type == "cuda")

    def on_train_epoch_start(self) -> None:
        """Choose the batches of the epoch."""
        self.sampler.set_epoch(self.current_epoch)
        self.steps_taken = self.current_epoch * len(self.sampler)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Do one step; return the loss terms as detached scalars."""
        # Whatever is random in a step depends on its number alone, so that going on after an interruption is exact.
        seed = self.config.seed * _MOST_STEPS + self.steps_taken
        torch.manual_seed(seed)
        images, labels = to_images(batch, self.transform, self.device), batch.labels
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        factor = lr_factor(self.config, len(self.sampler), self.steps_taken)
        for group in optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor

        encoded = self._encode(images.contiguous(memory_format=self.memory_format))
        if current().size > 1:
            lengths = part_lengths(self.sampler.batch_length(batch_index), current().size)
            encoded, labels = _gather(encoded, lengths), gather_rows(labels, lengths)
            # The necks, too, are to do the same in every process, whatever the encoder has drawn for its own images.
            torch.manual_seed(seed)
        output: LossOutput = self.criterion(embeddings=self.model.add_necks(encoded), labels=labels)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.manual_backward(output.total)
        self.criterion.unweight_center_gradients()
        main = [p for group in optimizers[0].param_groups for p in group["params"] if p.grad is not None]
        gradient_norm = clip_grad_norm_(main, self.config.gradient_clip or math.inf)
        self._finite_check.add(self.current_epoch, self.steps_taken, output, gradient_norm)
        for optimizer in optimizers:
            optimizer.step()
        self.steps_taken += 1
        return {"loss": output.total.detach(), "terms": {name: t.detach() for name, t in output.terms.items()}}

    def on_train_epoch_end(self) -> None:
        """Judge the last step, before the epoch is recorded and saved."""
        self._finite_check.finish()


def _gather(encoded: dict[str, Tensor], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return the embeddings of the whole batch; all of an image's travel together."""
    rows = gather_rows(torch.cat(list(encoded.values()), dim=1), lengths)
    parts = torch.split(rows, [part.shape[1] for part in encoded.values()], dim=1)
    return dict(zip(encoded, parts, strict=True))

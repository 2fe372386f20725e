"""One training step, as Lightning runs it."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.sampling import PKBatchSampler, RandomBatchSampler
from handclip.engine.criterion import TrainingCriterion
from handclip.engine.optimization import build_optimizers, lr_factor
from handclip.errors import TrainingError
from handclip.loss.loss_factory import LossOutput
from handclip.models.embedding_model import EmbeddingModel

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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.model = model
        self.criterion = criterion
        self.sampler = sampler
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

    def on_train_epoch_start(self) -> None:
        """Choose the batches of the epoch."""
        self.sampler.set_epoch(self.current_epoch)
        self.steps_taken = self.current_epoch * len(self.sampler)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> dict[str, Any]:
        """Do one step; return the loss terms as detached scalars."""
        # Whatever is random in a step depends on its number alone, so that going on after an interruption is exact.
        torch.manual_seed(self.config.seed * _MOST_STEPS + self.steps_taken)
        images, labels = batch
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        factor = lr_factor(self.config, len(self.sampler), self.steps_taken)
        for group in optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor

        output: LossOutput = self.criterion(embeddings=self.model(images), labels=labels)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.manual_backward(output.total)
        self.criterion.unweight_center_gradients()
        main = [p for group in optimizers[0].param_groups for p in group["params"] if p.grad is not None]
        gradient_norm = clip_grad_norm_(main, self.config.gradient_clip or math.inf)
        self._check_finite(output, gradient_norm)
        for optimizer in optimizers:
            optimizer.step()
        self.steps_taken += 1
        return {"loss": output.total.detach(), "terms": {name: t.detach() for name, t in output.terms.items()}}

    def _check_finite(self, output: LossOutput, gradient_norm: Tensor) -> None:
        """Refuse a step that would spoil the weights: a loss may be finite and its gradient not."""
        if torch.isfinite(output.total) and torch.isfinite(gradient_norm):
            return
        bad = [f"{name} is {value.item():g}" for name, value in output.terms.items() if not torch.isfinite(value)]
        overflow = "the gradient" if torch.isfinite(output.total) else "the weighted sum"
        raise TrainingError(
            f"the loss stopped being finite in epoch {self.current_epoch + 1}, step {self.steps_taken + 1}: "
            f"{', '.join(bad) or f'{overflow} overflows'}. Lower lr or the loss's weight, or train with "
            "precision: float32."
        )

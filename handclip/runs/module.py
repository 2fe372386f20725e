"""One training step, as Lightning runs it."""

from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.sampling import PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.datasets.torch_dataset import Batch, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.processes import current
from handclip.training.criterion import TrainingCriterion
from handclip.training.finite_check import FiniteCheck, require_finite
from handclip.training.optimization import build_optimizer
from handclip.training.step import Step


class TrainingModule(LightningModule):
    """Model, criterion and optimizer; `Step` does what Lightning would do by itself."""

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
        self.model = model
        self.step = Step(config, model, criterion, len(sampler), memory_format)
        self.criterion = criterion
        self.sampler = sampler
        self.transform = transform
        self.steps_taken = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer; each step sets the learning rate."""
        return build_optimizer(self.config, self.model, self.criterion)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many steps were taken, of which learning rates, batches and random numbers follow."""
        checkpoint["steps_taken"] = self.steps_taken

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Choose the batches to go on with: workers fetch the first ones before the epoch starts."""
        per_epoch = len(self.sampler)
        # Snapshots of earlier versions were of whole epochs.
        self.steps_taken = checkpoint.get("steps_taken", (checkpoint["epoch"] + 1) * per_epoch)
        epoch, first_batch = divmod(self.steps_taken, per_epoch)
        self.sampler.set_epoch(epoch, first_batch)

    def on_train_start(self) -> None:
        """Know the device, and so when a step can be judged."""
        self.step.finite_check = FiniteCheck(one_step_late=self.device.type == "cuda")

    def on_train_epoch_start(self) -> None:
        """Choose the batches of the epoch; Lightning does not call it where training goes on within one."""
        self.sampler.set_epoch(self.current_epoch)
        self.steps_taken = self.current_epoch * len(self.sampler)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Do one step; return the loss terms as detached scalars."""
        images, labels = to_images(batch, self.transform, self.device), batch.labels
        size = current().size
        output = self.step(
            images,
            labels,
            self.steps_taken,
            cast(Optimizer, self.optimizers()),  # Lightning's wrapper does what an optimizer does, but is none
            backward=self.manual_backward,
            lengths=part_lengths(self.sampler.batch_length(batch_index), size) if size > 1 else None,
        )
        self.steps_taken += 1
        return {"loss": output.total.detach(), "terms": {name: t.detach() for name, t in output.terms.items()}}

    def require_finite(self) -> None:
        """Judge the last step and the weights, before anything is recorded or saved.

        Raises:
            TrainingError: says in which step which loss, or which weight, is not finite.
        """
        self.step.finite_check.finish()
        require_finite(self.state_dict(), self.steps_taken)

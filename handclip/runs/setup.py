"""What a training is made of: model and losses, images and their batches, and how this machine computes."""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.duplicates import describe_validated
from handclip.datasets.manifest import Manifest
from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.safe_paths import unicode_form
from handclip.datasets.sampling import BatchShare, PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.datasets.torch_dataset import Batch, ImageDataset, ImageLoader
from handclip.datasets.transforms import ImageTransform
from handclip.loss.criterion import TrainingCriterion
from handclip.loss.loss_factory import build_criterion
from handclip.models.builder import build_model, load_earlier_stage
from handclip.models.checkpoint import Checkpoint, describe_model
from handclip.parallel.batch_norm import synchronize_batch_norm
from handclip.parallel.hardware import Computation, choose_precision, own_device
from handclip.parallel.processes import current, first_before_others, is_first_process
from handclip.runs.data import (
    TrainingData,
    check_not_learned_by_heart,
    check_not_tested_on,
    check_not_validated_on,
    combined_sha256,
    find_manifests,
    load_training_data,
)
from handclip.runs.provenance import run_facts, weights_sha256
from handclip.runs.run_folder import RunFolder
from handclip.training.step import Objective, Step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What a run trains, on what, and how: all that is needed before its folder is opened."""

    config: ExperimentConfig
    files: RunFolder
    manifests: dict[str, Manifest]
    data: TrainingData
    earlier: Checkpoint | None
    """The stage that it goes on from."""
    objective: Objective
    sampler: PKBatchSampler | RandomBatchSampler
    computation: Computation

    @classmethod
    def of(cls, config: ExperimentConfig) -> "Training":
        """Build the model, then read the data: what is wrong with the config shows before images are read.

        Raises:
            HandCLIPError: the config, the data or the weights do not allow it.
        """
        device = own_device(config.device)
        precision = choose_precision(config.precision, device)
        earlier = load_earlier_stage(config)
        _seed_everything(config.seed)
        model = build_model(config, earlier)
        if config.gradient_checkpointing:
            model.encoder.checkpoint_gradients()
        computation = Computation.of(config, model, device, precision)
        manifests = first_before_others(lambda: find_manifests(config))
        check_not_learned_by_heart(manifests)
        data = load_training_data(manifests, config.train_split)
        if earlier is not None:
            source = f"resume_from: {config.resume_from}"
            check_not_tested_on(earlier.training_images, manifests, source)
            check_not_validated_on(earlier.training_images, data, source)
        sampler = build_sampler(config, data)
        criterion = build_criterion(config.losses, len(data.identities), model.encoder.embedding_dims)
        objective = Objective(config, model, criterion)
        return cls(config, RunFolder.of(config), manifests, data, earlier, objective, sampler, computation)

    @property
    def manifest_sha256(self) -> str:
        """The hash of the manifests, all aspects together."""
        return combined_sha256(self.manifests)

    @property
    def made_with(self) -> dict[str, str]:
        """What must be the same where the run goes on."""
        return {"manifest_sha256": self.manifest_sha256, "precision": self.computation.precision}

    def facts(self) -> dict[str, Any]:
        """Return what the run is made from, for its provenance."""
        starts_from = weights_sha256(self.objective.model.state_dict()) if is_first_process() else ""
        return run_facts(
            self.files.run, "training", self.config.to_dict(), self.manifests, self.config.seed, starts_from
        )

    def checkpoint(self, epoch: int, metrics: dict[str, float]) -> Checkpoint:
        """Return the model as it is, which is that of an epoch with these metrics."""
        model, criterion = self.objective.model, self.objective.criterion
        learned = self.earlier.training_images if self.earlier is not None else []
        return Checkpoint(
            run=self.files.run,
            epoch=epoch,
            config=self.config.to_dict(),
            **describe_model(model),
            identities=self.data.identities,
            training_images=sorted({image.sha256 for image in self.data.train}.union(learned)),
            manifest_sha256=self.manifest_sha256,
            metrics=metrics,
            model_state=_on_cpu(model.state_dict()),
            criterion_state=_on_cpu(criterion.state_dict()),
        )

    def batches_and_step(self, cache: PixelCache | None) -> tuple["EpochBatches", Step]:
        """Return what the loop needs; the model moves to the device."""
        config, model, processes = self.config, self.objective.model, current()
        transform = ImageTransform(
            model.encoder.preprocessing, config.augmentation, reduced_decoding=config.reduced_decoding
        )
        loader = ImageLoader(
            ImageDataset(self.data.train, transform, cache),
            BatchShare(self.sampler, processes.rank, processes.size),
            self.computation.device,
            largest=max(part_lengths(self.sampler.batch_length(0), processes.size)),
            num_workers=self.computation.num_workers,
            training=True,
        )
        if processes.size > 1:
            synchronize_batch_norm(model.encoder)
        step = Step(config, self.objective, transform, self.computation, self.sampler)
        return EpochBatches(loader, self.sampler), step

    def log(self, computation: Computation, cache: PixelCache | None) -> None:
        """Log what is about to be trained, and how."""
        config, data, sampler = self.config, self.data, self.sampler
        losses = " + ".join(f"{loss.weight:g} x {loss.type}" for loss in config.losses)
        logger.info(f"Run {self.files.run}")
        if config.resume_from is not None:
            logger.info(f"Goes on from {config.resume_from}")
        logger.info(f"Training on {computation}")
        logger.info(f"Losses: {losses}")
        logger.info(
            f"{len(data.train):,} images of {len(data.identities)} identities, {len(sampler)} batches an epoch, "
            f"{len(data.val_queries)} validation images"
        )
        if (processes := current()).size > 1:
            machines = f" on {processes.nodes} machines" if processes.nodes > 1 else ""
            logger.info(f"{processes.size} processes{machines} share each batch of {config.batch_size} images")
        if data.left_out_identities:
            logger.info(f"Left out: {data.left_out_identities} identities whose only image is their validation image.")
        if copies := data.val_copies:
            logger.warning(f"{describe_validated(copies, len(data.val_queries))}.")
        if isinstance(sampler, PKBatchSampler) and sampler.small_identities:
            logger.info(
                f"{sampler.small_identities} identities have fewer than {config.images_per_identity} images, "
                "which repeat within a batch."
            )
        for aspect, manifest in self.manifests.items():
            logger.info(f"Manifest of {aspect}: {manifest.file}, of {manifest.root}, sha256 {manifest.sha256}")
        logger.info(f"Pixel cache: {cache or 'none'}")


class EpochBatches:
    """The training batches of each epoch, from any of them on."""

    def __init__(self, loader: ImageLoader, sampler: PKBatchSampler | RandomBatchSampler) -> None:
        self.loader = loader
        self.images_in: Callable[[int], int] = sampler.batch_length
        self._sampler = sampler

    def close(self) -> None:
        """End the processes that read."""
        self.loader.close()

    def of_epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, but the first ones, which are done."""
        self._sampler.set_epoch(epoch, first)
        return iter(self.loader) if first < len(self._sampler) else iter(())


def build_sampler(config: ExperimentConfig, data: TrainingData) -> PKBatchSampler | RandomBatchSampler:
    """Return what makes up the batches: P x K where a loss needs positives, single images at random otherwise."""
    labels = [image.label for image in data.train]
    if config.uses_pk_sampling:
        identities = config.batch_size // config.images_per_identity
        return PKBatchSampler(labels, identities, config.images_per_identity, config.seed)
    return RandomBatchSampler(labels, config.batch_size, config.seed)


def continue_criterion(criterion: TrainingCriterion, data: TrainingData, checkpoint: Checkpoint) -> None:
    """Take over the earlier stage's loss terms (its classifier, say) where both have them for the same identities."""
    if [*map(unicode_form, checkpoint.identities)] != [*map(unicode_form, data.identities)]:
        logger.info("The earlier stage knew other identities: every loss starts afresh.")
        return
    own = criterion.state_dict()
    common = {
        key: value for key, value in checkpoint.criterion_state.items() if key in own and own[key].shape == value.shape
    }
    criterion.load_state_dict({**own, **common})
    logger.info(
        f"Taken over from the earlier stage: the encoder and {len(common)} of {len(own)} tensors of the losses."
    )


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}

"""Training one experiment from its config to its checkpoints."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.pixel_cache import open_pixel_cache
from handclip.datasets.sampling import BatchShare, PKBatchSampler, RandomBatchSampler
from handclip.datasets.torch_dataset import BatchCollator, ImageDataset, plain_worker_errors, step_back
from handclip.datasets.transforms import ImageTransform
from handclip.engine.compilation import naming_compile
from handclip.engine.criterion import TrainingCriterion
from handclip.engine.data import (
    TrainingData,
    check_not_tested_on,
    combined_sha256,
    find_manifests,
    load_training_data,
)
from handclip.engine.distributed import current, first_before_others, is_first_process, on_first, own_device
from handclip.engine.hardware import (
    Computation,
    choose_precision,
    computing_in,
    describe_device,
    describe_environment,
    reset_peak_memory,
)
from handclip.engine.keeper import Row, RunKeeper
from handclip.engine.launching import is_first_launched, on_devices
from handclip.engine.lightning_environment import JoinedProcesses
from handclip.engine.module import TrainingModule
from handclip.engine.normalization import synchronize_batch_norm
from handclip.engine.progress import TrainingProgress
from handclip.engine.run_folder import RunFolder
from handclip.errors import CheckpointError, ConfigError, DataError, TrainingError
from handclip.files import read_json, require_writable, write_json
from handclip.models.builder import build_model, load_earlier_stage
from handclip.models.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a finished (or deliberately stopped) run reports; memory is None where the system does not tell."""

    run: str
    checkpoint: Path
    last_checkpoint: Path
    folder: Path
    best_epoch: int
    epochs: int
    seconds: float
    images_per_second: float
    finished: bool
    peak_memory_mib: int | None
    peak_gpu_memory_mib: int | None
    device: str
    processor: str
    cores: int
    precision: str
    manifest_sha256: str


def train(config: ExperimentConfig, *, resume: bool = False, stop_after: int | None = None) -> TrainingResult:
    """Train the model that a config describes and keep its best and its last checkpoint.

    Args:
        config: an experiment with `variant: finetuned`.
        resume: go on with an interrupted run; a run that has ended is reported as it is.
        stop_after: stop after this many epochs although the config has more; `resume` goes on from there.

    Raises:
        HandCLIPError: the config, the data, the weights or the run folder do not allow it, or the loss diverges.
    """
    if config.variant != "finetuned":
        raise ConfigError("variant: baseline trains nothing; use `handclip evaluate`")
    files = RunFolder.of(config)
    if resume and files.result.is_file():
        files.open(config, resume=True)
        result = _read_result(files)
        now = combined_sha256(find_manifests(config))
        if result.manifest_sha256 != now:
            raise DataError(
                f"{files.folder}: was trained with manifest {result.manifest_sha256[:12]}, but the data are now those "
                f"of {now[:12]}. Train on them in another folder, or move this run away"
            )
        if is_first_launched():
            logger.info(f"{files.run} has already ended; nothing is left to do.")
        return result
    for folder in (files.folder, files.best.parent):
        require_writable(folder)
    return on_devices(_train, config, resume=resume, stop_after=stop_after)


def _train(config: ExperimentConfig, *, resume: bool, stop_after: int | None) -> TrainingResult:
    """Train in this process, or in all that share the run."""
    files = RunFolder.of(config)
    device = own_device(config.device)
    precision = choose_precision(config.precision, device)
    reset_peak_memory(device)
    # The model comes first: what is wrong with the config should show before images are read.
    earlier = load_earlier_stage(config)
    seed_everything(config.seed, verbose=False)
    model = build_model(config, earlier)
    if config.gradient_checkpointing:
        model.encoder.checkpoint_gradients()
    computation = Computation.of(config, model, device, precision)
    manifests = first_before_others(lambda: find_manifests(config))
    data = load_training_data(manifests, config.train_split)
    if earlier is not None:
        check_not_tested_on(earlier.training_images, manifests, f"resume_from: {config.resume_from}")
    sampler = _build_sampler(config, data)
    criterion = TrainingCriterion(config.losses, len(data.identities), model.encoder.embedding_dims)

    share = BatchShare(sampler, current().rank, current().size)
    has_nothing_to_go_on_from = resume and files.folder.exists() and not files.resume_state.is_file()
    on_first(lambda: files.open(config, resume=resume))
    with _log_file(files.folder / "train.log") if is_first_process() else nullcontext():
        if earlier is not None:
            _continue_criterion(criterion, data, earlier)
        _log_start(config, files, data, sampler, computation)
        if has_nothing_to_go_on_from:
            logger.info("No epoch of this run was finished, so it starts from the beginning.")
        for aspect, manifest in manifests.items():
            logger.info(f"Manifest of {aspect}: {manifest.root}, sha256 {manifest.sha256}")
        processes = {"processes": current().size}
        environment = {**describe_environment(device, precision), **processes, **computation.record()}
        if is_first_process():
            write_json(files.folder / "environment.json", environment)
        num_workers = computation.num_workers
        seen = earlier.training_images if earlier is not None else []
        cache = open_pixel_cache(config.pixel_cache_gib)
        logger.info(f"Pixel cache: {cache or 'none'}")
        keeper = RunKeeper(
            config, data, files, combined_sha256(manifests), precision, num_workers, stop_after, seen, cache
        )
        transform = ImageTransform(
            model.encoder.preprocessing, config.augmentation, reduced_decoding=config.reduced_decoding
        )
        if current().size > 1:
            synchronize_batch_norm(model.encoder)
        module = TrainingModule(config, model, criterion, sampler, transform, computation.memory_format)
        loader = DataLoader(
            ImageDataset(data.train, transform, cache),
            batch_sampler=share,
            num_workers=num_workers,
            collate_fn=BatchCollator(transform, device),
            worker_init_fn=step_back if device.type == "cpu" else None,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
        )
        _fit(config, module, loader, keeper, files, device, precision)
        return _finish(config, module, keeper, files, {**describe_device(device), "precision": precision})


def _build_sampler(config: ExperimentConfig, data: TrainingData) -> PKBatchSampler | RandomBatchSampler:
    labels = [image.label for image in data.train]
    if config.uses_pk_sampling:
        identities = config.batch_size // config.images_per_identity
        return PKBatchSampler(labels, identities, config.images_per_identity, config.seed)
    return RandomBatchSampler(labels, config.batch_size, config.seed)


def _continue_criterion(criterion: TrainingCriterion, data: TrainingData, checkpoint: Checkpoint) -> None:
    """Take over the earlier stage's loss terms (its classifier, say) where both have them for the same identities."""
    if checkpoint.identities != data.identities:
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


def _fit(
    config: ExperimentConfig,
    module: TrainingModule,
    loader: DataLoader[Any],
    keeper: RunKeeper,
    files: RunFolder,
    device: torch.device,
    precision: str,
) -> None:
    progress = [TrainingProgress(files.run, config.epochs, len(loader))] if is_first_process() else []
    with _quiet_lightning():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            **_lightning_devices(device),
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            max_epochs=config.epochs,
            logger=TensorBoardLogger(files.folder, name=None, version="tensorboard"),
            callbacks=[*progress, keeper],
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        resume_path = on_first(lambda: _state_to_go_on_from(files))
        if resume_path is not None:
            logger.info(f"Going on from {resume_path}.")
        interrupt_handler = signal.getsignal(signal.SIGINT)
        try:
            with plain_worker_errors(), computing_in(precision), naming_compile():
                trainer.fit(module, loader, ckpt_path=resume_path, weights_only=True)
        except TrainingError as error:
            kept = files.resume_state.is_file()
            state = "The last good checkpoint was kept." if kept else "No epoch was finished, so nothing was saved."
            raise TrainingError(f"{error} {state}") from error
        except SystemExit as end:
            # Lightning answers Ctrl-C by ignoring further ones and leaving with exit code 1.
            signal.signal(signal.SIGINT, interrupt_handler)
            raise KeyboardInterrupt from end


def _lightning_devices(device: torch.device) -> dict[str, Any]:
    """Return the devices of this machine, and how those of all machines go together."""
    if (processes := current()).size == 1:
        return {"devices": [device.index or 0] if device.type == "cuda" else 1}
    return {
        "devices": list(range(processes.local_size)) if device.type == "cuda" else processes.local_size,
        "num_nodes": processes.nodes,
        # Buffers need no exchange: the statistics of synchronised batch norms are the same everywhere.
        "strategy": DDPStrategy(cluster_environment=JoinedProcesses(), broadcast_buffers=False),
    }


def _state_to_go_on_from(files: RunFolder) -> Path | None:
    """Return the state of an interrupted run, after checking that it is whole: Lightning would fail half-way."""
    path = files.resume_state
    if not path.is_file():
        return None
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and zip's own errors have no common base
        raise CheckpointError(
            f"{path}: is damaged, and the run cannot go on from it; move {path.parent.parent} away to start anew"
        ) from error
    return path


def _finish(
    config: ExperimentConfig, module: TrainingModule, keeper: RunKeeper, files: RunFolder, hardware: dict[str, Any]
) -> TrainingResult:
    history = keeper.history
    finished = len(history) >= config.epochs or keeper.has_lost_patience
    images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in history)
    epoch_seconds = sum(float(row["seconds"]) for row in history)
    result = TrainingResult(
        run=files.run,
        checkpoint=files.best,
        last_checkpoint=files.last,
        folder=files.folder,
        best_epoch=keeper.best_epoch,
        epochs=len(history),
        seconds=round(keeper.training_seconds, 1),
        images_per_second=round(images / epoch_seconds, 1),
        finished=finished,
        peak_memory_mib=_highest(history, "peak_memory_mib"),
        peak_gpu_memory_mib=_highest(history, "peak_gpu_memory_mib"),
        **hardware,
        manifest_sha256=keeper.manifest_sha256,
    )
    if finished:
        last = {name: float(value) for name, value in history[-1].items() if name.startswith("val_")}
        keeper.save(module, len(history), last, last=True)
        if is_first_process():
            _write_result(result, files)
        logger.info(
            f"Trained {result.epochs} epochs in {result.seconds:.0f} s ({result.images_per_second} images/s); "
            f"best epoch {result.best_epoch}: {files.best}"
        )
    else:
        logger.info(f"Stopped after epoch {len(history)} as asked; --resume goes on from there.")
    return result


def _write_result(result: TrainingResult, files: RunFolder) -> None:
    places = {"checkpoint": str(files.best), "last_checkpoint": str(files.last), "folder": str(files.folder)}
    write_json(files.result, {**result.__dict__, **places})


def _highest(history: list[Row], name: str) -> int | None:
    return max((int(row[name]) for row in history if name in row), default=None)


def _read_result(files: RunFolder) -> TrainingResult:
    values = read_json(files.result)
    if not files.best.is_file():
        raise CheckpointError(f"{files.best}: is gone, although {files.result} says that the run has ended")
    if missing := sorted(TrainingResult.__dataclass_fields__.keys() - values.keys()):
        raise CheckpointError(f"{files.result}: lacks {missing[0]}; it was written by another version of HandCLIP")
    return TrainingResult(**{**values, "checkpoint": files.best, "last_checkpoint": files.last, "folder": files.folder})


def _log_start(
    config: ExperimentConfig,
    files: RunFolder,
    data: TrainingData,
    sampler: PKBatchSampler | RandomBatchSampler,
    computation: Computation,
) -> None:
    losses = " + ".join(f"{loss.weight:g} x {loss.type}" for loss in config.losses)
    logger.info(f"Run {files.run}")
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
    if isinstance(sampler, PKBatchSampler) and sampler.small_identities:
        logger.info(
            f"{sampler.small_identities} identities have fewer than {config.images_per_identity} images, "
            "which repeat within a batch."
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says of its own; its advice does not apply to loaders and logs made like these."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [lightning.level for lightning in loggers]
    for lightning in loggers:
        lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for lightning, level in zip(loggers, levels, strict=True):
            lightning.setLevel(level)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy what is logged to a file, also where no command line has set up logging."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("handclip")
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(root.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()

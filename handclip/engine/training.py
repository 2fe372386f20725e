"""Training one experiment from its config to its checkpoints."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from handclip.checksums import read_checksums, require_intact, sha256_of, write_checksums
from handclip.config.experiment import ExperimentConfig
from handclip.datasets.pixel_cache import open_pixel_cache
from handclip.datasets.sampling import BatchShare, PKBatchSampler, RandomBatchSampler
from handclip.datasets.torch_dataset import (
    BatchCollator,
    ImageDataset,
    leave_signals_to_parent,
    plain_worker_errors,
    step_back,
)
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
from handclip.engine.launching import is_first_launched, launched, on_devices
from handclip.engine.lightning_environment import JoinedProcesses
from handclip.engine.module import TrainingModule
from handclip.engine.normalization import synchronize_batch_norm
from handclip.engine.progress import StartRecorder, TrainingProgress
from handclip.engine.provenance import Session, run_facts, session, weights_sha256
from handclip.engine.run_folder import RunFolder
from handclip.engine.run_log import log_file
from handclip.engine.states import States
from handclip.errors import (
    CheckpointError,
    ConfigError,
    DamagedFileError,
    DataError,
    HandCLIPError,
    Interrupted,
    TrainingError,
)
from handclip.file_names import CONFIG, ENVIRONMENT, HISTORY, LOG, RESULT
from handclip.files import read_json, remove_abandoned, require_writable, write_json
from handclip.interruption import StopRequest, interruptible, stopping_later
from handclip.locks import holding, refuse_if_held
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
    checkpoint_sha256: str | None = None
    """Of the file; None in runs of versions that did not record it, as in `last_checkpoint_sha256`."""
    last_checkpoint_sha256: str | None = None
    best_was_repeated: bool = False
    """The best epoch was trained again from the state before it, as the one after it was damaged, and was not as good
    then: `metrics.csv` is of the second time, the checkpoint of the first."""


def train(config: ExperimentConfig, *, resume: bool = False, stop_after: int | None = None) -> TrainingResult:
    """Train the model that a config describes and keep its best and its last checkpoint.

    Args:
        config: an experiment with `variant: finetuned`.
        resume: go on with an interrupted run; a run that has ended is reported as it is.
        stop_after: stop after this many epochs although the config has more; `resume` goes on from there.

    Raises:
        HandCLIPError: the config, the data, the weights or the run folder do not allow it, or the loss diverges.
        InUseError: another process trains this run.
        Interrupted: Ctrl-C or SIGTERM; `resume` goes on with the very next step. Where several processes share the
            run, it goes on from the last epoch that was saved.
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
            remove_abandoned(files.folder)
            logger.info(f"{files.run} has already ended; nothing is left to do.")
        return result
    for folder in (files.folder, files.best.parent):
        require_writable(folder)
    if launched() is None:  # else it may be another process of this very run
        refuse_if_held(files.folder)
    try:
        return on_devices(_train, config, resume=resume, stop_after=stop_after)
    except Interrupted as stop:
        raise Interrupted(stop.signum, stop.advice or States(files.states).describe()) from None


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
    starts_from = weights_sha256(model.state_dict()) if is_first_process() else ""
    facts = run_facts(files.run, "training", config.to_dict(), manifests, config.seed, starts_from)
    states = States(files.states)
    existed = files.folder.exists()
    with (
        _opened(files, config, resume),
        log_file(files.folder / LOG) if is_first_process() else nullcontext(),
        session(files.folder, facts, device=device, precision=precision, goes_on=resume) as own,
    ):
        if earlier is not None:
            _continue_criterion(criterion, data, earlier)
        _log_start(config, files, data, sampler, computation)
        state = on_first(lambda: _state_to_go_on_from(states, files))
        if state is None and existed and resume:
            logger.info("No step of this run was saved, so it starts from the beginning.")
        for aspect, manifest in manifests.items():
            logger.info(f"Manifest of {aspect}: {manifest.root}, sha256 {manifest.sha256}")
        processes = {"processes": current().size}
        environment = {**describe_environment(device, precision), **processes, **computation.record()}
        if is_first_process():
            _tell_other_hardware(files.folder / ENVIRONMENT, environment)
            write_json(files.folder / ENVIRONMENT, environment)
        seen = earlier.training_images if earlier is not None else []
        cache = open_pixel_cache(config.pixel_cache_gib)
        logger.info(f"Pixel cache: {cache or 'none'}")
        keeper = RunKeeper(
            config=config,
            data=data,
            files=files,
            states=states,
            session=own,
            manifest_sha256=combined_sha256(manifests),
            precision=precision,
            num_workers=computation.num_workers,
            stop_after=stop_after,
            earlier_images=seen,
            cache=cache,
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
            num_workers=computation.num_workers,
            collate_fn=BatchCollator(transform, device),
            worker_init_fn=step_back if device.type == "cpu" else leave_signals_to_parent,
            persistent_workers=computation.num_workers > 0,
            pin_memory=device.type == "cuda",
        )
        try:
            _fit(config, module, loader, keeper, state, device, precision)
            return _finish(config, module, keeper, files, own, {**describe_device(device), "precision": precision})
        except TrainingError as error:
            raise TrainingError(f"{error} {states.describe()}") from error


def _state_to_go_on_from(states: States, files: RunFolder) -> Path | None:
    """Return the newest state that is whole; a run that has saved a model has had one."""
    state = states.newest()
    if state is None and files.best.exists():
        raise DamagedFileError(
            f"{files.states}: holds no state to go on from, although epochs were trained. Put them back, or move "
            f"{files.folder} and {files.best} away to start anew"
        )
    return state


def _tell_other_hardware(path: Path, now: Mapping[str, Any]) -> None:
    """Say in the log where a run goes on with what sums are rounded differently by."""
    try:
        before = read_json(path) if path.is_file() else {}
    except HandCLIPError:  # it is about to be written anew
        return
    decisive = ("device", "processor", "threads", "processes", "memory_format", "compile")
    changed = [f"{key} {now[key]} (was {before[key]})" for key in decisive if key in before and before[key] != now[key]]
    if changed:
        logger.warning(
            f"This run goes on with {', '.join(changed)}: its numbers may differ in the last digits from those of a "
            "run in one go."
        )


@contextmanager
def _opened(files: RunFolder, config: ExperimentConfig, resume: bool) -> Iterator[None]:
    """Keep other processes from training the run while the block runs, but those that share it."""
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(holding(files.folder)))
        # A run with another output_dir may write the same checkpoints.
        on_first(lambda: stack.enter_context(holding(files.best)))
        on_first(lambda: files.open(config, resume=resume))
        yield


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
    state: Path | None,
    device: torch.device,
    precision: str,
) -> None:
    progress = [TrainingProgress(keeper.files.run, config.epochs, len(loader))] if is_first_process() else []
    with _quiet_lightning():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            **_lightning_devices(device),
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            # RunKeeper ends it: Lightning would not even start where the last epoch lacks but its validation.
            max_epochs=-1,
            logger=False,
            plugins=[keeper.states],
            callbacks=[*progress, StartRecorder(keeper.session), keeper],
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        # Lightning would answer SIGTERM with an exchange between processes, and SLURM's warning with a job of its own.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if state is not None:
            logger.info(f"Going on from {state}.")
        with _stop_request() as keeper.stop_request, plain_worker_errors(), computing_in(precision), naming_compile():
            try:
                trainer.fit(module, loader, ckpt_path=state, weights_only=True)
            except RuntimeError:
                # A signal to all processes of a command may end a worker that has only just started.
                keeper.stop_request.raise_if_asked()
                raise
    # It may have come after the last step that looks for it.
    keeper.stop_request.raise_if_asked(keeper.states.describe())


@contextmanager
def _stop_request() -> Iterator[StopRequest]:
    """Let a signal wait for the end of the step; where processes share it, each would find another end."""
    if current().size > 1:
        with interruptible():
            yield StopRequest()
    else:
        with stopping_later("Stopping after what is under way. A second signal stops at once.") as request:
            yield request


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


def _finish(
    config: ExperimentConfig,
    module: TrainingModule,
    keeper: RunKeeper,
    files: RunFolder,
    own: Session,
    hardware: dict[str, Any],
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
        best_was_repeated=keeper.best_was_repeated,
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
        keeper.write_history()
        keeper.save_last(module)
        if is_first_process():
            own.note(
                weights_sha256=weights_sha256(keeper.load_best().model_state),
                last_weights_sha256=weights_sha256(module.model.state_dict()),
            )
            with keeper.storing():
                best, last = sha256_of(files.best), sha256_of(files.last)
                result = replace(result, checkpoint_sha256=best, last_checkpoint_sha256=last)
                _write_result(result, files)
        logger.info(
            f"Trained {_epochs(result.epochs)} in {result.seconds:.0f} s ({result.images_per_second} images/s); "
            f"best epoch {result.best_epoch}: {files.best}"
        )
    else:
        own.exit = f"stopped after {_epochs(len(history))} as asked"
        logger.info(f"Stopped after epoch {len(history)} as asked; --resume goes on from there.")
    return result


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


_RECORDS = (CONFIG, ENVIRONMENT, HISTORY, RESULT)


def _write_result(result: TrainingResult, files: RunFolder) -> None:
    places = {"checkpoint": str(files.best), "last_checkpoint": str(files.last), "folder": str(files.folder)}
    write_json(files.result, {**result.__dict__, **places})
    write_checksums(files.folder, _RECORDS)


def _highest(history: list[Row], name: str) -> int | None:
    return max((int(row[name]) for row in history if name in row), default=None)


def _read_result(files: RunFolder) -> TrainingResult:
    anew = f"Move {files.folder} and the run's checkpoints away to train anew"
    require_intact(files.folder, _RECORDS, advice=anew)
    values = read_json(files.result)
    if not files.best.is_file():
        raise CheckpointError(f"{files.best}: is gone, although {files.result} says that the run has ended")
    required = {field.name for field in fields(TrainingResult) if field.default is MISSING}
    if not isinstance(values, dict) or (missing := sorted(required - values.keys())):
        lacks = f"lacks {missing[0]}" if isinstance(values, dict) else "is no result"
        raise CheckpointError(f"{files.result}: {lacks}; it is damaged, or was written by another version of HandCLIP")
    if (recorded := values.get("checkpoint_sha256")) is not None and sha256_of(files.best) != recorded:
        beside = f" The model of the last epoch is in {files.last}." if files.last.is_file() else ""
        raise DamagedFileError(
            f"{files.best}: is damaged or was changed: it is not what {files.result} recorded.{beside} {anew}"
        )
    if recorded is not None and RESULT not in (read_checksums(files.folder) or {}) and is_first_launched():
        with holding(files.folder):  # it was killed between the two
            write_checksums(files.folder, _RECORDS)
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

"""Training one experiment from its config to its checkpoints."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from handclip.checksums import sha256_of
from handclip.config.experiment import ExperimentConfig
from handclip.console import telling
from handclip.datasets.duplicates import describe_validated
from handclip.datasets.pixel_cache import open_pixel_cache
from handclip.datasets.safe_paths import unicode_form
from handclip.datasets.sampling import BatchShare, PKBatchSampler, RandomBatchSampler, part_lengths
from handclip.datasets.torch_dataset import ImageDataset, ImageLoader
from handclip.datasets.transforms import ImageTransform
from handclip.errors import (
    ConfigError,
    DamagedFileError,
    DataError,
    HandCLIPError,
    Interrupted,
    TrainingError,
)
from handclip.file_names import ENVIRONMENT, LOG
from handclip.files import read_json_object, remove_abandoned, require_writable, write_json
from handclip.locks import holding, refuse_if_held
from handclip.models.builder import build_model, load_earlier_stage
from handclip.models.checkpoint import Checkpoint
from handclip.parallel.batch_norm import synchronize_batch_norm
from handclip.parallel.hardware import (
    Computation,
    choose_precision,
    describe_device,
    describe_environment,
    reset_peak_memory,
)
from handclip.parallel.launching import is_first_launched, launched, on_devices
from handclip.parallel.processes import current, first_before_others, is_first_process, on_first, own_device
from handclip.plurals import counted
from handclip.runs.data import (
    TrainingData,
    check_not_learned_by_heart,
    check_not_tested_on,
    check_not_validated_on,
    combined_sha256,
    find_manifests,
    load_training_data,
    warn_of_known_names,
)
from handclip.runs.disk_space import check_disk_space
from handclip.runs.fitting import fit
from handclip.runs.keeper import Row, RunKeeper
from handclip.runs.module import TrainingModule
from handclip.runs.provenance import run_facts, session, weights_sha256
from handclip.runs.result import TrainingResult, read_result, write_result
from handclip.runs.run_folder import RunFolder
from handclip.runs.run_log import log_file
from handclip.runs.snapshots import Snapshots
from handclip.training.criterion import TrainingCriterion

logger = logging.getLogger(__name__)


@telling()
def train(config: ExperimentConfig, *, resume: bool = False, stop_after: int | None = None) -> TrainingResult:
    """Train the model that a config describes and keep its best and its last checkpoint.

    Args:
        config: an experiment with `variant: finetuned`.
        resume: go on with an interrupted run; a run that has ended is reported as it is.
        stop_after: stop after this many epochs although the config has more; `resume` goes on from there.

    Raises:
        HandCLIPError: the config, the data, the weights or the run folder do not allow it, or the loss diverges.
        InUseError: another process trains this run.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; `resume` goes on with the very next step. Where several processes share
            the run, it goes on from the last epoch that was saved.
    """
    if config.variant != "finetuned":
        raise ConfigError("variant: baseline trains nothing; use `handclip evaluate`")
    if stop_after is not None and stop_after < 1:
        raise ConfigError(f"stop_after: {stop_after}: train for one epoch at least")
    files = RunFolder.of(config)
    if resume and files.result.is_file():
        files.open(config, resume=True)
        result = read_result(files)
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
        raise Interrupted(stop.signum, stop.advice or Snapshots(files.states).describe()) from None


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
    check_not_learned_by_heart(manifests)
    data = load_training_data(manifests, config.train_split)
    states = Snapshots(files.states)
    validated_on_learned = None
    if earlier is not None:
        source = f"resume_from: {config.resume_from}"
        check_not_tested_on(earlier.training_images, manifests, source)
        try:
            check_not_validated_on(earlier.training_images, data, source)
        except DataError as error:
            # Older versions began such runs: their weights are sound, and hours of work.
            if not states.paths():
                raise
            validated_on_learned = error
    sampler = _build_sampler(config, data)
    criterion = TrainingCriterion(config.losses, len(data.identities), model.encoder.embedding_dims)

    epochs = config.epochs if stop_after is None else min(stop_after, config.epochs)
    on_first(lambda: check_disk_space(files, model, criterion, _fewest(epochs, config), ends=epochs == config.epochs))

    share = BatchShare(sampler, current().rank, current().size)
    starts_from = weights_sha256(model.state_dict()) if is_first_process() else ""
    facts = run_facts(files.run, "training", config.to_dict(), manifests, config.seed, starts_from)
    existed = files.folder.exists()
    with (
        _opened(files, config, resume),
        log_file(files.folder / LOG) if is_first_process() else nullcontext(),
        session(files.folder, facts, device=device, precision=precision, goes_on=resume) as own,
    ):
        if earlier is not None:
            warn_of_known_names(earlier, manifests)
            _continue_criterion(criterion, data, earlier)
        if validated_on_learned is not None:
            logger.warning(f"{validated_on_learned}. This run has begun with it, and goes on.")
        cache = open_pixel_cache(config.pixel_cache_gib)
        transform = ImageTransform(
            model.encoder.preprocessing, config.augmentation, reduced_decoding=config.reduced_decoding
        )
        loader = ImageLoader(
            ImageDataset(data.train, transform, cache),
            share,
            device,
            largest=max(part_lengths(sampler.batch_length(0), current().size)),
            num_workers=computation.num_workers,
            training=True,
        )
        computation = replace(computation, num_workers=loader.num_workers)
        _log_start(config, files, data, sampler, computation)
        state = on_first(lambda: _state_to_go_on_from(states, files))
        if state is None and existed and resume:
            logger.info("No step of this run was saved, so it starts from the beginning.")
            own.note(**facts)  # whatever was recorded, nothing has been learned from it
        for aspect, manifest in manifests.items():
            logger.info(f"Manifest of {aspect}: {manifest.file}, of {manifest.root}, sha256 {manifest.sha256}")
        processes = {"processes": current().size}
        environment = {**describe_environment(device, precision), **processes, **computation.record()}
        if is_first_process():
            _tell_other_hardware(files.folder / ENVIRONMENT, environment)
            write_json(files.folder / ENVIRONMENT, environment)
        seen = earlier.training_images if earlier is not None else []
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
        if current().size > 1:
            synchronize_batch_norm(model.encoder)
        module = TrainingModule(config, model, criterion, sampler, transform, computation.memory_format)
        try:
            fit(module, loader, keeper, state, device)
            return _finish(module, keeper, {**describe_device(device), "precision": precision})
        except TrainingError as error:
            raise TrainingError(f"{error} {states.describe()}") from error


def _fewest(epochs: int, config: ExperimentConfig) -> int:
    """Return after how many epochs training may be at its end: early stopping can end it sooner."""
    patience = config.early_stopping_patience
    return epochs if patience is None else min(epochs, (patience + 1) * config.validation_interval)


def _state_to_go_on_from(states: Snapshots, files: RunFolder) -> Path | None:
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
        before = read_json_object(path) if path.is_file() else {}
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


def _finish(module: TrainingModule, keeper: RunKeeper, hardware: dict[str, Any]) -> TrainingResult:
    """Write what a run that has ended leaves; return what it reports, whether it has ended or not."""
    files, history = keeper.files, keeper.history
    finished = len(history) >= keeper.config.epochs or keeper.has_lost_patience
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
            keeper.session.note(
                weights_sha256=weights_sha256(keeper.load_best().model_state),
                last_weights_sha256=weights_sha256(module.model.state_dict()),
            )
            with keeper.storing():
                best, last = sha256_of(files.best), sha256_of(files.last)
                result = replace(result, checkpoint_sha256=best, last_checkpoint_sha256=last)
                write_result(result, files)
        logger.info(
            f"Trained {counted(result.epochs, 'epoch')} in {result.seconds:.0f} s "
            f"({result.images_per_second} images/s); best epoch {result.best_epoch}: {files.best}"
        )
    else:
        keeper.session.exit = f"stopped after {counted(len(history), 'epoch')} as asked"
        logger.info(f"Stopped after epoch {len(history)} as asked; --resume goes on from there.")
    return result


def _highest(history: list[Row], name: str) -> int | None:
    return max((int(row[name]) for row in history if name in row), default=None)


def _log_start(
    config: ExperimentConfig,
    files: RunFolder,
    data: TrainingData,
    sampler: PKBatchSampler | RandomBatchSampler,
    computation: Computation,
) -> None:
    losses = " + ".join(f"{loss.weight:g} x {loss.type}" for loss in config.losses)
    logger.info(f"Run {files.run}")
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

"""Training one experiment from its config to its checkpoints: the loop, and what keeps a run safe around it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from handclip.checksums import sha256_of
from handclip.config.experiment import ExperimentConfig
from handclip.console import ProgressLines, telling
from handclip.datasets.pixel_cache import PixelCache, open_pixel_cache
from handclip.datasets.workers import plain_worker_errors
from handclip.errors import ConfigError, DataError, HandCLIPError, Interrupted, TrainingError
from handclip.file_names import ENVIRONMENT, LOG
from handclip.files import read_json_object, remove_abandoned, require_writable, write_json
from handclip.interruption import AskedToStop, StopRequest, interruptible, stopping_later
from handclip.locks import holding, refuse_if_held
from handclip.parallel.hardware import (
    Computation,
    computing_in,
    describe_environment,
    own_device,
    reset_peak_memory,
)
from handclip.parallel.launching import is_first_launched, launched, on_devices
from handclip.parallel.processes import current, is_first_process, on_first
from handclip.plurals import counted
from handclip.retrieval.features import Embedder
from handclip.runs import hooks
from handclip.runs.best_checkpoint import BestCheckpoint
from handclip.runs.data import combined_sha256, find_manifests, warn_of_known_names
from handclip.runs.disk_space import check_disk_space
from handclip.runs.provenance import Session, session, weights_sha256
from handclip.runs.result import TrainingResult, read_result, write_result
from handclip.runs.run_folder import RunFolder, Storage, log_file
from handclip.runs.setup import Training, continue_criterion
from handclip.runs.snapshots import Resumable, Snapshots
from handclip.training.compilation import naming_compile
from handclip.training.loop import Hooks, fit
from handclip.training.state import Plan, TrainState, validation_of
from handclip.training.validation import validate

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
        raise Interrupted(stop.signum, stop.advice or Snapshots(files.snapshots).describe()) from None


def _train(config: ExperimentConfig, *, resume: bool, stop_after: int | None) -> TrainingResult:
    """Train in this process, or in all that share the run."""
    reset_peak_memory(own_device(config.device))
    training = Training.of(config)
    state = TrainState(Plan.of(config, len(training.sampler), len(training.data.val_queries), stop_after))
    environment = describe_environment(training.computation.device, training.computation.precision)
    with _opened(training, state.plan, environment, resume) as own:
        cache = open_pixel_cache(config.pixel_cache_gib)
        batches, step = training.batches_and_step(cache)
        computation = replace(training.computation, num_workers=batches.loader.num_workers)
        training.log(computation, cache)
        if is_first_process():
            _write_environment(training.files.folder / ENVIRONMENT, {**asdict(computation), **environment})

        storage = Storage(training.files)
        best = BestCheckpoint(storage, training.manifest_sha256, training.checkpoint)
        saved = Resumable(storage, Snapshots(training.files.snapshots), step, best, own, training.made_with)
        try:
            saved.go_on(state)
            hooks.complete_log(state, training.files.folder / LOG)
            own.starts_at(epochs=state.epochs, steps=state.steps_taken)
            with (
                hooks.showing_progress(training.files.run, state) as progress,
                closing(batches),
                closing(hooks.TensorBoardFile(training.files.folder / "tensorboard")) as board,
                plain_worker_errors(),
                computing_in(computation.precision),
                naming_compile() if config.compile else nullcontext(),
                _stopping(saved, state) as stop,
            ):
                fit(
                    state,
                    batches,
                    step,
                    lambda: _validate(training, computation, cache, state, stop),
                    Hooks(
                        after_step=[progress, hooks.stop_within_an_epoch(stop)],
                        # The snapshot comes before the best checkpoint, which can be written from it; and whoever reads
                        # in the log that the epoch is done may end the training.
                        after_epoch=[
                            hooks.note_peak_memory(computation.device),
                            best.choose,
                            hooks.write_history(storage),
                            saved.save,
                            hooks.log_epoch,
                            best.write,
                            board.add,
                            hooks.stop_after_an_epoch(stop, saved.snapshots),
                            hooks.log_early_stopping,
                        ],
                    ),
                )
            result = TrainingResult.of(training.files, state, environment, training.manifest_sha256, best.was_repeated)
            return _finish(result, training, state, best, storage, own)
        except TrainingError as error:
            raise TrainingError(f"{str(error).removesuffix('.')}. {saved.snapshots.describe()}") from error


@contextmanager
def _opened(training: Training, plan: Plan, environment: Mapping[str, Any], resume: bool) -> Iterator[Session]:
    """Open the run's folder for this process alone, and those that share the run: locks, config, log, provenance."""
    files = training.files
    on_first(lambda: check_disk_space(files, training.objective, plan))
    facts, existed = training.facts(), files.folder.exists()
    goes_on = resume and bool(Snapshots(files.snapshots).paths())
    with ExitStack() as opened:
        on_first(lambda: opened.enter_context(holding(files.folder)))
        # A run with another output_dir may write the same checkpoints.
        on_first(lambda: opened.enter_context(holding(files.best)))
        on_first(lambda: files.open(training.config, resume=resume))
        if is_first_process():
            opened.enter_context(log_file(files.folder / LOG))
        own = opened.enter_context(session(files.folder, facts, environment, goes_on=goes_on))
        if training.earlier is not None:
            warn_of_known_names(training.earlier, training.manifests)
            continue_criterion(training.objective.criterion, training.data, training.earlier)
        if resume and existed and not goes_on:
            logger.info("No step of this run was saved, so it starts from the beginning.")
        yield own


@contextmanager
def _stopping(saved: Resumable, state: TrainState) -> Iterator[StopRequest]:
    """Let a signal wait for the end of the step, and save that.

    Where several processes share the run, a signal ends them at once: each would end after another step.

    Raises:
        Interrupted: says what is saved.
    """
    alone = current().size == 1
    notice = "Stopping after what is under way. A second signal stops at once."
    with stopping_later(notice) if alone else interruptible() as request:
        stop = request or StopRequest()
        try:
            yield stop
        except AskedToStop as asked:
            raise Interrupted(asked.signum, saved.stop_here(state)) from None
        except RuntimeError:
            # A signal to all processes of a command may end a worker that has only just started.
            stop.raise_if_asked()
            raise
    # It may have come after the last step that looks for it.
    stop.raise_if_asked(saved.snapshots.describe())


def _validate(
    training: Training, computation: Computation, cache: PixelCache | None, state: TrainState, stop: StopRequest
) -> dict[str, float]:
    """Validate the model as it is; raise AskedToStop where a signal asks for it meanwhile."""
    lines = ProgressLines(f"Epoch {state.epochs + 1}/{state.plan.epochs}, images embedded for validation")

    def progress(done: int, images: int) -> None:
        if stop.signum is not None:
            raise AskedToStop(stop.signum)
        if done and is_first_process():
            lines(done, images)

    progress(0, 0)
    data, batch_size = training.data, training.config.eval_batch_size
    embedder = Embedder(training.objective.model, computation.device, batch_size, computation.num_workers, cache)
    return validate(embedder, data.val_queries, data.val_gallery, data.val_aspects, progress)


def _write_environment(path: Path, now: Mapping[str, Any]) -> None:
    """Write what a reader needs to judge speed and to run it again.

    Where a run goes on with what rounds sums differently, the log says so.
    """
    with suppress(HandCLIPError):  # of what was there; it is written anew
        before = read_json_object(path) if path.is_file() else now
        decisive = ("device", "processor", "threads", "processes", "memory_format", "compile")
        if changed := [f"{key} {now[key]} (was {before.get(key)})" for key in decisive if before.get(key) != now[key]]:
            logger.warning(
                f"This run goes on with {', '.join(changed)}: its numbers may differ in the last digits from those of "
                "a run in one go."
            )
    write_json(path, now)


def _finish(
    result: TrainingResult, training: Training, state: TrainState, best: BestCheckpoint, storage: Storage, own: Session
) -> TrainingResult:
    """Write what a run that has ended leaves; return what it reports, whether it has ended or not."""
    if not result.finished:
        own.exit = f"stopped after {counted(state.epochs, 'epoch')} as asked"
        logger.info(f"Stopped after epoch {state.epochs} as asked; --resume goes on from there.")
        return result
    files = training.files
    if is_first_process():
        # Where nothing was left to train, it may have been lost or changed since its epoch.
        hooks.write_history(storage)(state)
        last = training.checkpoint(state.epochs, validation_of(state.history[-1]))
        with storage.writing():
            last.save(files.last)
        own.note(
            weights_sha256=weights_sha256(best.load(state).model_state),
            last_weights_sha256=weights_sha256(last.model_state),
        )
        with storage.writing():
            result = replace(
                result, checkpoint_sha256=sha256_of(files.best), last_checkpoint_sha256=sha256_of(files.last)
            )
            write_result(result, files)
    logger.info(
        f"Trained {counted(result.epochs, 'epoch')} in {result.seconds:.0f} s "
        f"({result.images_per_second} images/s); best epoch {result.best_epoch}: {files.best}"
    )
    return result

"""Several experiments one after the other: what is done is kept, and one that fails does not stop the others."""

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import losses_text, run_name, stage_of
from handclip.errors import HandCLIPError
from handclip.runs.data import missing_data
from handclip.runs.evaluate import Evaluation, evaluate, read_evaluation, require_no_evaluation
from handclip.runs.result import TrainingResult
from handclip.runs.run_folder import RunFolder
from handclip.runs.study_evaluations import evaluations_there
from handclip.runs.train import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """An experiment of a study: to be trained (a baseline is not) and evaluated.

    `other_data` are the same experiment's evaluations on data that it is not trained on.
    """

    config: ExperimentConfig
    other_data: tuple[ExperimentConfig, ...] = ()
    label: str = ""
    """The study's name of the model, where it is not the model's own."""

    @property
    def model(self) -> str:
        """The model, by the study's name where it has one."""
        return self.label or self.config.model

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.config)

    @property
    def stage(self) -> str:
        """0 trains nothing, 1 starts from pre-trained weights, 2 from an earlier stage."""
        return stage_of(self.config.variant, self.config.resume_from)

    @property
    def losses(self) -> str:
        """The losses by their short names, as in the config files' names."""
        return losses_text(loss.type for loss in self.config.losses if self.config.variant == "finetuned")

    @property
    def data(self) -> str:
        """Data set and aspect."""
        return f"{self.config.dataset} {self.config.aspect}"

    @property
    def state(self) -> Literal["done", "trained", "begun", "to do"]:
        """How far the run has come, from the files it has written. `trained` lacks an evaluation."""
        files = RunFolder.of(self.config)
        if self.config.variant == "finetuned" and not files.result.is_file():
            return "begun" if files.folder.exists() else "to do"
        if all(self.evaluations()):
            return "done"
        return "trained" if self.config.variant == "finetuned" else "to do"

    def evaluations(self) -> list[Path | None]:
        """Return the folder of each of its evaluations, its own first; None for one that is not there."""
        return evaluations_there(self.config, self.other_data)

    def __str__(self) -> str:
        return f"stage {self.stage}, {self.model}: {self.losses}; {self.data}, seed {self.config.seed}"


@dataclass(frozen=True)
class Fault:
    """What went wrong in a step of a run; `details` is the traceback of an error that is not the user's."""

    step: str
    message: str
    details: str | None = None

    def __str__(self) -> str:
        return f"{self.step}: {self.message}"


@dataclass(frozen=True)
class RunReport:
    """What became of a planned run."""

    run: PlannedRun
    training: TrainingResult | None = None
    evaluations: tuple[Evaluation, ...] = ()
    faults: tuple[Fault, ...] = ()
    needs: PlannedRun | None = None
    """The run that failed to train, which this one would have gone on from; it was not begun."""


def run_plan(plan: Sequence[PlannedRun], *, resume: bool) -> Iterator[RunReport]:
    """Run experiments in order and report each; the next may go on from what an earlier one saved.

    Args:
        plan: the experiments; one that goes on from another comes after it.
        resume: go on with what was interrupted, and keep what is done; without it, what exists is an error.
    """
    pace = _Pace(plan)
    failed: dict[str, PlannedRun] = {}
    for number, run in enumerate(plan, start=1):
        logger.info(f"\n[{number}/{len(plan)}] {run}{pace.time_to_go(number - 1)}")
        needs = failed.get(str(run.config.resume_from))
        if needs is not None:
            fault = Fault("left out", f"it goes on from {needs.name}, which failed to train")
            report = RunReport(run, faults=(fault,), needs=needs)
        else:
            report = _run(run, resume)
        for fault in report.faults:
            logger.error(f"Failed: {fault}" if needs is None else str(fault).capitalize())
        if report.faults and report.training is None and run.config.variant == "finetuned":
            failed[str(RunFolder.of(run.config).best)] = needs or run
        pace.add(report)
        yield report


def _run(run: PlannedRun, resume: bool) -> RunReport:
    training: TrainingResult | None = None
    if resume and run.state == "done" and (gone := _what_is_gone(run.config)):
        logger.info(f"Done. {gone} is gone; what was measured with it is kept.")
        try:
            folders = [folder for folder in run.evaluations() if folder is not None]
            return RunReport(run, evaluations=tuple(read_evaluation(folder) for folder in folders))
        except HandCLIPError as error:
            return RunReport(run, faults=(_fault("reading what was measured", error),))
    if run.config.variant == "finetuned":
        try:
            if not resume:
                require_no_evaluation(run.config)
            training = train(run.config, resume=resume)
        except Exception as error:
            return RunReport(run, faults=(_fault("training", error),))
    evaluations, faults = [], []
    for config in (run.config, *run.other_data):
        try:
            evaluations.append(evaluate(config, reuse=resume))
        except Exception as error:
            faults.append(_fault(f"evaluation on {config.dataset} {config.aspect}", error))
    return RunReport(run, training, tuple(evaluations), tuple(faults))


def _what_is_gone(config: ExperimentConfig) -> Path | None:
    model = RunFolder.of(config).best
    if config.variant == "finetuned" and not model.is_file():
        return model
    return missing_data(config)


def _fault(step: str, error: Exception) -> Fault:
    """Describe an error; also one of the program's own must not cost the other runs, and hours."""
    if isinstance(error, HandCLIPError):
        return Fault(step, str(error))
    return Fault(step, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


class _Pace:
    """Estimates the time to go from the seconds that an epoch of each model has taken."""

    def __init__(self, plan: Sequence[PlannedRun]) -> None:
        self._plan = plan
        self._seconds: dict[str, list[float]] = {}
        self._start = time.perf_counter()

    def add(self, report: RunReport) -> None:
        if report.training is not None and report.training.epochs:
            per_epoch = report.training.seconds / report.training.epochs
            self._seconds.setdefault(report.run.config.model, []).append(per_epoch)

    def time_to_go(self, done: int) -> str:
        if not self._seconds:
            return ""
        known = {model: sum(values) / len(values) for model, values in self._seconds.items()}
        typical = sum(known.values()) / len(known)
        to_train = [run.config for run in self._plan[done:] if run.config.variant == "finetuned"]
        left = [config for config in to_train if not RunFolder.of(config).result.is_file()]
        seconds = sum(config.epochs * known.get(config.model, typical) for config in left)
        elapsed = timedelta(seconds=round(time.perf_counter() - self._start))
        return f" ({elapsed} so far, about {timedelta(seconds=round(seconds))} of training to go)"

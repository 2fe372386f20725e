"""Several experiments one after the other: what is done is kept, and one that fails does not stop the others."""

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import run_name
from handclip.engine.evaluation import Evaluation, evaluate, evaluation_folder, require_no_evaluation
from handclip.engine.run_folder import RunFolder
from handclip.engine.training import TrainingResult, train
from handclip.errors import HandCLIPError

_SHORT_NAMES = {"cross_entropy": "ce"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """An experiment of a study: to be trained (a baseline is not) and evaluated.

    `other_data` are the same experiment's evaluations on data that it is not trained on.
    """

    config: ExperimentConfig
    other_data: tuple[ExperimentConfig, ...] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.config)

    @property
    def stage(self) -> str:
        """0 trains nothing, 1 starts from pre-trained weights, 2 from an earlier stage."""
        if self.config.variant == "baseline":
            return "0"
        return "1" if self.config.resume_from is None else "2"

    @property
    def losses(self) -> str:
        """The losses by their short names, as in the config files' names."""
        if self.config.variant == "baseline":
            return "no training"
        return " + ".join(_SHORT_NAMES.get(loss.type, loss.type) for loss in self.config.losses)

    @property
    def data(self) -> str:
        """Data set and aspect."""
        return f"{self.config.dataset} {self.config.aspect}"

    @property
    def state(self) -> Literal["done", "trained", "begun", "to do"]:
        """How far the run has come, from the files it has written. `trained` is not evaluated yet."""
        files = RunFolder.of(self.config)
        if (evaluation_folder(self.config) / "metrics.json").is_file():
            return "done"
        if files.result.is_file():
            return "trained"
        return "begun" if files.folder.exists() else "to do"

    def __str__(self) -> str:
        return f"stage {self.stage}, {self.config.model}: {self.losses}; {self.data}, seed {self.config.seed}"


@dataclass(frozen=True)
class RunReport:
    """What became of a planned run: `error` says why it failed or, where `needs` is given, why it was not begun."""

    run: PlannedRun
    training: TrainingResult | None = None
    evaluations: tuple[Evaluation, ...] = ()
    error: str | None = None
    details: str | None = None
    """The traceback of an error that is not the user's."""
    needs: PlannedRun | None = None
    """The failed run that this one would have gone on from."""


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
            report = RunReport(run, error=f"goes on from {needs.name}, which failed", needs=needs)
        else:
            report = _run(run, resume)
        if report.error is not None:
            logger.error(f"Failed: {report.error}" if needs is None else f"Left out: {report.error}")
            failed[str(RunFolder.of(run.config).best)] = needs or run
        pace.add(report)
        yield report


def _run(run: PlannedRun, resume: bool) -> RunReport:
    training, evaluations = None, []
    try:
        if run.config.variant == "finetuned":
            if not resume:
                require_no_evaluation(run.config)
            training = train(run.config, resume=resume)
        for config in (run.config, *run.other_data):
            evaluations.append(evaluate(config, reuse=resume))
    except HandCLIPError as error:
        return RunReport(run, training, tuple(evaluations), str(error))
    except Exception as error:
        # Hours of other runs should not be lost to a fault that shows in one of them.
        reason = f"{type(error).__name__}: {error}"
        return RunReport(run, training, tuple(evaluations), reason, traceback.format_exc())
    return RunReport(run, training, tuple(evaluations))


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

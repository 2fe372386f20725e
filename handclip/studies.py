"""A study from its file to its comparison: `handclip study`, `handclip demo`, and the stage-2 script."""

import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from handclip.config.study import SYNTHETIC_HANDS, StudyConfig, plan_experiments
from handclip.console import progress_over
from handclip.errors import ConfigError, HandCLIPError
from handclip.file_names import STUDY
from handclip.files import require_writable, write_json
from handclip.locks import holding
from handclip.models.registry import check_keys
from handclip.parallel.launching import refuse_launcher
from handclip.report.comparison import compare_evaluations, write_matrix
from handclip.report.evaluation_log import write_evaluation_log
from handclip.report.matrix import Matrix
from handclip.report.report import ReportFiles, report_evaluations
from handclip.report.runs import EvaluatedRun, read_run, warn_of_missing_checksums
from handclip.runs.data import missing_data
from handclip.runs.study import PlannedRun, RunReport, run_plan
from handclip.synthetic import SyntheticHands, generate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyResult:
    """What became of each run, the comparison of those that succeeded (None: there is none), and its files."""

    reports: list[RunReport]
    matrix: Matrix | None
    files: list[Path]
    unread: list[str] = field(default_factory=list)
    """Why the files of an evaluation could not be compared."""
    report: ReportFiles | None = None
    report_fault: str = ""
    """Why there is no report, although there is a comparison."""

    def raise_failures(self) -> None:
        """Raise one error that names every run that failed or was left out, if there is any."""
        lines = ["\n    ".join([f"  {one.run}", *map(str, one.faults)]) for one in self.reports if one.faults]
        if lines:
            lines.insert(0, f"{len(lines)} of {len(self.reports)} runs failed:")
        if self.unread:
            lines += ["left out of the comparison:", *(f"  {reason}" for reason in self.unread)]
        if self.report_fault:
            lines.append(f"the report could not be made: {self.report_fault}")
        if self.report is not None and self.report.fault:
            lines.append(self.report.fault)
        if lines:
            raise HandCLIPError("\n".join(lines))


def plan_study(study: StudyConfig, out: Path, *, only: Sequence[str] = (), source: str = "study") -> list[PlannedRun]:
    """Return the runs of a study, as `plan_experiments` spells them out, in the order in which they are run.

    Raises:
        ConfigError: an experiment of the study is not valid, or a model is not known.
    """
    plan = []
    for experiment in plan_experiments(study, out, only=only, source=source):
        try:
            check_keys(experiment.config)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        plan.append(PlannedRun(experiment.config, experiment.other_data, experiment.label))
    return plan


def missing_places(plan: Sequence[PlannedRun]) -> list[str]:
    """Return a sentence for each place where data should lie and do not, of runs that are not done."""
    to_do = [config for run in plan if run.state != "done" for config in (run.config, *run.other_data)]
    needed = Counter(place for config in to_do if (place := missing_data(config)) is not None)
    return [f"{place} is not there, and {count} trainings or evaluations need it." for place, count in needed.items()]


def run_study(study: StudyConfig, plan: Sequence[PlannedRun], out: Path) -> StudyResult:
    """Run a planned study in its folder, where what is done already is kept, and compare.

    Raises:
        HandCLIPError: the folder cannot be written. Runs that fail are in the result.
        InUseError: another process works on the study.
    """
    refuse_launcher("A study")
    require_writable(out)
    for sentence in missing_places(plan):
        logger.warning(sentence)
    with holding(out):
        if any(run.config.dataset == "synthetic" for run in plan):
            _draw_hands(study, out / SYNTHETIC_HANDS)
        return _run_and_compare(plan, out, resume=True, record=out / STUDY)


def run_and_compare(plan: Sequence[PlannedRun], out: Path, *, resume: bool) -> StudyResult:
    """Run experiments; write `comparison.md`, `.csv`, `.tex`, `.json`, `differences.csv` and `report/` below `out`.

    Raises:
        InUseError: another process writes to `out`.
    """
    refuse_launcher("A study")
    with holding(out):
        return _run_and_compare(plan, out, resume=resume)


def _run_and_compare(plan: Sequence[PlannedRun], out: Path, *, resume: bool, record: Path | None = None) -> StudyResult:
    """`record` is a file for what became of each run, written anew after each."""
    reports: list[RunReport] = []
    for report in run_plan(plan, resume=resume):
        reports.append(report)
        for evaluation in report.evaluations:
            write_evaluation_log(evaluation.folder, evaluation.metrics)
        if record is not None:
            write_json(record, [_entry(done) for done in reports] + [_to_do(run) for run in plan[len(reports) :]])
    folders = [evaluation.folder for report in reports for evaluation in report.evaluations]
    runs, unread = _read(folders)
    if not runs:
        return StudyResult(reports, None, [], unread)
    matrix = compare_evaluations(runs)
    files = write_matrix(matrix, out)
    page, fault = _report(runs, out / "report", matrix)
    return StudyResult(reports, matrix, files, unread, page, fault)


def _report(runs: Sequence[EvaluatedRun], out: Path, matrix: Matrix) -> tuple[ReportFiles | None, str]:
    """Write the report, or return why it could not be made; even a fault of the program's must not cost the rest."""
    try:
        return report_evaluations(runs, out, matrix=matrix), ""
    except HandCLIPError as error:
        return None, str(error)
    except Exception as error:
        logger.error("".join(traceback.format_exception(error)))
        return None, f"{type(error).__name__}: {error}"


def _read(folders: Sequence[Path]) -> tuple[list[EvaluatedRun], list[str]]:
    """Return the evaluations that can be compared, and why others, with a damaged file, cannot."""
    runs, unread = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except HandCLIPError as error:
            unread.append(str(error))
    warn_of_missing_checksums(run.folder for run in runs)
    return runs, unread


def _draw_hands(study: StudyConfig, root: Path) -> None:
    hands = SyntheticHands(**study.synthetic.model_dump())
    logger.info(f"Synthetic hands of {hands.identities} people: {root}")
    with progress_over("drawing hands") as report:
        generate(root, hands, report)


def _entry(report: RunReport) -> dict[str, Any]:
    return {
        **_to_do(report.run),
        "state": "left out" if report.needs else "failed" if report.faults else "done",
        "checkpoint": str(report.training.checkpoint) if report.training else None,
        "evaluations": [str(evaluation.folder) for evaluation in report.evaluations],
        "faults": [asdict(fault) for fault in report.faults],
    }


def _to_do(run: PlannedRun) -> dict[str, Any]:
    return {
        "run": run.name,
        "stage": run.stage,
        "model": run.config.model,
        "label": run.model,
        "losses": run.losses,
        "dataset": run.config.dataset,
        "aspect": run.config.aspect,
        "seed": run.config.seed,
        "state": "to do",
    }

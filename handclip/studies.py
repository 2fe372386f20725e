"""A study from its file to its comparison: `handclip study`, `handclip demo`, and the stage-2 script."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handclip.config.study import SYNTHETIC_HANDS, StudyConfig, plan_cross_domain, plan_experiments
from handclip.console import progress_over
from handclip.datasets.synthetic import SyntheticHands, generate
from handclip.engine.study import PlannedRun, RunReport, run_plan
from handclip.errors import ConfigError, HandCLIPError
from handclip.files import require_writable, write_json
from handclip.models.registry import check_keys
from handclip.report.comparison import compare_runs, write_matrix
from handclip.report.matrix import Matrix
from handclip.report.tables import write_evaluation_log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyResult:
    """What became of each run, the comparison of those that succeeded (None: there is none), and its files."""

    reports: list[RunReport]
    matrix: Matrix | None
    files: list[Path]

    def raise_failures(self) -> None:
        """Raise one error that names every run that failed or was left out, if there is any."""
        failed = [report for report in self.reports if report.error is not None]
        if failed:
            lines = [f"  {report.run}\n    {report.error}" for report in failed]
            raise HandCLIPError(f"{len(failed)} of {len(self.reports)} runs failed:\n" + "\n".join(lines))


def plan_study(study: StudyConfig, out: Path, *, only: Sequence[str] = (), source: str = "study") -> list[PlannedRun]:
    """Return the runs of a study in the order in which they are run.

    Args:
        study: the study.
        out: its folder.
        only: models to run; default all.
        source: named in errors.

    Raises:
        ConfigError: an experiment of the study is not valid, or a model is not known.
    """
    experiments = plan_experiments(study, out, only=only, source=source)
    for config in experiments:
        try:
            check_keys(config)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
    return [PlannedRun(config, tuple(plan_cross_domain(study, config, source))) for config in experiments]


def run_study(study: StudyConfig, plan: Sequence[PlannedRun], out: Path) -> StudyResult:
    """Run a planned study in its folder, where what is done already is kept, and compare.

    Raises:
        HandCLIPError: the folder cannot be written. Runs that fail are in the result.
    """
    require_writable(out)
    if any(run.config.dataset == "synthetic" for run in plan):
        _draw_hands(study, out / SYNTHETIC_HANDS)
    return run_and_compare(plan, out, resume=True, record=out / "study.json")


def run_and_compare(plan: Sequence[PlannedRun], out: Path, *, resume: bool, record: Path | None = None) -> StudyResult:
    """Run experiments, and write `comparison.md`, `.csv`, `.tex`, `.json` and `differences.csv` below `out`.

    Args:
        plan: the experiments.
        out: where the comparison goes.
        resume: see `run_plan`.
        record: file for what became of each run, written anew after each.
    """
    reports: list[RunReport] = []
    for report in run_plan(plan, resume=resume):
        reports.append(report)
        for evaluation in report.evaluations:
            facts = {"Experiment": report.run.config.experiment, "Variant": report.run.config.variant}
            write_evaluation_log(evaluation.folder, evaluation.metrics, facts)
        if record is not None:
            write_json(record, [_entry(done) for done in reports] + [_to_do(run) for run in plan[len(reports) :]])
    folders = [evaluation.folder for report in reports for evaluation in report.evaluations]
    if not folders:
        return StudyResult(reports, None, [])
    matrix = compare_runs(folders)
    return StudyResult(reports, matrix, write_matrix(matrix, out))


def _draw_hands(study: StudyConfig, root: Path) -> None:
    hands = SyntheticHands(**study.synthetic.model_dump())
    logger.info(f"Synthetic hands of {hands.identities} people: {root}")
    with progress_over("drawing hands") as report:
        generate(root, hands, report)


def _entry(report: RunReport) -> dict[str, Any]:
    state = "done" if report.error is None else "failed" if report.needs is None else "left out"
    return {
        **_to_do(report.run),
        "state": state,
        "checkpoint": str(report.training.checkpoint) if report.training else None,
        "evaluations": [str(evaluation.folder) for evaluation in report.evaluations],
        "error": report.error,
        "details": report.details,
    }


def _to_do(run: PlannedRun) -> dict[str, Any]:
    return {
        "run": run.name,
        "stage": run.stage,
        "model": run.config.model,
        "losses": run.losses,
        "dataset": run.config.dataset,
        "aspect": run.config.aspect,
        "seed": run.config.seed,
        "state": "to do",
    }

"""How it was made: settings, data, code, machine, and the commands that make it again."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from handclip.config.naming import last_name
from handclip.config.yaml_text import dump_yaml
from handclip.errors import DamagedFileError
from handclip.file_names import CONFIG, PROVENANCE
from handclip.locks import is_held
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import Commands, ReportWriter, Section, SectionWriter
from handclip.report.table import Column
from handclip.runs.provenance import read_provenance, sessions_of

_COLUMNS = (
    Column("label", "Run"),
    Column("seed", "Seed", numeric=True),
    Column("manifest_sha256", "Manifest", lambda value: str(value)[:8]),
    Column("code", "Code"),
    Column("device", "Device"),
    Column("training_precision", "Precision"),
    Column("trained", "Trained", lambda value: str(value)[:10]),
    Column("evaluated", "Evaluated", lambda value: str(value)[:10]),
    Column("training_sessions", "Sessions of training"),
)

_MOST_OPTIONS = 8
"""More columns do not fit on the page."""

_AGAIN = "again"
"""Folder below a study in which its runs are made once more."""


def provenance_section(data: ReportData, writer: ReportWriter) -> Section:
    """Show what is needed to judge the numbers and to make them again."""
    page = writer.section("provenance", runs=data.runs, again=_AGAIN)
    page.words("trust")
    rows = [_row(run) for run in data.runs]
    page.table("provenance", _COLUMNS, rows, page.csv("provenance", rows))
    unknown = [run for run in data.runs if run.config is None or run.environment is None]
    reasons = [run.missing.get("config") or run.missing.get("environment") for run in unknown]
    gone = [run for run in data.runs if run.row.losses and run.training_folder is None]
    page.words("missing", unknown=unknown, reason=next(iter(reasons), None), gone=gone)
    _options_table(data.runs, page)
    _again(data.runs, page)
    for run in data.featured:
        page.words("run", run=run)
        facts = [{"name": name, "value": value} for name, value in _facts(run, page) if value is not None]
        page.table("facts", [Column("name", "What"), Column("value", "Value")], facts)
    return page.finished()


def _row(run: ReportRun) -> dict[str, Any]:
    metrics = run.evaluated.metrics
    evaluation, training = run.environment or {}, run.training_environment or {}
    either = training or evaluation
    return {
        "run": run.row.run,
        "label": run.label,
        "seed": metrics.seed,
        "manifest_sha256": metrics.manifest_sha256,
        **{f"manifest_sha256_{aspect}": part.manifest_sha256 for aspect, part in metrics.per_aspect.items()},
        "trained_on_manifest_sha256": metrics.trained_on.manifest_sha256 if metrics.trained_on else None,
        "options": _yaml(metrics.options),
        "code": _code(either),
        "evaluation_code": _code(evaluation),
        "device": either.get("device"),
        "processor": either.get("processor"),
        "cores": either.get("cores"),
        "evaluation_device": evaluation.get("device"),
        "training_precision": training.get("precision"),
        "evaluation_precision": evaluation.get("precision"),
        "trained": training.get("started"),
        "evaluated": evaluation.get("started"),
        "python": either.get("python"),
        "platform": either.get("platform"),
        **either.get("libraries", {}),
        "training_config": _config_file(run, run.training_folder),
        "evaluation_config": _config_file(run, run.folder),
        "folder": _within_study(run, run.folder),
        "training_sessions": _sessions(run, run.training_folder),
        "evaluation_sessions": _sessions(run, run.folder),
    }


def _sessions(run: ReportRun, folder: Path | None) -> str | None:
    """Return how many times a process worked on a run, and how each of them ended."""
    if folder is None:
        return None
    try:
        provenance = read_provenance(folder)
    except DamagedFileError as error:
        run.tell_damage(f"{error} Put it back from a copy; no number of the report is taken from it")
        return f"{PROVENANCE} is damaged"
    if provenance is None:
        return None
    ends = [entry["exit"] or "under way" for entry in sessions_of(provenance, ended=not is_held(folder))]
    return f"{len(ends)}: {'; '.join(ends)}"


def _code(environment: Mapping[str, Any]) -> str | None:
    """Return the version, and the commit where it is known."""
    if "handclip" not in environment:
        return None
    commit = environment.get("commit")
    return f"{environment['handclip']} ({commit})" if commit else str(environment["handclip"])


def _study(run: ReportRun) -> Path:
    """Return the folder that holds the folder of evaluations; training's is beside it."""
    return run.folder.resolve().parent.parent


def _within_study(run: ReportRun, path: Path) -> str:
    """Return a path as seen from the study's folder; the folders above it may name a person, and reports go around."""
    return Path(os.path.relpath(path.resolve(), _study(run))).as_posix()


def _config_file(run: ReportRun, folder: Path | None) -> str | None:
    path = folder / CONFIG if folder is not None else None
    return _within_study(run, path) if path is not None and path.is_file() else None


def _options_table(runs: Sequence[ReportRun], page: SectionWriter) -> None:
    """Show the keys of the config in which runs differ, unless there are none, or too many for a table."""
    # A baseline has no settings of training, in which it would differ from all others.
    trained = [run for run in runs if run.row.losses]
    runs = trained or runs
    labels = {f"{run.row.run}.pth": run.label for run in runs}
    options = [{key: _yaml(value) for key, value in run.evaluated.metrics.options.items()} for run in runs]
    keys = sorted({key for of_run in options for key in of_run})
    differing = [key for key in keys if len({of_run.get(key) for of_run in options}) > 1]
    if 0 < len(differing) <= _MOST_OPTIONS:
        columns = [Column(key, key, lambda value: labels.get(value, value)) for key in ("Run", *differing)]
        rows = [{**of_run, "Run": run.label} for run, of_run in zip(runs, options, strict=True)]
        page.table("options", columns, rows, trained=bool(trained))


def _facts(run: ReportRun, page: SectionWriter) -> Iterator[tuple[str, str | None]]:
    metrics = run.evaluated.metrics
    yield "Run", run.row.run
    settings = {key: getattr(metrics, key) for key in ("experiment", "variant", "model", "dataset", "aspect", "seed")}
    if metrics.losses:
        settings["losses"] = [{"type": loss} for loss in metrics.losses]
    yield from ((key, _yaml(value)) for key, value in {**settings, **metrics.options}.items())
    yield "Manifest", metrics.manifest_sha256
    trained_on = metrics.trained_on
    if trained_on is not None and trained_on.manifest_sha256 != metrics.manifest_sha256:
        yield "Trained on", f"{trained_on.dataset} {trained_on.aspect}, manifest {trained_on.manifest_sha256}"
    for name, environment in (("Training", run.training_environment), ("Evaluation", run.environment)):
        if environment is not None:
            yield name, page.prose.text("environment", environment=environment, code=_code(environment))
    yield "Full config of training", _config_file(run, run.training_folder)
    yield "Full config of evaluation", _config_file(run, run.folder)


def _yaml(value: Any) -> str:
    """Return a value as it stands in a config, on one line."""
    text = dump_yaml(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _again(runs: Sequence[ReportRun], page: SectionWriter) -> None:
    """Go on with the commands of all runs, one block for each study."""
    studies: dict[Path, list[str]] = {}
    for run in runs:
        if commands := _commands(run):
            studies.setdefault(_study(run), []).extend(commands)
    if studies:
        page.words("again")
    for study, commands in studies.items():
        if len(studies) > 1:
            page.words("study", study=study)
        page.add(Commands(commands))


def _commands(run: ReportRun) -> list[str]:
    trained = _config_file(run, run.training_folder)
    if trained is None or run.evaluated.metrics.cross_domain:
        evaluated = _config_file(run, run.folder)
        return [] if evaluated is None else [_command("evaluate", evaluated, eval_dir="eval_logs")]
    places = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}
    earlier = (run.config or {}).get("resume_from")
    if earlier is not None:
        places["resume_from"] = f"saved_models/{Path(earlier).name}"
    named = Path(str((run.config or {}).get("checkpoint")))
    is_last = named.stem == last_name(Path(trained).parent.name)
    model = {"checkpoint": f"saved_models/{named.name}"} if is_last else {}
    return [_command("train", trained, **places), _command("evaluate", trained, **places, **model)]


def _command(name: str, config: str, **places: str) -> str:
    changes = [f"--set {shlex.quote(f'{key}={_AGAIN}/{place}')}" for key, place in places.items()]
    return " ".join(["handclip", name, shlex.quote(config), *changes])

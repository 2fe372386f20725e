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
from handclip.plurals import counted
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import Block, Column, Commands, Heading, Note, ReportWriter, Section, Table, Text
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
    return Section(
        anchor="provenance",
        title="How it was made",
        question="What exactly was run, on what, and how is it run again?",
        blocks=list(_blocks(data, writer)),
    )


def _blocks(data: ReportData, writer: ReportWriter) -> Iterator[Block]:
    yield Text(
        "A number can be trusted as far as it can be made again. The manifest is the list of all images with their "
        "people and their roles, and its hash tells whether two runs saw the same data; the seed fixes every random "
        "choice. The same code, config, seed and manifest give the same model on the same kind of machine, and nearly "
        "the same on another."
    )
    yield writer.table(
        "provenance",
        _COLUMNS,
        [_row(run) for run in data.runs],
        "All runs. Manifest: the first eight digits of the hash of the data. Precision: of training. Dates are UTC. "
        "The file also has libraries, machines, folders, settings and the manifest of each aspect.",
    )
    unknown = [run for run in data.runs if run.config is None or run.environment is None]
    damaged = {run: reason for run in unknown if (reason := run.damage_of("config", "environment"))}
    for run, reason in damaged.items():
        yield Note(f"Not all of how {run.label} was evaluated can be shown: {reason}.", "missing")
    old = [run for run in unknown if run not in damaged]
    if old:
        names = "; ".join(run.label for run in old) if len(old) < len(data.runs) else "all runs"
        yield Note(
            f"The config and the machine of the evaluation are not known of {names}: it is by an older version of "
            "HandCLIP, which did not keep them. Evaluate again with handclip evaluate CONFIG --overwrite.",
            "missing",
        )
    gone = [run for run in data.runs if run.row.losses and run.training_folder is None]
    if gone:
        names = "; ".join(run.label for run in gone) if len(gone) < len(data.runs) else "all runs"
        yield Note(
            f"The records of training of {names} are not where its evaluation says, so the config and the machine of "
            "training are not shown. Move train_logs beside eval_logs again.",
            "missing",
        )
    if options := _options_table(data.runs):
        yield options
    yield from _again(data.runs)
    for run in data.featured:
        yield Heading(run.label)
        yield _facts_table(run)


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


def _options_table(runs: Sequence[ReportRun]) -> Table | None:
    """Return the keys of the config in which runs differ; None where there are none, or too many for a table."""
    # A baseline has no settings of training, in which it would differ from all others.
    runs = [run for run in runs if run.row.losses] or runs
    labels = {f"{run.row.run}.pth": run.label for run in runs}
    options = [{key: _yaml(value) for key, value in run.evaluated.metrics.options.items()} for run in runs]
    keys = sorted({key for of_run in options for key in of_run})
    differing = [key for key in keys if len({of_run.get(key) for of_run in options}) > 1]
    if not 0 < len(differing) <= _MOST_OPTIONS:
        return None
    values = [[of_run.get(key, "-") for key in differing] for of_run in options]
    cells = [[run.label, *(labels.get(value, value) for value in line)] for run, line in zip(runs, values, strict=True)]
    which = "trained runs" if runs[0].row.losses else "runs"
    caption = (
        f"Keys of the config in which {which} differ, apart from what their names say. A dash stands for the default."
    )
    return Table(["Run", *differing], [False] * (len(differing) + 1), cells, caption)


def _facts_table(run: ReportRun) -> Table:
    cells = [[name, value] for name, value in _facts(run) if value is not None]
    caption = "Names in small letters are keys of the config; those that are not named have their default."
    return Table(["What", "Value"], [False, False], cells, caption)


def _facts(run: ReportRun) -> Iterator[tuple[str, str | None]]:
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
    if run.training_environment is not None:
        yield "Training", _environment_text(run.training_environment)
    if run.environment is not None:
        yield "Evaluation", _environment_text(run.environment)
    yield "Full config of training", _config_file(run, run.training_folder)
    yield "Full config of evaluation", _config_file(run, run.folder)


def _yaml(value: Any) -> str:
    """Return a value as it stands in a config, on one line."""
    text = dump_yaml(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _environment_text(environment: Mapping[str, Any]) -> str:
    hardware = [environment.get("device"), environment.get("processor")]
    if environment.get("cores"):
        threads = environment.get("threads")
        hardware.append(
            f"{counted(environment['cores'], 'core')}, {counted(threads, 'thread') if threads else 'unknown threads'}"
        )
    parts = [
        f"HandCLIP {_code(environment) or 'of an unknown version'}",
        f"started {environment.get('started', 'at an unknown time')}",
        *map(str, filter(None, hardware)),
        f"computed in {environment.get('precision', 'an unknown precision')}",
        f"Python {environment.get('python', 'unknown')}",
        str(environment.get("platform", "unknown system")),
        *(f"{name} {version}" for name, version in environment.get("libraries", {}).items()),
    ]
    return ", ".join(parts)


def _again(runs: Sequence[ReportRun]) -> Iterator[Block]:
    """Yield the commands of all runs, one block for each study."""
    studies: dict[Path, list[str]] = {}
    for run in runs:
        if commands := _commands(run):
            studies.setdefault(_study(run), []).extend(commands)
    if not studies:
        return
    yield Heading("To run it again")
    yield Text(
        "Run these in the study's folder, the one that holds the folder of evaluations; they write below "
        f"{_AGAIN}/, and leave what is there as it is. Runs that start from another (resume_from) come after it. The "
        "configs name the data as seen from where they were first run: add --set data_root=DIR to each command where "
        "that is not right any more."
    )
    for study, commands in studies.items():
        if len(studies) > 1:
            yield Text(f"In {study.name}:")
        yield Commands(commands)


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

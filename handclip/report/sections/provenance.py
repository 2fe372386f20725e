"""How it was made: settings, data, code, machine, and the commands that make it again."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from handclip.report.book import Block, Book, Column, Commands, Heading, Note, Section, Table, Text
from handclip.report.material import Material, ReportRun

_COLUMNS = (
    Column("label", "Run"),
    Column("seed", "Seed", numeric=True),
    Column("manifest_sha256", "Manifest", lambda value: str(value)[:8]),
    Column("code", "Code"),
    Column("device", "Device"),
    Column("training_precision", "Precision"),
    Column("trained", "Trained", lambda value: str(value)[:10]),
    Column("evaluated", "Evaluated", lambda value: str(value)[:10]),
)


def provenance_section(material: Material, book: Book) -> Section:
    """Show what is needed to judge the numbers and to make them again."""
    return Section(
        anchor="provenance",
        title="How it was made",
        question="What exactly was run, on what, and how is it run again?",
        blocks=list(_blocks(material, book)),
    )


def _blocks(material: Material, book: Book) -> Iterator[Block]:
    yield Text(
        "A number can be trusted as far as it can be made again. The manifest is the list of all images with their "
        "people and their roles, and its hash tells whether two runs saw the same data; the seed fixes every random "
        "choice. The same code, config, seed and manifest give the same model on the same kind of machine, and nearly "
        "the same on another."
    )
    yield book.table(
        "provenance",
        _COLUMNS,
        [_row(run) for run in material.runs],
        "All runs. Manifest: the first eight digits of the hash of the data. Precision: of training. Dates are UTC. "
        "The file also has libraries, machines, folders, settings and the manifest of each aspect.",
    )
    unknown = [run for run in material.runs if run.config is None or run.environment is None]
    if unknown:
        names = "; ".join(run.label for run in unknown) if len(unknown) < len(material.runs) else "all runs"
        yield Note(
            f"The config and the machine of the evaluation are not known of {names}: it is by an older version of "
            "HandCLIP, which did not keep them. Evaluate again with handclip evaluate CONFIG --overwrite.",
            "missing",
        )
    gone = [run for run in material.runs if run.row.losses and run.training_folder is None]
    if gone:
        names = "; ".join(run.label for run in gone) if len(gone) < len(material.runs) else "all runs"
        yield Note(
            f"The records of training of {names} are not where its evaluation says, so the config and the machine of "
            "training are not shown. Move train_logs beside eval_logs again.",
            "missing",
        )
    for run in material.featured:
        yield Heading(run.label)
        yield _facts_table(run)
        commands = _commands(run)
        if commands:
            yield Text(_again_text(run))
            yield Commands(commands)


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
        "training_config": _config_file(run.training_folder),
        "evaluation_config": _config_file(run.folder),
        "folder": str(run.folder),
    }


def _code(environment: Mapping[str, Any]) -> str | None:
    """Return the version, and the commit where it is known."""
    if "handclip" not in environment:
        return None
    commit = environment.get("commit")
    return f"{environment['handclip']} ({commit})" if commit else str(environment["handclip"])


def _config_file(folder: Path | None) -> str | None:
    path = folder / "config.yml" if folder is not None else None
    return str(path) if path is not None and path.is_file() else None


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
    yield "Full config of training", _config_file(run.training_folder)
    yield "Full config of evaluation", _config_file(run.folder)


def _yaml(value: Any) -> str:
    """Return a value as it stands in a config, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _environment_text(environment: Mapping[str, Any]) -> str:
    hardware = [environment.get("device"), environment.get("processor")]
    if environment.get("cores"):
        hardware.append(f"{environment['cores']} cores, {environment.get('threads', 'unknown')} threads")
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


def _commands(run: ReportRun) -> list[str]:
    configs = {"train": _config_file(run.training_folder), "evaluate": _config_file(run.folder)}
    return [f"handclip {command} {shlex.quote(path)}" for command, path in configs.items() if path is not None]


def _again_text(run: ReportRun) -> str:
    earlier = (run.config or {}).get("resume_from")
    start = f" It starts from {earlier}, which has to be made first." if earlier and run.row.losses else ""
    return (
        "To run it again, move away what these commands write, or change output_dir, save_dir and eval_dir in copies "
        f"of the configs: nothing that exists is overwritten.{start}"
    )

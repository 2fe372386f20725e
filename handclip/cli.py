"""The command line: every command parses, calls one function, and prints."""

import logging
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handclip import __version__
from handclip.console import ConsoleHandler, progress_over, stdout
from handclip.errors import ConfigError, HandCLIPError

# Heavy parts are imported inside the commands, so that `handclip --help` answers at once.
if TYPE_CHECKING:
    from handclip.datasets.prepare import PreparedDataset

app = typer.Typer(
    help="Identify people by photographs of their hands.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dataset(StrEnum):
    """Data sets that can be prepared."""

    HANDS_11K = "11k"
    HD = "hd"
    FOLDER = "folder"


_INTERRUPTED = 130
"""What Typer exits with after Ctrl-C, as shells do."""

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment file (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the file; may be repeated.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"handclip {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _set_up(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    set_up_logging()


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Hands in 11k Hands' layout.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything it writes.")] = Path("demo_out"),
    resume: Resume = False,
) -> None:
    """Run all stages on synthetic hands (or on DIR) and print one table."""
    from handclip.demo import run_demo

    result = run_demo(data, out, resume=resume)
    for table in result.tables.values():
        stdout.print()
        stdout.print(table.to_rich())
    stdout.print(
        f"\nEverything was written to {result.folder}/: comparison_*.md, .csv and .json, train_logs/, "
        "eval_logs/, saved_models/",
        soft_wrap=True,
    )


@app.command()
def prepare(
    dataset: Annotated[Dataset | None, typer.Argument(help="Which data set.")] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data set lies.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the manifests go.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out and count images that are absent or unreadable.")
    ] = False,
    deterministic_gallery: Annotated[
        bool, typer.Option("--deterministic-gallery", help="HD only: the gallery holds each identity's first image.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="Check a manifest, or a folder of them, instead.")
    ] = None,
) -> None:
    """Draw the splits of a data set and write them as manifests; or check a manifest."""
    if check is not None:
        if dataset is not None or root is not None or out is not None:
            raise ConfigError("prepare --check takes a manifest and nothing else")
        for path in sorted(check.glob("manifest_*.json")) if check.is_dir() else [check]:
            _check(path)
        return
    if dataset is None or root is None or out is None:
        raise ConfigError("prepare needs a data set, --root and --out: handclip prepare 11k --root DIR --out DIR")
    from handclip.datasets.prepare import prepare as prepare_dataset

    with progress_over("reading images") as report:
        prepared = prepare_dataset(
            dataset.value,
            root,
            out,
            seed=seed,
            allow_missing=allow_missing,
            deterministic_gallery=deterministic_gallery,
            progress=report,
        )
    _print_prepared(prepared)
    unchanged = " (unchanged)" if prepared.unchanged else ""
    stdout.print(f"Manifests, summary.json and dataset_summary.csv are in {out}{unchanged}", soft_wrap=True)


@app.command()
def train(
    config: ConfigPath,
    set_: Overrides = None,
    resume: Resume = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, metavar="EPOCHS", help="Stop after so many epochs; --resume goes on.")
    ] = None,
) -> None:
    """Train an experiment and keep its best and its last checkpoint."""
    from handclip.config.loading import load_config

    experiment = load_config(config, set_ or [])
    from handclip.engine.training import train as train_experiment

    train_experiment(experiment, resume=resume, stop_after=stop_after)


@app.command()
def evaluate(
    config: ConfigPath,
    set_: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another evaluation of this run.")] = False,
) -> None:
    """Evaluate a baseline or a trained model on every draw, gallery and flip setting."""
    evaluate_config(config, set_ or [], overwrite=overwrite)


def evaluate_config(path: Path, overrides: Sequence[str], *, overwrite: bool = False) -> None:
    """Evaluate and print; `run_eval_clip.py` does the same."""
    from handclip.config.loading import load_config

    experiment = load_config(path, overrides)
    from handclip.engine.evaluation import evaluate as evaluate_experiment
    from handclip.report.tables import evaluation_text, write_evaluation_log

    evaluation = evaluate_experiment(experiment, overwrite=overwrite)
    facts = {"Config": str(path), "Experiment": experiment.experiment, "Variant": experiment.variant}
    log = write_evaluation_log(evaluation.folder, evaluation.metrics, facts)
    stdout.print(evaluation_text(evaluation.metrics, facts), highlight=False, markup=False, soft_wrap=True)
    stdout.print(
        f"Log: {log}\nFor programs: {evaluation.folder}/metrics.json, per_split.csv, per_query.csv", soft_wrap=True
    )


def _check(path: Path) -> None:
    from handclip.datasets.check import check_manifest
    from handclip.datasets.manifest import Manifest

    manifest = Manifest.load(path)
    breaches = check_manifest(manifest)
    if breaches:
        raise HandCLIPError("\n".join(f"{path}: {breach}" for breach in breaches))
    stdout.print(
        f"{path}: {len(manifest.images):,} images, {len(manifest.draws)} draws: keeps to the protocol", soft_wrap=True
    )


def _print_prepared(prepared: "PreparedDataset") -> None:
    from handclip.report.screen import split_tables

    for table in split_tables(prepared.manifests):
        stdout.print(table)


def set_up_logging() -> None:
    """Print what HandCLIP logs."""
    logger = logging.getLogger("handclip")
    logger.setLevel(logging.INFO)
    logger.handlers = [ConsoleHandler()]


def main() -> None:
    """Run the command line; errors of the user's are one clear message and a non-zero exit code."""
    run(app)


def run(command: typer.Typer) -> None:
    """Run a command line with HandCLIP's way of reporting errors."""
    try:
        command()
    except HandCLIPError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("Interrupted. What was being trained goes on with --resume.", file=sys.stderr)
        raise

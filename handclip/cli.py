"""The command line: every command parses, calls one function, and prints."""

from handclip.interruption import ending_at_once, interruptible

with ending_at_once():  # they take a tenth of a second, in which Ctrl-C would be answered by a traceback
    import json
    import logging
    import os
    import shlex
    import signal
    import sys
    from collections.abc import Callable, Sequence
    from dataclasses import asdict
    from datetime import datetime
    from pathlib import Path
    from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

    import typer

    from handclip import __version__
    from handclip.console import (
        ConsoleHandler,
        begin_printing,
        end_printing,
        is_of_printing,
        progress_over,
        say,
        show,
        stdout,
        unshown,
    )
    from handclip.errors import ConfigError, DamagedFileError, DataError, HandCLIPError, Interrupted
    from handclip.files import at_home

# Heavy parts are imported inside the commands, so that `handclip --help` answers at once; and before a command's work,
# as a signal during an import by this module ends the process (`interruptible`).
if TYPE_CHECKING:
    from handclip.datasets.pixel_cache import CachedImage
    from handclip.report.report import ReportFiles
    from handclip.studies import StudyResult

logger = logging.getLogger(__name__)


class Program(typer.Typer):
    """A command line that understands `~` in every path, also where the shell does not see it: `--out=~/results`."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        """Register a command, as `typer.Typer.command` does."""
        register = super().command(*arguments, **options)

        def add(function: Any) -> Any:
            for hint in get_type_hints(function, include_extras=True).values():
                kind, *extras = get_args(hint) or (hint,)
                if Path in (kind, *get_args(kind)):
                    for extra in extras:
                        extra.parser = _path_from_home
            return register(function)

        return add


def _path_from_home(text: str) -> Path:
    try:
        return Path(at_home(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


app = Program(
    help="Identify people by photographs of their hands.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache = Program(help="Show or empty the pixel cache, which holds decoded photographs.", no_args_is_help=True)
app.add_typer(cache, name="cache")


def _overrides_to_complete(context: typer.Context, incomplete: str) -> list[str]:
    if context.info_name == "study":  # its keys are those of its sections
        return []
    from handclip.config.completion import overrides

    return [override for override in overrides() if override.startswith(incomplete)]


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the file; may be repeated.",
        autocompletion=_overrides_to_complete,
    ),
]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluations, or folders that hold some.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Evaluate anew, and replace what is there of this or another evaluation.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print all of it as JSON, for programs.")]
DifferentManifests = Annotated[
    bool,
    typer.Option(
        "--different-manifests",
        help="Put runs on different manifests of the same data into blocks of their own; otherwise they are refused.",
    ),
]


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
    """Run all stages and the CNNs beside them on synthetic hands (or on DIR), and compare."""
    from handclip.demo import run_demo

    print_study(lambda: run_demo(data, out, resume=resume), out)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Study file (YAML).")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for everything it writes. [default: studies/<study>]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and run nothing.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only this model; may be repeated.")] = None,
    set_: Overrides = None,
) -> None:
    """Run every experiment of a study that is not done yet, and compare them all."""
    from handclip.config.study import load_study

    config = load_study(file, set_ or [])
    folder = out or Path("studies") / config.study
    from handclip.report.screen import plan_table
    from handclip.studies import missing_places, plan_study, run_study

    plan = plan_study(config, folder, only=only or [], source=str(file))
    if dry_run:
        stdout.print(plan_table(plan))
        for sentence in missing_places(plan):
            show(sentence)
        return
    print_study(lambda: run_study(config, plan, folder), folder)


def print_study(run_all: Callable[[], "StudyResult"], folder: Path) -> None:
    """Run a study, print the comparison and where it is, then fail if a run has failed."""
    from handclip.report.screen import matrix_tables

    result = run_all()
    if result.matrix is not None:
        for table in matrix_tables(result.matrix):
            stdout.print()
            stdout.print(table)
        names = ", ".join(path.name for path in result.files)
        show(f"\nEverything was written to {folder}/: {names}")
    if result.report is not None:
        print_report(result.report)
    result.raise_failures()


@app.command()
def prepare(
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="11k|hd|folder", help="Which data set.", autocompletion=lambda: ["11k", "hd", "folder"]),
    ] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data set lies.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the manifests go.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Leave out and count images and people that are absent or unreadable."),
    ] = False,
    deterministic_gallery: Annotated[
        bool, typer.Option("--deterministic-gallery", help="HD only: the gallery holds each identity's first image.")
    ] = False,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="folder only: how paths say whose a photograph is, as {identity}/{session}/* or {identity}_{n}.jpg. "
            "[default: {identity}/*]",
        ),
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="Check a manifest, or a folder of them, instead.")
    ] = None,
) -> None:
    """Draw the splits of a data set and write them as manifests; or check a manifest."""
    if check is not None:
        if dataset is not None or root is not None or out is not None:
            raise ConfigError("prepare --check takes a manifest and nothing else")
        _check(check)
        return
    from handclip.datasets.preparation import require_known
    from handclip.datasets.prepare import prepare as prepare_dataset
    from handclip.locks import holding
    from handclip.report.screen import split_tables

    if dataset is not None:
        require_known(dataset)
    if dataset is None or root is None or out is None:
        raise ConfigError("prepare needs a data set, --root and --out: handclip prepare 11k --root DIR --out DIR")
    with holding(out), progress_over("reading images") as report:
        prepared = prepare_dataset(
            dataset,
            root,
            out,
            seed=seed,
            allow_missing=allow_missing,
            deterministic_gallery=deterministic_gallery,
            pattern=pattern,
            progress=report,
        )
    for table in split_tables(prepared.manifests):
        stdout.print(table)
    unchanged = " (unchanged)" if prepared.unchanged else ""
    show(f"Manifests, summary.json and dataset_summary.csv are in {out}{unchanged}")


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

    experiment = load_config(config, set_ or [], to_train=True)
    from handclip.runs.train import train as train_experiment

    train_experiment(experiment, resume=resume, stop_after=stop_after)


@app.command()
def evaluate(config: ConfigPath, set_: Overrides = None, overwrite: Overwrite = False) -> None:
    """Evaluate a baseline or a trained model on every draw, gallery and flip setting."""
    evaluate_config(config, set_ or [], overwrite=overwrite)


@app.command()
def compare(
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the comparison's files.")],
    published: Annotated[bool, typer.Option("--published", help="Add the published results, by protocol.")] = False,
    every_block: Annotated[
        bool, typer.Option("--all", help="Show every aspect and flip setting; the files hold them anyway.")
    ] = False,
    different_manifests: DifferentManifests = False,
) -> None:
    """Set evaluated runs side by side, with intervals and tests over people."""
    from handclip.files import require_writable
    from handclip.locks import holding
    from handclip.report.comparison import compare_runs, write_matrix
    from handclip.report.runs import require_all_read
    from handclip.report.screen import matrix_tables

    require_writable(out)
    with holding(out):
        matrix = compare_runs(runs, published=published, different_manifests=different_manifests)
        files = write_matrix(matrix, out)
    for table in matrix_tables(matrix, every_block=every_block, has_all=True):
        stdout.print(table)
        stdout.print()
    show(f"Written to {out}/: {', '.join(path.name for path in files)}")
    require_all_read(matrix.unread, out)


@app.command()
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page, its figures and its tables.")],
    no_photographs: Annotated[
        bool, typer.Option("--no-photographs", help="Leave all photographs out of the page and its figures.")
    ] = False,
    different_manifests: DifferentManifests = False,
) -> None:
    """Show what was learned: one page to open in a browser, its figures and its tables."""
    from handclip.report.report import write_report

    files = write_report(runs, out, with_photographs=not no_photographs, different_manifests=different_manifests)
    print_report(files)
    if files.fault:
        raise HandCLIPError(files.fault)


@app.command()
def project(
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures and tables.")],
) -> None:
    """Draw the embedding space of runs side by side: t-SNE and PCA of the same people."""
    from handclip.report.project import project_runs

    _print_files(project_runs(runs, out), out)


@app.command()
def explain(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A trained model: saved_models/<run>.pth.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures and maps.")],
) -> None:
    """Show where a model looks in photographs: attention rollout or Grad-CAM."""
    from handclip.report.explain import explain_to_files

    _print_files(explain_to_files(checkpoint, images, out), out)


@app.command()
def audit(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of evaluations, trainings or studies, or folders that hold some; checkpoints; manifests.",
        ),
    ],
    no_images: Annotated[bool, typer.Option("--no-images", help="Leave the images of manifests unread.")] = False,
    every_finding: Annotated[
        bool, typer.Option("--all", help="List what matches, too, instead of counting it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute hashes, and metrics from stored features, and say what no longer matches."""
    from handclip.audit import audit as audit_runs
    from handclip.report.screen import audit_summary, audit_tables

    with progress_over("reading images") as report:
        audits = audit_runs(runs, images=not no_images, report=report)
    if as_json:
        _print_json([one.to_dict() for one in audits])
    else:
        for table in audit_tables(audits, every_finding=every_finding):
            stdout.print(table)
        show(audit_summary(audits))
    failed = any(not one.holds or one.kind == "folder" for one in audits)
    if failed or not any(one.checked for one in audits):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this installation: versions, operators, precision, devices, write access, hub; and say what to do."""
    from handclip.doctor import examine
    from handclip.report.screen import doctor_table

    checks = examine()
    if as_json:
        _print_json([asdict(check) for check in checks])
    else:
        stdout.print(doctor_table(checks))
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    show(json.dumps(value, indent=2, ensure_ascii=False))


@cache.command("info")
def cache_info(as_json: AsJson = False) -> None:
    """Show where decoded photographs are kept, how many, of which sizes, and since when unused."""
    from handclip.config.experiment import RuntimeConfig
    from handclip.datasets.pixel_cache import PixelCache, pixel_folder

    images = PixelCache(folder := pixel_folder(), limit_bytes=0).images()
    gib = RuntimeConfig().pixel_cache_gib
    if as_json:
        kinds = [{"kind": kind, **_facts(of_kind)} for kind, of_kind in _by_kind(images)]
        _print_json({"folder": str(folder), "default_limit_gib": gib, **_facts(images), "kinds": kinds})
        return
    show(f"Pixel cache: {folder}")
    show(f"Holds {_amount(images)}; its limit is {gib:g} GiB where an experiment does not set pixel_cache_gib.")
    for kind, of_kind in _by_kind(images):
        show(f"  {kind}: {_amount(of_kind)}, oldest use {_facts(of_kind)['oldest_use']}")
    if images:
        show(
            "These are photographs of hands, at the size that models see them. Only your user account can open the "
            "files;\n`handclip cache clear` removes them."
        )


@cache.command("clear")
def cache_clear() -> None:
    """Remove all decoded photographs; runs that are under way decode theirs anew."""
    from handclip.datasets.pixel_cache import PixelCache, pixel_folder

    removed = PixelCache(folder := pixel_folder(), limit_bytes=0).clear()
    show(f"Removed {_amount(removed)} from {folder}. Manifests, in {folder.with_name('manifests')}, are kept.")


def _by_kind(images: Sequence["CachedImage"]) -> list[tuple[str, list["CachedImage"]]]:
    """Sort cached images by size, interpolation and decoding."""
    kinds = sorted({image.kind for image in images})
    return [(kind, [image for image in images if image.kind == kind]) for kind in kinds]


def _facts(images: Sequence["CachedImage"]) -> dict[str, int | str | None]:
    oldest = min((image.used for image in images), default=None)
    return {
        "images": len(images),
        "bytes": sum(image.bytes for image in images),
        "oldest_use": None if oldest is None else datetime.fromtimestamp(oldest).isoformat(" ", "minutes"),
    }


def _amount(images: Sequence["CachedImage"]) -> str:
    from handclip.plurals import counted

    size = sum(image.bytes for image in images) / 2**20
    return f"{counted(len(images), 'image')} ({size:,.1f} MiB)"


def print_report(files: "ReportFiles") -> None:
    """Print where a report is."""
    count = f"{len(files.figures)} figure files and {len(files.tables)} tables beside it"
    show(f"Report: {files.page} ({count})")


def _print_files(files: Sequence[Path], out: Path) -> None:
    names = ", ".join(str(path.relative_to(out)) for path in files)
    show(f"Written to {out}/: {names}")


def evaluate_config(path: Path, overrides: Sequence[str], *, overwrite: bool = False) -> None:
    """Evaluate and print; `run_eval_clip.py` does the same."""
    from handclip.config.loading import load_config, load_trained_config

    experiment, trained = load_config(path, overrides), load_trained_config(path, overrides)
    from handclip.file_names import EVALUATION_LOG
    from handclip.files import as_text
    from handclip.parallel.launching import is_first_launched
    from handclip.report.evaluation_log import evaluation_text, is_logged, write_evaluation_log
    from handclip.runs.evaluate import evaluate as evaluate_experiment
    from handclip.runs.evaluated_model import choose_model
    from handclip.runs.provenance import other_code, read_provenance

    evaluation = evaluate_experiment(choose_model(experiment, trained), overwrite=overwrite, reuse=True)
    if not is_first_launched():
        return
    facts = {"Config": as_text(path)}
    log = f"Log: {evaluation.folder}/{EVALUATION_LOG}\n"
    # What was there may be in an archive; a kill can have left it without its log, or with the log of another.
    if not (evaluation.was_there and is_logged(evaluation.folder, evaluation.metrics)):
        try:
            write_evaluation_log(evaluation.folder, evaluation.metrics, facts)
        except HandCLIPError as error:
            if not evaluation.was_there:
                raise
            logger.warning(f"The log of this evaluation is missing, and cannot be made anew: {error}")
            log = ""
    show(evaluation_text(evaluation.metrics, facts))
    show(
        f"{log}For programs: {evaluation.folder}/metrics.json, cost.json, per_split.csv, per_query.csv\n"
        f"To look at it: handclip report {shlex.quote(str(evaluation.folder))} --out report"
    )
    if evaluation.was_there:
        try:
            maker = other_code(read_provenance(evaluation.folder) or {})
        except DamagedFileError as error:
            maker = str(error)
        show(
            f"{evaluation.folder} held this evaluation already, whole and as it was written, so nothing was computed. "
            f"--overwrite evaluates anew. {maker}".rstrip()
        )


def _check(place: Path) -> None:
    from handclip.datasets.check import check_manifest, find_manifest_files
    from handclip.datasets.duplicates import describe_copies
    from handclip.datasets.manifest import Manifest

    faults: list[str] = []
    for path in find_manifest_files(place):
        try:
            manifest = Manifest.load(path)
            breaches = check_manifest(manifest)
        except DataError as error:
            faults.append(str(error))
            continue
        faults += [f"{path}: {breach}" for breach in breaches]
        for sentence in describe_copies(manifest):
            logger.warning(f"{path}: {sentence}.")
        if not breaches:
            counts = f"{len(manifest.images):,} images, {len(manifest.draws)} draws"
            show(f"{path}: {counts}: keeps to the protocol")
    if faults:
        raise DataError("\n".join(faults))


def set_up_logging() -> None:
    """Print what HandCLIP logs."""
    logger = logging.getLogger("handclip")
    logger.setLevel(logging.INFO)
    logger.handlers = [ConsoleHandler()]


def main() -> None:
    """Run the command line; errors of the user's are one clear message and a non-zero exit code."""
    run(app)


def run(command: typer.Typer) -> None:
    """Run a command line with HandCLIP's way of reporting errors, and of a screen that cannot be written to."""
    # Figures go to files, in the processes that this one starts too. A notebook names a backend of its own, which need
    # not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    begin_printing()
    code = _exit_code(command)
    end_printing()
    fault = unshown()
    # Who closes a pipe knows it: no word, and the exit code of programs that SIGPIPE ends. What is usual in Python, 1,
    # would say, of `handclip audit`, that something differs.
    if isinstance(fault, BrokenPipeError):
        code = code or 128 + 13
    elif fault is not None:
        why = f"cannot write to the screen: {fault.strerror or fault}"
        say(f"Error: {why}. What the command writes to files is not affected.")
        end_printing()
        code = code or HandCLIPError.exit_code
    sys.exit(code)


def _exit_code(command: typer.Typer) -> int:
    try:
        with interruptible():
            command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HandCLIPError as error:
        say(f"Error: {error}")
        return error.exit_code
    except OSError as error:  # of a file or folder that was not looked at with more care; others are the program's own
        if error.filename is None and not is_of_printing(error):
            raise
        if error.filename is not None:
            say(f"Error: {error.filename}: {error.strerror or error}")
        return HandCLIPError.exit_code
    except Interrupted as stop:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever is still impatient sees no traceback
        say(" ".join(["Interrupted.", *filter(None, [stop.advice]), _how_to_go_on(command)]))
        return stop.exit_code
    return 0


def _how_to_go_on(command: typer.Typer) -> str:
    program, *words = sys.argv
    known: Any = typer.main.get_command(command)
    if words and hasattr(known, "commands"):
        known = known.commands.get(words[0], known)
    goes_on = any("--resume" in option.opts for option in known.params)
    added = ["--resume"] if goes_on and "--resume" not in words else []
    start = ["python", program] if program.endswith(".py") else ["handclip"]
    if Path(program).name == "__main__.py":
        start = ["python", "-m", "handclip"]
    again = shlex.join([*start, *words, *added])
    return f"To go on, give the same command again{', with --resume' if added else ''}: {again}"

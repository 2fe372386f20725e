"""One page that shows what was learned, with its figures and tables as files beside it."""

import importlib.metadata
import logging
import platform
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from handclip import __version__
from handclip.console import progress_over
from handclip.errors import HandCLIPError
from handclip.files import read_json, require_writable, write_json, write_text
from handclip.locks import holding
from handclip.report.html import render_page
from handclip.report.manifests import require_one_manifest
from handclip.report.matrix import Matrix
from handclip.report.prose import Prose
from handclip.report.report_data import ReportData
from handclip.report.report_writer import Note, ReportWriter, Section
from handclip.report.runs import EvaluatedRun, read_runs
from handclip.report.sections.attention import attention_section
from handclip.report.sections.biometric import biometric_section
from handclip.report.sections.embedding import embedding_section
from handclip.report.sections.groups import groups_section
from handclip.report.sections.provenance import provenance_section
from handclip.report.sections.retrieval import retrieval_section
from handclip.report.sections.training import training_section
from handclip.report.sections.verdict import verdict_section
from handclip.report.selection import gather

logger = logging.getLogger(__name__)

_SECTIONS: Sequence[tuple[str, Callable[[ReportData, ReportWriter], Section]]] = (
    ("verdict", verdict_section),
    ("training", training_section),
    ("retrieval", retrieval_section),
    ("embedding", embedding_section),
    ("attention", attention_section),
    ("biometric", biometric_section),
    ("groups", groups_section),
    ("provenance", provenance_section),
)
_PAGE = "report.html"
_RECORD = "report.json"


@dataclass(frozen=True)
class ReportFiles:
    """The page, the figures and tables beside it, and a sentence for all that was damaged or could not be shown."""

    page: Path
    figures: Sequence[Path]
    tables: Sequence[Path]
    faults: Sequence[str] = ()

    @property
    def fault(self) -> str:
        """What is wrong with the report, and what to do; empty where nothing is."""
        return f"{self.page} was written, but not all of it is sound: {_told(self.faults)}" if self.faults else ""


def write_report(
    paths: Sequence[Path], out: Path, *, with_photographs: bool = True, different_manifests: bool = False
) -> ReportFiles:
    """Write the report of evaluated runs from their files.

    Args:
        paths: folders of evaluations, or folders that hold some (up to three levels down).
        out: gets `report.html`, `figures/`, `tables/` and `report.json`, which lists them. What an earlier report left
            there is replaced.
        with_photographs: whether the page may hold photographs.
        different_manifests: put runs on different manifests of the same data into blocks of their own, with a warning;
            otherwise they are refused.

    Returns:
        The files. What a part of the page is made from may be damaged; the rest is written then, and `fault` says so.

    Raises:
        HandCLIPError: there is no evaluation, what its numbers are taken from is damaged or does not belong together,
            runs were evaluated on different manifests, or `out` cannot be written.
        InUseError: another process writes to `out`.
    """
    require_writable(out)
    runs, unread = read_runs(paths)
    if not different_manifests:
        require_one_manifest(runs)
    return report_evaluations(runs, out, with_photographs=with_photographs, unread=unread)


def report_evaluations(
    runs: Sequence[EvaluatedRun],
    out: Path,
    *,
    matrix: Matrix | None = None,
    with_photographs: bool = True,
    unread: Sequence[str] = (),
) -> ReportFiles:
    """Do what `write_report` does with evaluations that have been read, and perhaps compared; any manifests will do.

    Args:
        runs: the evaluations.
        out: as `write_report`.
        matrix: their comparison, where there is one.
        with_photographs: as `write_report`.
        unread: a sentence for each folder that may not be read, and so is not in the report.

    Raises:
        HandCLIPError: the runs do not belong together, or `out` cannot be written.
        InUseError: another process writes to `out`.
    """
    data = gather(runs, matrix, with_photographs=with_photographs)
    with holding(out):
        return _write(data, runs, unread, out)


def _write(data: ReportData, runs: Sequence[EvaluatedRun], unread: Sequence[str], out: Path) -> ReportFiles:
    before = _files_of_earlier_report(out)
    writer = ReportWriter(out, {run.row.run: run.label for run in data.runs})
    sections: list[Section] = []
    faults: list[str] = []
    with progress_over("writing the report") as report:
        for number, (anchor, make) in enumerate(_SECTIONS):
            report(number, len(_SECTIONS))
            try:
                sections.append(make(data, writer))
            except Exception as error:  # a fault of ours in one part must not cost the others
                section, fault = _not_made(anchor, error)
                sections.append(section)
                faults.append(fault)
    damaged = [*(one for run in runs for one in run.damaged), *(one for run in data.runs for one in run.damaged)]
    faults = list(dict.fromkeys([*unread, *damaged, *faults]))
    words = _words(data, _told(faults) if faults else "")
    page = render_page(words.text("title"), words.paragraphs("lead"), sections, made=_made())
    write_text(out / _PAGE, page)
    names = sorted({str(path.relative_to(out)) for path in writer.files})
    for stale in sorted(before - set(names)):
        try:
            (out / stale).unlink(missing_ok=True)
        except OSError as error:
            raise HandCLIPError(
                f"cannot remove {out / stale}, which an earlier report left: {error.strerror or error}"
            ) from error
    record = {"page": _PAGE, "files": names, "runs": [str(run.folder) for run in runs], "faults": faults}
    write_json(out / _RECORD, record)
    tables = [out / name for name in names if name.startswith("tables/")]
    return ReportFiles(out / _PAGE, [out / name for name in names if name.startswith("figures/")], tables, faults)


def _not_made(anchor: str, error: Exception) -> tuple[Section, str]:
    """Return what stands in the place of a section, and why it could not be made."""
    title = Prose(anchor).text("title")
    if isinstance(error, HandCLIPError):
        fault = str(error)
        logger.warning(f"Report, {title}: {fault}")
    else:
        logger.error(f"Report, {title}: {''.join(traceback.format_exception(error))}")
        fault = (
            f"A fault of HandCLIP's own, which its developers would like to hear of: {type(error).__name__}: {error}"
        )
    section = Section(anchor, title, "This part could not be made.", [Note(fault, "missing")])
    return section, f"the part {title} could not be made: {fault}"


def _told(faults: Sequence[str]) -> str:
    """Return the first fault, and how many more there are."""
    return faults[0] + (f"; and {len(faults) - 1} more, which {_RECORD} lists" if len(faults) > 1 else "")


def _words(data: ReportData, told: str) -> Prose:
    """Return the title and the lead of the page."""
    shown = {run.row.run for run in data.runs}
    others = (block.protocol for block in data.matrix.blocks for row in block.rows if row.run not in shown)
    elsewhere = sorted({f"{protocol.dataset} {protocol.aspect}" for protocol in others})
    known = {"block": data.block, "protocol": data.block.protocol, "runs": len(data.runs)}
    return Prose("page", **known, elsewhere=elsewhere, told=told)


def _made() -> dict[str, str]:
    libraries = ("matplotlib", "scikit-learn", "numpy")
    return {
        "HandCLIP": __version__,
        "Made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "With": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries),
        "Python": platform.python_version(),
    }


def _files_of_earlier_report(out: Path) -> set[str]:
    """Return what an earlier report wrote below `out`, so that no figure of runs that are gone is left."""
    if not (out / _RECORD).is_file():
        return set()
    try:
        names = read_json(out / _RECORD)["files"]
    except (HandCLIPError, KeyError, TypeError):
        return set()
    inside = (out / "figures", out / "tables")
    return {name for name in names if isinstance(name, str) and (out / name).parent in inside}

"""What is shown at the terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from handclip.datasets.file_kinds import describe_counts
from handclip.datasets.manifest import Manifest
from handclip.datasets.summary import split_table
from handclip.plurals import counted
from handclip.report.matrix import METRICS, Block, Matrix, RunRow
from handclip.report.matrix_text import (
    COLUMN_TITLES,
    COST_LEGEND,
    COST_TITLES,
    cost_cells,
    interval_text,
    legend,
    method_text,
    name_cells,
    published_text,
    spread_text,
)
from handclip.report.row_names import differing_options, differs_by, distinguishing_columns
from handclip.report.tables import METRIC_TITLES

if TYPE_CHECKING:  # which take torch along
    from handclip.audit import AuditResult
    from handclip.doctor import Check
    from handclip.runs.study import PlannedRun

_RUN_TITLE = "Stage, model\nlosses"


def split_tables(manifests: Mapping[str, Manifest]) -> Iterator[Table]:
    """Yield a table of the splits of each aspect."""
    for aspect, manifest in manifests.items():
        table = Table(title=f"{manifest.dataset} {aspect}", title_justify="left", title_style="bold")
        table.add_column("Split")
        for title in ("Identities", "Images", "Min (identities)", "Max (identities)", "Imbalance", "Distractors"):
            table.add_column(title, justify="right")
        for row in split_table(manifest):
            table.add_row(
                row.split,
                f"{row.identities:,}",
                f"{row.images:,}",
                f"{row.minimum} ({row.minimum_identities})",
                f"{row.maximum} ({row.maximum_identities})",
                "balanced" if row.balanced else "-" if row.imbalance is None else f"{row.imbalance:.1f}",
                f"{row.distractor_identities:,}",
            )
        counts = (
            (manifest.missing_images, "absent image", "absent images"),
            (manifest.unreadable_images, "unreadable image", "unreadable images"),
            (manifest.copied_images, "copy of another image", "copies of other images"),
            (manifest.unread_identities, "identity of which nothing is read", "identities of which nothing is read"),
            (manifest.empty_identities, "identity without images of its own", "identities without images of their own"),
            (manifest.ignored_files, "other file", "other files"),
        )
        left_out = [counted(number, one, many) for number, one, many in counts if number]
        if left_out := describe_counts(manifest.unread_files) + left_out:
            table.caption = f"Left out: {', '.join(left_out)}"
        yield table


def plan_table(plan: "Sequence[PlannedRun]") -> Table:
    """Return the runs of a study in their order, with how far each has come."""
    table = Table(title=f"{len(plan)} runs", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    numbers = {run.name: number for number, run in enumerate(plan, start=1)}
    for title in (
        "#",
        "Stage",
        "Model",
        "Losses",
        "Data",
        "Seed",
        "Epochs",
        "Goes on from",
        "Also evaluated on",
        "State",
    ):
        table.add_column(title, overflow="fold")
    for number, run in enumerate(plan, start=1):
        trains = run.config.variant == "finetuned"
        start = run.config.resume_from
        table.add_row(
            str(number),
            run.stage,
            run.model,
            run.losses,
            run.data,
            str(run.config.seed),
            str(run.config.epochs) if trains else "-",
            "-" if start is None else str(numbers.get(start.stem, start)),
            ", ".join(f"{other.dataset} {other.aspect}" for other in run.other_data) or "-",
            run.state,
        )
    epochs = sum(
        run.config.epochs for run in plan if run.config.variant == "finetuned" and run.state in ("to do", "begun")
    )
    table.caption = f"{epochs:,} epochs to train"
    table.caption_justify = "left"
    return table


def matrix_tables(matrix: Matrix, *, every_block: bool = False, has_all: bool = False) -> Iterator[RenderableType]:
    """Yield the tables of a comparison, each with its number in the files, label and legend, and one of the costs.

    Which blocks are left out is said below them.

    Args:
        matrix: the comparison.
        every_block: show also the flip setting `none` where there is `sum`, and single aspects of runs that were
            evaluated on several.
        has_all: the command that shows them has an option `--all` for `every_block`.
    """
    shown = dict(enumerate(matrix.blocks, start=1)) if every_block else matrix.main_blocks()
    for number, block in shown.items():
        title = Text(f"{number}. {block.protocol.label}", style="bold")
        yield Group(title, _scores_table(block), Text(" ".join(legend(block)) + "\n"))
    rows = [row for block in shown.values() for row in block.rows]
    if rows:
        yield Group(Text("What the runs cost", style="bold"), *_cost_table(rows))
    if left_out := [number for number in range(1, len(matrix.blocks) + 1) if number not in shown]:
        yield Text(_left_out_text(left_out, has_all))


def _left_out_text(numbers: Sequence[int], has_all: bool) -> str:
    one = len(numbers) == 1
    place = f"the files; --all shows {'it' if one else 'them'} here" if has_all else "comparison.md"
    return f"{'Block' if one else 'Blocks'} {_listed(numbers)} {'is' if one else 'are'} in {place}."


def _listed(numbers: Sequence[int]) -> str:
    """Return numbers in words: 1, 3 and 5 to 20."""
    parts: list[str] = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        first, *more = [number for _, number in run]
        parts += [f"{first} to {more[-1]}"] if len(more) > 1 else map(str, [first, *more])
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _table(names: Sequence[str], numbers: Sequence[str], justify: Literal["left", "right"]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for title in names:
        # A narrow terminal may fold a cell, but never cut it off.
        table.add_column(Text(title), overflow="fold")
    for title in numbers:
        table.add_column(Text(title), overflow="fold", justify=justify)
    return table


def _scores_table(block: Block) -> Table:
    columns = distinguishing_columns(block.rows)
    table = _table(["#", _RUN_TITLE], list(METRIC_TITLES.values()), "left")
    for row in block.rows:
        scores = [_score_cell(row, metric) for metric in METRICS]
        table.add_row(str(row.number), Text(_run_cell(row, columns)), *scores)
    for result in block.published:
        values = [Text(published_text(result, metric)) for metric in METRICS]
        origin = "\n(published, other draws)" if block.rows else ""
        table.add_row("", Text(method_text(result, block) + origin), *values)
    return table


def _run_cell(row: RunRow, columns: Sequence[str]) -> str:
    stage, model, losses, *extra = name_cells(row, columns)
    named = [f"{COLUMN_TITLES[column].lower()}: {text}" for column, text in zip(columns, extra, strict=True)]
    return "\n".join([f"{stage} {model}", losses, *named])


def _score_cell(row: RunRow, metric: str) -> Text:
    score = row.scores[metric]
    first = f"{spread_text(score)} {row.letters.get(metric, '')}".rstrip()
    return Text(f"{first}\n{interval_text(score)}", style="bold" if metric in row.best else "")


def _cost_table(rows: Sequence[RunRow]) -> Iterator[RenderableType]:
    """Yield the table and, below it, the machines that its last column numbers."""
    # Runs on different manifests may have one name, and one run was trained once however often it was evaluated.
    rows = list({(row.run, row.trained_on): row for row in rows}.values())
    columns, rows = _named(rows, differing_options(rows))
    rows = list({(*name_cells(row, columns), *cost_cells(row)): row for row in rows}.values())
    columns, rows = _named(rows, differs_by(rows))
    machines: dict[str, int] = {}
    lines = []
    for row in rows:
        *numbers, hardware = cost_cells(row)
        machine = "-" if hardware == "-" else str(machines.setdefault(hardware, len(machines) + 1))
        lines.append([_run_cell(row, columns), *numbers, machine])
    table = _table([_RUN_TITLE], [*(_broken(title) for title in COST_TITLES[:-1]), "Machine"], "right")
    for line in lines:
        table.add_row(*map(Text, line))
    yield table
    named = [f"Machine {number}: {hardware}." for hardware, number in machines.items()]
    yield Text(" ".join([COST_LEGEND, *named]))


def _named(rows: Sequence[RunRow], texts: Sequence[str]) -> tuple[list[str], list[RunRow]]:
    """Give each row what it differs by, and return the columns that tell them apart now."""
    named = [replace(row, differs_by=text) for row, text in zip(rows, texts, strict=True)]
    return distinguishing_columns(named), named


def _broken(title: str) -> str:
    """Let a title take two lines."""
    return "\n".join(title.rsplit(" ", 1))


_COLOURS = {"matches": "green", "ok": "green", "differs": "bold red", "gone": "bold red", "problem": "bold red"}


def audit_tables(audits: "Sequence[AuditResult]", *, every_finding: bool = False) -> Iterator[RenderableType]:
    """Yield what was found of each run.

    Args:
        audits: of the runs.
        every_finding: list what matches, too, instead of counting it.
    """
    for one in audits:
        matching = one.counts["matches"]
        title = Text(f"{one.kind} {one.place}" + (f": {matching} match" if matching else ""), style="bold")
        shown = [finding for finding in one.findings if every_finding or finding.outcome.value != "matches"]
        table = _table(["File or number", "Outcome", "What was found"], [], "left")
        for finding in shown:
            outcome = Text(finding.outcome, style=_COLOURS.get(finding.outcome, ""))
            table.add_row(Text(finding.what), outcome, Text(finding.found))
        yield Group(title, table, Text()) if shown else title


def audit_summary(audits: "Sequence[AuditResult]") -> Text:
    """Return which runs hold, and in the last line the number of each outcome and why anything was not checked."""
    lines = []
    if audited := [one for one in audits if one.checked]:
        failed = [one for one in audited if not one.holds]
        holds = "all that could be checked matches."
        result = f"{len(failed)} no longer as recorded: {_places(failed)}" if failed else holds
        lines.append(Text(f"{len(audited)} checked: {result}", style="bold red" if failed else "bold"))
    if unchecked := [one for one in audits if not one.checked]:
        lines.append(Text(f"{len(unchecked)} not checked: {_places(unchecked)}", style="bold yellow"))
    of: Counter[str] = Counter()
    for one in audits:
        of.update(one.counts)
    counts = f"{of['matches']} match, {of['differs']} differ, {of['gone']} gone, {of['not checked']} not checked"
    why: dict[str, list[str]] = {}
    for finding in (finding for one in audits for finding in one.findings):
        if finding.outcome.value == "not checked":
            why.setdefault(finding.found, []).append(finding.what)
    reasons = [
        f"{whats[0]}{f' and {len(whats) - 1} more' if len(whats) > 1 else ''}: {reason}"
        for reason, whats in why.items()
    ]
    return Text("\n").join([*lines, Text(f"{counts}: {'; '.join(reasons)}" if reasons else counts)])


def _places(audits: "Sequence[AuditResult]") -> str:
    return ", ".join(str(one.place) for one in audits)


def doctor_table(checks: "Sequence[Check]") -> RenderableType:
    """Return a line for each check of an installation: state, what was checked and found, and what to do."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        found = ". ".join(filter(None, [check.found, check.advice]))
        table.add_row(Text(check.state, style=_COLOURS.get(check.state, "yellow")), Text(check.name), Text(found))
    return table

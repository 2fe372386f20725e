"""What is shown at the terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.box import HEAVY_HEAD
from rich.console import Group, RenderableType
from rich.text import Text

from handclip.datasets.left_out import describe_left_out
from handclip.datasets.manifest import Manifest
from handclip.datasets.summary import split_table
from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.matrix import Matrix, MatrixBlock, RunRow
from handclip.report.matrix_text import (
    COST_COLUMNS,
    COST_LEGEND,
    NAME_COLUMNS,
    cost_record,
    legend,
    method_text,
    published_cells,
    run_record,
    score_cells,
)
from handclip.report.row_names import differing_options, differs_by, distinguishing_columns
from handclip.report.table import Cell, Column, Table, plain_columns, screen_table

if TYPE_CHECKING:  # which take torch along
    from handclip.audit import AuditResult
    from handclip.doctor import Check
    from handclip.runs.study import PlannedRun

_TITLED = {"title_justify": "left", "title_style": "bold", "padding": (0, 1), "show_edge": True}
"""The look of a table with a title above it and a caption below."""

_SPLIT_COLUMNS = (
    Column("split", "Split"),
    Column("identities", "Identities", "{:,}".format, numeric=True),
    Column("images", "Images", "{:,}".format, numeric=True),
    Column("minimum", "Min (identities)", numeric=True),
    Column("maximum", "Max (identities)", numeric=True),
    Column("imbalance", "Imbalance", numeric=True),
    Column("distractor_identities", "Distractors", "{:,}".format, numeric=True),
)
_PLAN_COLUMNS = plain_columns(
    *("#", "Stage", "Model", "Losses", "Data", "Seed", "Epochs", "Goes on from", "Also evaluated on", "State")
)
_RUN_COLUMN = Column("run", "Stage, model\nlosses")


def split_tables(manifests: Mapping[str, Manifest]) -> Iterator[RenderableType]:
    """Yield a table of the splits of each aspect."""
    for aspect, manifest in manifests.items():
        records = [
            {
                **vars(row),
                "minimum": f"{row.minimum} ({row.minimum_identities})",
                "maximum": f"{row.maximum} ({row.maximum_identities})",
                "imbalance": "balanced" if row.balanced else row.imbalance and f"{row.imbalance:.1f}",
            }
            for row in split_table(manifest)
        ]
        look = {**_TITLED, "box": HEAVY_HEAD, "pad_edge": True, "title": f"{manifest.dataset} {aspect}"}
        left_out = describe_left_out([manifest])
        caption = f"Left out: {', '.join(left_out)}" if left_out else None
        yield screen_table(Table(_SPLIT_COLUMNS, records), **look, caption=caption)


def plan_table(plan: "Sequence[PlannedRun]") -> RenderableType:
    """Return the runs of a study in their order, with how far each has come."""
    numbers = {run.name: number for number, run in enumerate(plan, start=1)}
    records = []
    epochs = 0
    for number, run in enumerate(plan, start=1):
        config, start = run.config, run.config.resume_from
        trains = config.variant == "finetuned"
        epochs += config.epochs if trains and run.state in ("to do", "begun") else 0
        records.append(
            {
                "#": number,
                "Stage": run.stage,
                "Model": run.model,
                "Losses": run.losses,
                "Data": run.data,
                "Seed": config.seed,
                "Epochs": config.epochs if trains else None,
                "Goes on from": start and numbers.get(start.stem, start),
                "Also evaluated on": ", ".join(f"{other.dataset} {other.aspect}" for other in run.other_data) or None,
                "State": run.state,
            }
        )
    look = {**_TITLED, "title": f"{len(plan)} runs", "caption_justify": "left"}
    return screen_table(Table(_PLAN_COLUMNS, records), **look, caption=f"{epochs:,} epochs to train")


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
        yield Group(title, screen_table(_scores_table(block)), Text(" ".join(legend(block)) + "\n"))
    if rows := [row for block in shown.values() for row in block.rows]:
        table = _cost_table(rows)
        yield Group(Text("What the runs cost", style="bold"), screen_table(table), Text(table.caption))
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


def _scores_table(block: MatrixBlock) -> Table:
    extra = distinguishing_columns(block.rows)
    records: list[Mapping[str, Any]] = [
        {"row": row.number, "run": _run_text(run_record(row), extra), **score_cells(row)} for row in block.rows
    ]
    origin = "\n(published, other draws)" if block.rows else ""
    records += [
        {"row": "", "run": method_text(result, block) + origin, **published_cells(result)} for result in block.published
    ]
    scores = [Column(metric, title) for metric, title in METRIC_TITLES.items()]
    return Table([Column("row", "#"), _RUN_COLUMN, *scores], records)


def _run_text(record: Mapping[str, Any], extra: Sequence[str]) -> str:
    named = [f"{column.title.lower()}: {column.cell(record).text}" for column in (NAME_COLUMNS[name] for name in extra)]
    return "\n".join([f"{record['stage']} {record['model']}", record["losses"], *named])


def _cost_table(rows: Sequence[RunRow]) -> Table:
    """Return what each run costs; the machines that the last column numbers are in the caption."""
    # Runs on different manifests may have one name, and one run was trained once however often it was evaluated.
    rows = list({(row.run, row.trained_on): row for row in rows}.values())
    texts = _run_texts(rows, differing_options(rows))
    costs = [tuple(column.cell(cost_record(row)).text for column in COST_COLUMNS) for row in rows]
    rows = list({(text, cost): row for text, cost, row in zip(texts, costs, rows, strict=True)}.values())
    machines: dict[str, int] = {}
    records = []
    for row, text in zip(rows, _run_texts(rows, differs_by(rows)), strict=True):
        record = cost_record(row)
        hardware = record["hardware"]
        machine = machines.setdefault(hardware, len(machines) + 1) if hardware else None
        records.append({**record, "run": text, "hardware": machine})
    columns = [replace(column, title="\n".join(column.title.rsplit(" ", 1))) for column in COST_COLUMNS[:-1]]
    named = [f"Machine {number}: {hardware}." for hardware, number in machines.items()]
    last = Column("hardware", "Machine", numeric=True)
    return Table([_RUN_COLUMN, *columns, last], records, " ".join([COST_LEGEND, *named]))


def _run_texts(rows: Sequence[RunRow], differing: Sequence[str]) -> list[str]:
    """Return what rows are called that differ by this, with the columns that tell them apart now."""
    named = [row.model_copy(update={"differs_by": text}) for row, text in zip(rows, differing, strict=True)]
    extra = distinguishing_columns(named)
    return [_run_text(run_record(row), extra) for row in named]


_AUDIT_COLUMNS = plain_columns("File or number", "Outcome", "What was found")
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
        records = [
            {
                "File or number": finding.what,
                "Outcome": Cell(finding.outcome, style=_COLOURS.get(finding.outcome, "")),
                "What was found": finding.found,
            }
            for finding in shown
        ]
        yield Group(title, screen_table(Table(_AUDIT_COLUMNS, records)), Text()) if shown else title


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
    of = sum((Counter(one.counts) for one in audits), Counter[str]())
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
    records = [
        {
            "State": Cell(check.state, style=_COLOURS.get(check.state, "yellow")),
            "What": check.name,
            "Found": ". ".join(filter(None, [check.found, check.advice])),
        }
        for check in checks
    ]
    table = Table(plain_columns("State", "What", "Found"), records)
    return screen_table(table, box=None, show_header=False, padding=(0, 2, 0, 0))

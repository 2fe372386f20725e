"""The first section: which run is best, by how much, and whether the difference is real."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from handclip.metrics.uncertainty import FEW_PEOPLE, LEVEL
from handclip.report.comparison import write_matrix
from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.matrix import Difference, MatrixBlock, RunRow, best_of_clip_and_cnn, merit
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
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import ReportWriter, Section, SectionWriter, Text
from handclip.report.row_names import distinguishing_columns
from handclip.report.table import Cell, Column, Table


def verdict_section(data: ReportData, writer: ReportWriter) -> Section:
    """Say it in words, then show the matrix of `handclip compare`."""
    page = writer.section("verdict")
    writer.files.extend(write_matrix(data.matrix, writer.folder / "tables"))
    main = data.matrix.main_blocks()
    # What the figures are about comes first.
    ordered = sorted(main.items(), key=lambda item: (item[1] != data.block, item[0]))
    measured = [block for _, block in ordered if block.rows]

    for block in measured:
        page.words("verdict", **_verdict(block))
        if len(block.rows) > 1:
            _differences_table(block, page)
    page.words("cautions", **_cautions(measured))
    for number, block in ordered:
        page.words("matrix", block=block)
        page.add(_matrix_table(block, page.prose.text("matrix_table", block=block, number=number)))
        page.add(Text(" ".join(legend(block))))
    page.words("costs")
    rows = {row.run: row for _, block in ordered for row in block.rows}
    page.add(_cost_table(rows.values(), data.runs))
    return page.finished()


def _verdict(block: MatrixBlock) -> dict[str, Any]:
    """Return what the words on one block speak of: its best run, how others differ, and CLIP against the CNN."""
    best, *others = _by_merit(block)
    unsure = [row for row in others if not _is_significant(_difference(block, best, row))]
    clip, cnn = best_of_clip_and_cnn(block.rows)
    return {
        "block": block,
        "protocol": block.protocol,
        "best": best,
        "others": len(others),
        "unsure": sorted(row.number for row in unsure),
        "clip": clip,
        "cnn": cnn,
        "clip_and_cnn": _difference(block, clip, cnn) if clip is not None and cnn is not None else None,
        "named": _named,
        "points": _points,
        "is_significant": _is_significant,
    }


def _cautions(blocks: Sequence[MatrixBlock]) -> dict[str, Any]:
    people = min((block.people for block in blocks), default=FEW_PEOPLE)
    same = []
    for block in blocks:
        by_scores: dict[tuple[float, ...], list[int]] = {}
        for row in block.rows:
            by_scores.setdefault(tuple(score.mean for score in row.scores.values()), []).append(row.number)
        same += [(numbers, block) for numbers in by_scores.values() if len(numbers) > 1]
    return {
        "few_people": people if people < FEW_PEOPLE else None,
        "several_runs": any(len(block.rows) > 1 for block in blocks),
        "trained_once": all(len({row.seed for row in block.rows}) == 1 for block in blocks),
        "same": same,
    }


def _by_merit(block: MatrixBlock) -> list[RunRow]:
    return sorted(block.rows, key=merit, reverse=True)


def _differences_table(block: MatrixBlock, page: SectionWriter) -> None:
    """Show the comparisons that people ask about first."""
    best, *others = _by_merit(block)
    compared: dict[int, tuple[str, RunRow]] = {}
    for wanted, row in _references(best, others):
        compared.setdefault(row.number, (wanted, row))
    rows = []
    for wanted, row in compared.values():
        found = _difference(block, best, row)
        answer = "significant" if _is_significant(found) else "no difference shown"
        named = {"against": f"{wanted}: {_named(row)}", "answer": answer, "points": _points(found)}
        rows.append({**named, "p": found.p, "p_holm": found.p_holm})
    columns = [
        Column("against", f"Run {best.number} against"),
        Column("answer", "At 5 %"),
        Column("points", "Rank-1, points", numeric=True),
        Column("p", "p alone", "{:.2g}".format, numeric=True),
        Column("p_holm", "p corrected", "{:.2g}".format, numeric=True),
    ]
    page.table("differences", columns, rows, block=block)


def _references(best: RunRow, others: Sequence[RunRow]) -> Iterator[tuple[str, RunRow]]:
    """Yield what the best run should be held against: the next, the best of other models, and its own other stages."""
    yield "the next", others[0]
    if peers := [row for row in others if row.model != best.model and row.losses]:
        yield "the best of another model", peers[0]
    own = {"2": "its own stage 2", "1": "its own stage 1", "0": "its own model untrained"}
    for stage, words in own.items():
        same = [row for row in others if row.model == best.model and row.stage == stage]
        if same and best.stage != stage:
            yield words, same[0]


def _points(found: Difference) -> str:
    return f"{100 * found.difference:+z.1f} [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"


def _named(row: RunRow) -> str:
    """Return how a row is called in a sentence."""
    return f"run {row.number} ({_recipe(row)})"


def _recipe(row: RunRow) -> str:
    losses = row.losses_text if row.losses else ""
    return ", ".join(part for part in (row.model, f"stage {row.stage}", losses, row.differs_by) if part)


def _is_significant(found: Difference) -> bool:
    return found.p_holm < LEVEL


def _difference(block: MatrixBlock, best: RunRow, other: RunRow) -> Difference:
    for one in block.differences:
        if one.metric == "rank1" and {one.first, one.second} == {best.number, other.number}:
            if one.first == best.number:
                return one
            return Difference(
                one.metric, best.number, other.number, -one.difference, -one.high, -one.low, one.p, one.p_holm
            )
    raise AssertionError(f"rows {best.number} and {other.number} were not compared")


def _matrix_table(block: MatrixBlock, caption: str) -> Table:
    extra = distinguishing_columns(block.rows)
    columns = [
        Column("name", "Run"),
        *(NAME_COLUMNS[name] for name in extra),
        *(Column(metric, title, numeric=True) for metric, title in METRIC_TITLES.items()),
    ]
    records: list[dict[str, Any]] = []
    for row in block.rows:
        name = f"{row.number}. stage {row.stage} {row.model}\n{row.losses_text}"
        records.append({**run_record(row), "name": name, **score_cells(row)})
    for result in block.published:
        name = f"{method_text(result, block)}\npublished, other draws"
        records.append({**dict.fromkeys(extra, Cell("")), "name": name, **published_cells(result)})
    return Table(columns, records, caption)


def _cost_table(rows: Iterable[RunRow], runs: Sequence[ReportRun]) -> Table:
    labels = {run.row.run: run.label for run in runs}
    records = [{**cost_record(row), "label": labels.get(row.run) or _recipe(row)} for row in rows]
    *numbers, hardware = COST_COLUMNS
    return Table([Column("label", "Run"), *numbers, replace(hardware, numeric=False)], records, COST_LEGEND)

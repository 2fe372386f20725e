"""The first section: which run is best, by how much, and whether the difference is real."""

from collections.abc import Iterator, Sequence
from typing import Any

from handclip.metrics.uncertainty import FEW_PEOPLE, LEVEL
from handclip.report.comparison import write_matrix
from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.matrix import METRICS, Difference, RunRow, best_of_clip_and_cnn, merit
from handclip.report.matrix import MatrixBlock as Block
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
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import Column, ReportWriter, Section, SectionWriter, Table, Text
from handclip.report.row_names import distinguishing_columns


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
    page.add(_cost_table(list(rows.values()), data.runs))
    return page.finished()


def _verdict(block: Block) -> dict[str, Any]:
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


def _cautions(blocks: Sequence[Block]) -> dict[str, Any]:
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


def _by_merit(block: Block) -> list[RunRow]:
    return sorted(block.rows, key=merit, reverse=True)


def _differences_table(block: Block, page: SectionWriter) -> None:
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


def _difference(block: Block, best: RunRow, other: RunRow) -> Difference:
    for one in block.differences:
        if one.metric == "rank1" and {one.first, one.second} == {best.number, other.number}:
            if one.first == best.number:
                return one
            return Difference(
                one.metric, best.number, other.number, -one.difference, -one.high, -one.low, one.p, one.p_holm
            )
    raise AssertionError(f"rows {best.number} and {other.number} were not compared")


def _matrix_table(block: Block, caption: str) -> Table:
    extra = distinguishing_columns(block.rows)
    titles = ["Run", *(COLUMN_TITLES[column] for column in extra), *METRIC_TITLES.values()]
    cells, strong = [], set()
    for line, row in enumerate(block.rows):
        stage, model, losses, *others = name_cells(row, extra)
        names = [f"{row.number}. stage {stage} {model}\n{losses}", *others]
        scores = [row.scores[metric] for metric in METRICS]
        letters = [row.letters.get(metric, "") for metric in METRICS]
        spreads = [f"{spread_text(score)} {text}".rstrip() for score, text in zip(scores, letters, strict=True)]
        cells.append(names + [f"{a}\n{interval_text(b)}" for a, b in zip(spreads, scores, strict=True)])
        strong |= {(line, len(names) + place) for place, metric in enumerate(METRICS) if metric in row.best}
    for result in block.published:
        names = [f"{method_text(result, block)}\npublished, other draws", *[""] * len(extra)]
        cells.append(names + [published_text(result, metric) for metric in METRICS])
    numeric = [False] * (1 + len(extra)) + [True] * len(METRICS)
    return Table(titles, numeric, cells, caption, strong=frozenset(strong))


def _cost_table(rows: Sequence[RunRow], runs: Sequence[ReportRun]) -> Table:
    labels = {run.row.run: run.label for run in runs}
    cells = [[labels.get(row.run) or _recipe(row), *cost_cells(row)] for row in rows]
    numeric = [False, *[True] * (len(COST_TITLES) - 1), False]
    return Table(["Run", *COST_TITLES], numeric, cells, COST_LEGEND)

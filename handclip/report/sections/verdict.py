"""The first section: which run is best, by how much, and whether the difference is real."""

from collections.abc import Iterator, Sequence

from handclip.metrics.uncertainty import LEVEL
from handclip.report.book import Block as PageBlock
from handclip.report.book import Book, Heading, Note, Section, Table, Text
from handclip.report.comparison import write_matrix
from handclip.report.material import Material, ReportRun
from handclip.report.matrix import METRICS, Block, Difference, RunRow
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
from handclip.report.row_names import distinguishing_columns
from handclip.report.tables import METRIC_TITLES

_FEW_PEOPLE = 20


def verdict_section(material: Material, book: Book) -> Section:
    """Say it in words, then show the matrix of `handclip compare`."""
    files = write_matrix(material.matrix, book.folder / "tables")
    book.files.extend(files)
    blocks: list[PageBlock] = []
    main = material.matrix.main_blocks()
    for block in main.values():
        if block.rows:
            blocks.append(Text(" ".join(verdict(block))))
            if len(block.rows) > 1:
                blocks.append(_differences_table(block))
    few = sorted({block.people for block in main.values() if block.rows and block.people < _FEW_PEOPLE})
    if few:
        blocks.append(
            Note(f"Only {few[0]} people were tested. Intervals over so few are too short; see them as the least doubt.")
        )
    for number, block in main.items():
        blocks += [Heading(f"{number}. {block.protocol.label}"), _matrix_table(block), Text(" ".join(legend(block)))]
    rows = list({row.run: row for block in main.values() for row in block.rows}.values())
    blocks += [Heading("What the runs cost"), _cost_table(rows, material.runs)]
    return Section("verdict", "The verdict", "Which run is best, by how much, and is the difference real?", blocks)


def verdict(block: Block) -> Iterator[str]:
    """Yield sentences on one block: its best run, and from which others it differs."""
    best, *others = _by_rank1(block)
    low, high = 100 * best.scores["rank1"].low, 100 * best.scores["rank1"].high
    score = f"{_percent(best)} % of searches (95 % interval {low:.1f} to {high:.1f})"
    found = f"{name(best)} finds the right person first in {score}"
    yield f"{_where(block)}, {found}; its mAP is {_percent(best, 'map')} %."
    if not others:
        yield "It is the only run here, so there is nothing to compare it with."
        return
    unsure = [row for row in others if not _is_significant(_difference(block, best, row))]
    if not unsure:
        yield f"It is significantly better than {_all_of(len(others))}."
    elif len(unsure) == len(others):
        yield f"Chance alone could make it better than any of {_all_of(len(others))}: no difference is shown."
    else:
        numbers = ", ".join(str(row.number) for row in sorted(unsure, key=lambda row: row.number))
        yield (
            f"It is significantly better than {len(others) - len(unsure)} of {_all_of(len(others))}; between it and "
            f"run{'s' if len(unsure) > 1 else ''} {numbers} no difference is shown: chance alone could make as much."
        )


def _all_of(others: int) -> str:
    return "the other run" if others == 1 else f"the {others} other runs"


def _by_rank1(block: Block) -> list[RunRow]:
    return sorted(block.rows, key=lambda row: (row.scores["rank1"].mean, row.scores["map"].mean), reverse=True)


def _differences_table(block: Block) -> Table:
    """Return the comparisons that people ask about first."""
    best, *others = _by_rank1(block)
    compared = {others[0].number: "the next"}
    for wanted, row in _references(best, others):
        compared.setdefault(row.number, wanted)
    rows = {row.number: row for row in others}
    cells = []
    for number, wanted in compared.items():
        found = _difference(block, best, rows[number])
        points = f"{100 * found.difference:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        answer = "significant" if _is_significant(found) else "no difference shown"
        cells.append([f"{wanted}: {name(rows[number])}", points, f"{found.p_holm:.2g}", answer])
    pairs = f" (Holm's correction for {block.pairs} pairs of runs)" if block.pairs > 1 else ""
    return Table(
        [f"Run {best.number} against", "Rank-1, points", "p", "At 5 %"],
        [False, True, True, False],
        cells,
        f"By how much the best run is ahead, with the 95 % interval and the p-value of a test over people{pairs}.",
    )


def name(row: RunRow) -> str:
    """Return how a row is called in a sentence."""
    extra = f", {row.differs_by}" if row.differs_by else ""
    return f"run {row.number} ({row.model}, stage {row.stage}{', ' + row.losses_text if row.losses else ''}{extra})"


def _where(block: Block) -> str:
    protocol = block.protocol
    images = ", ".join(map(str, sorted(set(protocol.gallery_images))))
    aspects = "the mean of four aspects" if len(protocol.gallery_images) > 1 else protocol.aspect
    flip = ", each image and its mirror image added" if protocol.flip == "sum" else ""
    rerank = ", re-ranked" if protocol.rerank else ""
    crossed = f", by models trained on {protocol.trained_on}" if protocol.trained_on else ""
    gallery = f"{protocol.gallery_protocol} of {images} images"
    return f"On {protocol.dataset} ({aspects}), {gallery}{flip}{rerank}{crossed}"


def _references(best: RunRow, rows: Sequence[RunRow]) -> Iterator[tuple[str, RunRow]]:
    """Yield what the best run should be held against: the best of other models, and its own model's other stages."""
    others = [row for row in rows if row.model != best.model and row.losses]
    if others:
        yield "the best of another model", others[0]
    for stage, words in (
        ("2", "its own stage 2"),
        ("1", "its own stage 1"),
        ("0", "its own model untrained"),
    ):
        same = [row for row in rows if row.model == best.model and row.stage == stage and row is not best]
        if same and best.stage != stage:
            yield words, same[0]


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


def _percent(row: RunRow, metric: str = "rank1") -> str:
    return f"{100 * row.scores[metric].mean:.1f}"


def _matrix_table(block: Block) -> Table:
    extra = distinguishing_columns(block.rows)
    titles = ["#", "Stage", "Model", "Losses", *(COLUMN_TITLES[column] for column in extra), *METRIC_TITLES.values()]
    cells, strong = [], set()
    for line, row in enumerate(block.rows):
        names = [str(row.number), *name_cells(row, extra)]
        scores = [row.scores[metric] for metric in METRICS]
        letters = [row.letters.get(metric, "") for metric in METRICS]
        spreads = [f"{spread_text(score)} {text}".rstrip() for score, text in zip(scores, letters, strict=True)]
        cells.append(names + [f"{a}\n{interval_text(b)}" for a, b in zip(spreads, scores, strict=True)])
        strong |= {(line, len(names) + place) for place, metric in enumerate(METRICS) if metric in row.best}
    for result in block.published:
        names = ["", "", method_text(result, block), "published, other draws", *[""] * len(extra)]
        cells.append(names + [published_text(result, metric) for metric in METRICS])
    numeric = [False] * (4 + len(extra)) + [True] * len(METRICS)
    return Table(titles, numeric, cells, f"{block.protocol.label}: percent.", strong=frozenset(strong))


def _cost_table(rows: Sequence[RunRow], runs: Sequence[ReportRun]) -> Table:
    labels = {run.row.run: run.label for run in runs}
    named = [labels.get(row.run, f"{name(row)}") for row in rows]
    cells = [[label, *cost_cells(row)] for label, row in zip(named, rows, strict=True)]
    numeric = [False, *[True] * (len(COST_TITLES) - 1), False]
    return Table(["Run", *COST_TITLES], numeric, cells, COST_LEGEND)

"""The first section: which run is best, by how much, and whether the difference is real."""

from collections.abc import Iterator, Sequence

from handclip.metrics.uncertainty import FEW_PEOPLE, LEVEL
from handclip.plurals import counted
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
from handclip.report.report_writer import Block as PageBlock
from handclip.report.report_writer import Heading, Note, ReportWriter, Section, Table, Text
from handclip.report.row_names import distinguishing_columns


def verdict_section(data: ReportData, writer: ReportWriter) -> Section:
    """Say it in words, then show the matrix of `handclip compare`."""
    files = write_matrix(data.matrix, writer.folder / "tables")
    writer.files.extend(files)
    main = data.matrix.main_blocks()
    # What the figures are about comes first.
    ordered = sorted(main.items(), key=lambda item: (item[1] != data.block, item[0]))
    measured = [(number, block) for number, block in ordered if block.rows]
    blocks: list[PageBlock] = []
    for _, block in measured:
        blocks.append(Text(" ".join(verdict(block))))
        if len(block.rows) > 1:
            blocks.append(_differences_table(block))
    blocks += [Note(caution) for caution in _cautions([block for _, block in measured])]
    for number, block in ordered:
        blocks += [Heading(_short(block)), _matrix_table(number, block), Text(" ".join(legend(block)))]
    rows = list({row.run: row for _, block in ordered for row in block.rows}.values())
    blocks += [Heading("What the runs cost"), _cost_table(rows, data.runs)]
    return Section("verdict", "The verdict", "Which run is best, by how much, and is the difference real?", blocks)


def verdict(block: Block) -> Iterator[str]:
    """Yield sentences on one block: its best run, from which others it differs, and CLIP against the CNN."""
    best, *others = _by_merit(block)
    low, high = 100 * best.scores["rank1"].low, 100 * best.scores["rank1"].high
    score = f"{_percent(best)} % of the {block.denominator} (95 % interval {low:.1f} to {high:.1f})"
    found = f"{name(best)} finds the right person first in {score}"
    yield f"{_where(block)}, {found}; its mAP is {_percent(best, 'map')} %."
    if not others:
        yield "It is the only run here, so there is nothing to compare it with."
        return
    unsure = [row for row in others if not _is_significant(_difference(block, best, row))]
    if not unsure:
        yield f"It is significantly better than {_all_of(len(others))}."
    elif len(unsure) == len(others):
        yield f"From {_all_of(len(others))} it does not differ significantly: no difference is shown."
    else:
        numbers = ", ".join(str(row.number) for row in sorted(unsure, key=lambda row: row.number))
        yield (
            f"It is significantly better than {len(others) - len(unsure)} of {_all_of(len(others))}; between it and "
            f"run{'s' if len(unsure) > 1 else ''} {numbers} no difference is shown."
        )
    clip, cnn = best_of_clip_and_cnn(block.rows)
    if clip is not None and cnn is not None:
        one = _difference(block, clip, cnn)
        answer = "a significant difference" if _is_significant(one) else "no significant difference"
        yield (
            f"CLIP against the CNN: the best of either, {name(clip)} and {name(cnn)}, differ by {_points(one)} points "
            f"of Rank-1 (the first minus the second): {answer}."
        )


def _cautions(blocks: Sequence[Block]) -> Iterator[str]:
    few = min((block.people for block in blocks), default=FEW_PEOPLE)
    if few < FEW_PEOPLE:
        yield f"Only {few} people were tested. Intervals over so few are too short; see them as the least doubt."
    if any(len(block.rows) > 1 for block in blocks):
        once = all(len({row.seed for row in block.rows}) == 1 for block in blocks)
        seeds = " Each was trained once, with one seed; another seed may change the order." if once else ""
        yield (
            "The best run is named by the test itself, so its score and its lead owe a part to luck. What is compared "
            f"are these trained models, not their recipes.{seeds}"
        )
    for block in blocks:
        same: dict[tuple[float, ...], list[str]] = {}
        for row in block.rows:
            same.setdefault(tuple(score.mean for score in row.scores.values()), []).append(str(row.number))
        for numbers in same.values():
            if len(numbers) > 1:
                yield f"Runs {' and '.join(numbers)} have the same scores to the last digit ({_short(block)})."


def _all_of(others: int) -> str:
    return "the other run" if others == 1 else f"the {others} other runs"


def _by_merit(block: Block) -> list[RunRow]:
    return sorted(block.rows, key=merit, reverse=True)


def _differences_table(block: Block) -> Table:
    """Return the comparisons that people ask about first."""
    best, *others = _by_merit(block)
    compared = {others[0].number: "the next"}
    for wanted, row in _references(best, others):
        compared.setdefault(row.number, wanted)
    rows = {row.number: row for row in others}
    cells = []
    for number, wanted in compared.items():
        found = _difference(block, best, rows[number])
        answer = "significant" if _is_significant(found) else "no difference shown"
        cells.append(
            [f"{wanted}: {name(rows[number])}", answer, _points(found), f"{found.p:.2g}", f"{found.p_holm:.2g}"]
        )
    caption = (
        "By how much the best run is ahead in Rank-1 (points, with the 95 % interval of this one difference), and the "
        f"p-value of a test over people: alone, and corrected for {counted(block.pairs, 'pair')} of runs (Holm), which "
        "decides. So a difference may not be significant although its interval leaves out 0."
    )
    headings = [f"Run {best.number} against", "At 5 %", "Rank-1, points", "p alone", "p corrected"]
    return Table(headings, [False, False, True, True, True], cells, caption)


def _points(found: Difference) -> str:
    return f"{100 * found.difference:+z.1f} [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"


def name(row: RunRow) -> str:
    """Return how a row is called in a sentence."""
    extra = f", {row.differs_by}" if row.differs_by else ""
    return f"run {row.number} ({row.model}, stage {row.stage}{', ' + row.losses_text if row.losses else ''}{extra})"


def _where(block: Block) -> str:
    protocol = block.protocol
    images = ", ".join(map(str, sorted(set(protocol.gallery_images))))
    aspects = "the mean of four aspects" if len(protocol.gallery_images) > 1 else protocol.aspect
    flip = ", the features of each image and its mirror image added" if protocol.flip == "sum" else ""
    rerank = ", re-ranked" if protocol.rerank else ""
    crossed = f", by models trained on {protocol.trained_on}" if protocol.trained_on else ""
    gallery = f"{protocol.gallery_protocol} of {images} images"
    return f"On {protocol.dataset} ({aspects}), {gallery}{flip}{rerank}{crossed}"


def _short(block: Block) -> str:
    """Return a heading that tells the blocks of a report apart."""
    protocol = block.protocol
    data = f"{protocol.dataset} {protocol.aspect}: " if protocol.aspect != "all" else f"{protocol.dataset}: "
    images = " or ".join(map(str, sorted(set(protocol.gallery_images))))
    extras = [f"flip {protocol.flip}"] if protocol.flip != "sum" else []
    extras += ["re-ranked"] if protocol.rerank else []
    extras += [f"trained on {protocol.trained_on}"] if protocol.trained_on else []
    extras += ["published results"] if not block.rows else []
    return ", ".join([f"{data}{protocol.gallery_protocol} of {images} images", *extras])


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


def _matrix_table(number: int, block: Block) -> Table:
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
    caption = f"{block.protocol.label}. This is block {number} of tables/comparison.csv."
    return Table(titles, numeric, cells, caption, strong=frozenset(strong))


def _cost_table(rows: Sequence[RunRow], runs: Sequence[ReportRun]) -> Table:
    labels = {run.row.run: run.label for run in runs}
    named = [labels.get(row.run, name(row).removeprefix(f"run {row.number} ").strip("()")) for row in rows]
    cells = [[label, *cost_cells(row)] for label, row in zip(named, rows, strict=True)]
    numeric = [False, *[True] * (len(COST_TITLES) - 1), False]
    return Table(["Run", *COST_TITLES], numeric, cells, COST_LEGEND)

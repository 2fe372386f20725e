"""A comparison as Markdown, LaTeX and CSV."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from handclip.csv_files import csv_text
from handclip.metrics.uncertainty import (
    EXACT_UP_TO,
    LEVEL,
    PERMUTATIONS,
    REPLICATES,
    permutations_for,
    smallest_corrected_p,
)
from handclip.plurals import counted
from handclip.report.matrix import METRICS, TESTED, Block, Cost, Matrix, Protocol, RunRow, Score
from handclip.report.published import PublishedResult
from handclip.report.row_names import distinguishing_columns
from handclip.report.tables import METRIC_TITLES

CONVERTED = "†"
"""Marks a published value that was converted from the other convention of AP."""

COST_TITLES = (
    "Embedding",
    "Parameters (M)",
    "GFLOPs per image",
    "Training s",
    "Training images/s",
    "Peak memory (MiB)",
    "Hardware",
)
COLUMN_TITLES = {"seed": "Seed", "trained_on": "Trained on", "differs_by": "Differs by"}


@dataclass(frozen=True)
class Cell:
    """Text of a table, and whether it is the best of its column."""

    text: str
    best: bool = False


def score_text(score: Score, letters: str = "") -> str:
    """Return percent: mean, standard deviation, interval and letters."""
    return f"{spread_text(score)} {interval_text(score)} {letters}".rstrip()


def spread_text(score: Score) -> str:
    """Return mean and standard deviation in percent."""
    spread = "" if score.std is None else f" ± {100 * score.std:.1f}"
    return f"{100 * score.mean:.1f}{spread}"


def interval_text(score: Score) -> str:
    """Return the interval in percent."""
    return f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"


def published_text(result: PublishedResult, metric: str) -> str:
    """Return a published value in percent, marked where it was converted."""
    value = result.scores[metric]
    if value is None:
        return "-"
    percent = (100 * Decimal(str(value))).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{percent}{CONVERTED if metric == result.converted else ''}"


def method_text(result: PublishedResult, block: Block) -> str:
    """Return a published method's name, with the number of its note in the legend."""
    return f"{result.method} [{_notes(block).index(result.note) + 1}]" if result.note else result.method


def _notes(block: Block) -> list[str]:
    return list(dict.fromkeys(result.note for result in block.published if result.note))


def name_cells(row: RunRow, columns: Sequence[str]) -> list[str]:
    """Return stage, model and losses, and of `seed`, `trained_on` and `differs_by` those asked for."""
    extra = {"seed": str(row.seed), "trained_on": str(row.trained_on or "-"), "differs_by": row.differs_by or "-"}
    return [row.stage, row.model, row.losses_text, *(extra[column] for column in columns)]


def cost_cells(row: RunRow) -> list[str]:
    """Return what a run costs; `-` where no file says it."""
    cost = row.cost
    return [
        f"{row.feature_dim:,}",
        f"{row.parameters / 1e6:,.1f}",
        _number(row.gflops_per_image, ",.2f"),
        _number(cost.training_seconds, ",.0f"),
        _number(cost.training_images_per_second, ",.0f"),
        _memory(cost),
        cost.hardware or "-",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _memory(cost: Cost) -> str:
    gpu = "" if cost.peak_gpu_memory_mib is None else f" + {cost.peak_gpu_memory_mib:,.0f} GPU"
    return _number(cost.peak_memory_mib, ",.0f") + gpu


def legend(block: Block) -> list[str]:
    """Return one sentence for each thing in the table that needs one."""
    sentences = [f"Percent of the {block.denominator}."]
    if block.rows:
        draws = block.protocol.draws
        spread = f"±: standard deviation over the {draws} draws." if draws > 1 else "One draw has no ±."
        sentences[0] += (
            f" {spread} [..]: {1 - LEVEL:.0%} interval over people (BCa bootstrap, {REPLICATES:,} resamples of the "
            f"{block.people} people with queries)."
        )
    if block.pairs:
        sentences += _tests_legend(block)
        sentences.append("Bold: the best mean of this block, which need not differ significantly from the next.")
    if unfinished := [str(row.number) for row in block.rows if row.training_ended is False]:
        sentences.append(
            f"Evaluated before training had ended, by the best model until then: row {', '.join(unfinished)}. Evaluate "
            "again what has ended since."
        )
    if tied := [f"{row.tied_queries:,} of row {row.number}" for row in block.rows if row.tied_queries]:
        sentences.append(
            "Ties count against a run. Queries of all draws in which a wrong image scores the same as the best right "
            f"one: {', '.join(tied)}."
        )
    if copied := sorted({row.copied_queries for row in block.rows if row.copied_queries}):
        sentences.append(
            "Queries of all draws of which the gallery holds the very same photograph, whose rank says nothing of a "
            f"model: {' or '.join(f'{count:,}' for count in copied)}."
        )
    if len({row.seed for row in block.rows}) > 1:
        sentences.append("Each row is one trained model; what is tested is these models, not their recipes over seeds.")
    if block.published:
        sentences.append("Published rows: other draws, neither ranked nor tested here.")
    if any(result.converted for result in block.published):
        sentences.append(f"{CONVERTED}: converted by mAP trapezoid = (Rank-1 + mAP) / 2.")
    sentences += [f"[{number}] {note}" for number, note in enumerate(_notes(block), start=1)]
    return sentences


def _tests_legend(block: Block) -> Iterator[str]:
    pairs = counted(block.pairs, "pair")
    lettered = [metric for metric in TESTED if any(metric in row.letters for row in block.rows)]
    test = f" ({_permutations_text(block)} that swap whole people; Holm's correction over {pairs})"
    if lettered:
        yield f"Runs that share a letter do not differ significantly at {LEVEL:.0%}{test}."
    if len(lettered) < len(TESTED):
        titles = " and ".join(METRIC_TITLES[metric] for metric in TESTED if metric not in lettered)
        yield f"{titles}: too many letters to be read; differences.csv tests every pair{'' if lettered else test}."
    if smallest_corrected_p(block.people, block.pairs) >= LEVEL:
        yield f"With {block.people} people and {pairs} no difference can be significant."


def _permutations_text(block: Block) -> str:
    if block.people <= EXACT_UP_TO:
        return f"all {2**block.people:,} permutations"
    most = permutations_for(block.pairs)
    more = f", up to {most:,} where those leave it open," if most > PERMUTATIONS else ""
    return f"{PERMUTATIONS:,} permutations{more}"


COST_LEGEND = (
    "GFLOPs: multiplications and additions, each counted. Parameters: of the encoder. Training seconds: of the "
    "training steps of this stage."
)


def matrix_markdown(matrix: Matrix) -> str:
    """Return the comparison for reading: a table and its legend for each block, then the files it was made from."""
    parts = ["# Comparison"]
    for number, block in enumerate(matrix.blocks, start=1):
        lines = [[cell.text if not cell.best else f"**{cell.text}**" for cell in line] for line in _lines(block)]
        parts += [
            f"## {number}. {block.protocol.label}",
            _markdown_table(_titles(block), lines, left=_left_columns(block)),
            " ".join([*legend(block), *([COST_LEGEND] if block.rows else [])]),
        ]
    parts += ["## Sources", _markdown_table(["Rows", "Run", "Files"], list(_sources(matrix)), left=3)]
    return "\n\n".join(parts) + "\n"


def _sources(matrix: Matrix) -> Iterator[list[str]]:
    """Yield a line for each run, with all its rows, and one for each published result."""
    rows: dict[tuple[str, str], list[str]] = {}
    for number, block in enumerate(matrix.blocks, start=1):
        for row in block.rows:
            files = ", ".join(map(_code, row.files.values()))
            rows.setdefault((_code(row.run), files), []).append(f"{number}.{row.number}")
        for result in block.published:
            rows.setdefault((result.method, f"{result.source}. {result.note}".rstrip()), []).append(str(number))
    for (name, files), numbers in rows.items():
        yield [", ".join(numbers), name, files]


def _markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(titles) - left)
    escaped = [[_markdown_cell(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(titles), rule, *escaped])


def _markdown_cell(text: str) -> str:
    """Return text that stays in its cell and brings no HTML; what stands between backticks is shown as it is."""
    *pairs, last = re.split(r"(`[^`]*`)", " ".join(text.split("\n")).replace("|", "\\|"))
    return "".join(part if part.startswith("`") and part else part.replace("<", "&lt;") for part in (*pairs, last))


def _code(text: str) -> str:
    """Return text between backticks, of which it keeps none."""
    return f"`{text.replace('`', chr(39))}`"


def _titles(block: Block) -> list[str]:
    extra = [COLUMN_TITLES[name] for name in distinguishing_columns(block.rows)]
    return ["#", "Stage", "Model", "Losses", *extra, *METRIC_TITLES.values(), *COST_TITLES]


def _left_columns(block: Block) -> int:
    return 4 + len(distinguishing_columns(block.rows))


def _lines(block: Block) -> Iterator[list[Cell]]:
    extra = distinguishing_columns(block.rows)
    for row in block.rows:
        names = [str(row.number), *name_cells(row, extra)]
        scores = [
            Cell(score_text(row.scores[metric], row.letters.get(metric, "")), metric in row.best) for metric in METRICS
        ]
        yield [*map(Cell, names), *scores, *map(Cell, cost_cells(row))]
    for result in block.published:
        names = ["", "", method_text(result, block), "published, other draws", *[""] * len(extra)]
        values = [published_text(result, metric) for metric in METRICS]
        yield [Cell(text) for text in (*names, *values, *["-"] * len(COST_TITLES))]


def matrix_latex(matrix: Matrix) -> str:
    """Return one `table` for each block; needs the packages `booktabs` and `graphicx`."""
    parts = [r"% \usepackage{booktabs, graphicx}"]
    for number, block in enumerate(matrix.blocks, start=1):
        titles = _titles(block)
        left = _left_columns(block)
        body = []
        for line in _lines(block):
            texts = [escape_latex(cell.text) for cell in line]
            bold = [rf"\textbf{{{text}}}" if cell.best else text for text, cell in zip(texts, line, strict=True)]
            body.append(" & ".join(bold) + r" \\")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{escape_latex(block.protocol.label)}. {escape_latex(' '.join(legend(block)))}}}",
                    rf"\label{{tab:comparison-{number}}}",
                    r"\resizebox{\linewidth}{!}{%",
                    rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(titles) - left)}}}",
                    r"\toprule",
                    " & ".join(map(escape_latex, titles)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    CONVERTED: r"\textdagger{}",
    # At the start of a line, LaTeX would read a bracket as the option of `\\` before it.
    "[": "{[}",
}


def escape_latex(text: str) -> str:
    """Return text in which no character means anything to LaTeX but itself."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)


_PROTOCOL_COLUMNS: dict[str, Callable[[Protocol], object]] = {
    "dataset": lambda protocol: protocol.dataset,
    "aspect": lambda protocol: protocol.aspect,
    "gallery_protocol": lambda protocol: protocol.gallery_protocol,
    "gallery_images": lambda protocol: " ".join(map(str, protocol.gallery_images)),
    "flip": lambda protocol: protocol.flip,
    "rerank": lambda protocol: " ".join(map(str, protocol.rerank)) if protocol.rerank else "none",
    "draws": lambda protocol: protocol.draws,
    "manifest_sha256": lambda protocol: protocol.manifest_sha256,
    "block_trained_on": lambda protocol: protocol.trained_on,
}


_FILES = ("metrics", "per_query", "cost", "training")
"""Keys of a row's `files`."""


def _protocol_values(protocol: Protocol) -> list[object]:
    return [value(protocol) for value in _PROTOCOL_COLUMNS.values()]


def matrix_csv(matrix: Matrix) -> str:
    """Return a line for each row of every block; metrics are fractions."""
    kinds = ("mean", "std", "low", "high")
    header = [
        *("block", *_PROTOCOL_COLUMNS, "people", "queries", "matched_queries"),
        *("row", "source", "run", "experiment", "stage", "model", "losses", "seed", "trained_on", "differs_by"),
        *("training_ended", "tied_queries", "copied_queries"),
        *(f"{metric}_{kind}" for metric in METRICS for kind in kinds),
        *("rank1_letters", "map_letters", "converted"),
        *("feature_dim", "parameters", "gflops_per_image", "training_seconds", "training_images_per_second"),
        *("peak_memory_mib", "peak_gpu_memory_mib", "precision", "training_hardware"),
        *("embedding_images_per_second", "evaluation_hardware"),
        *(f"{name}_file" for name in _FILES),
        "note",
    ]
    lines: list[list[object]] = []
    for number, block in enumerate(matrix.blocks, start=1):
        matched = " ".join(map(str, block.matched_queries))
        shared = [number, *_protocol_values(block.protocol), block.people or None, block.queries, matched]
        for row in block.rows:
            cost = row.cost
            lines.append(
                [
                    *shared,
                    *(row.number, "run", row.run, row.experiment, row.stage, row.model, row.losses_text, row.seed),
                    *(row.trained_on, row.differs_by, row.training_ended, row.tied_queries, row.copied_queries),
                    *(getattr(row.scores[metric], kind) for metric in METRICS for kind in kinds),
                    *(row.letters.get("rank1"), row.letters.get("map"), None),
                    *(row.feature_dim, row.parameters, row.gflops_per_image),
                    *(cost.training_seconds, cost.training_images_per_second),
                    *(cost.peak_memory_mib, cost.peak_gpu_memory_mib, cost.precision, cost.training_machine),
                    *(cost.embedding_images_per_second, cost.evaluation_machine),
                    *(row.files.get(name) for name in _FILES),
                    None,
                ]
            )
        for result in block.published:
            trained_on = " ".join(result.trained_on) if result.trained_on else None
            lines.append(
                [
                    *(*shared, None, result.source, None, None, None, result.method, None, None, trained_on),
                    *(None, None, None, None),
                    *(value for metric in METRICS for value in (result.scores[metric], None, None, None)),
                    *(None, None, result.converted),
                    *[None] * (11 + len(_FILES)),
                    result.note,
                ]
            )
    return _csv(header, lines)


def differences_csv(matrix: Matrix) -> str:
    """Return a line for each pair of runs of a block and each metric: first minus second, as fractions."""
    header = ["block", *_PROTOCOL_COLUMNS, "people", "metric", "first", "second", "first_run", "second_run"]
    header += ["difference", "low", "high", "p", "p_holm", "pairs"]
    lines: list[list[object]] = []
    for number, block in enumerate(matrix.blocks, start=1):
        for one in block.differences:
            runs = [block.rows[index - 1].run for index in (one.first, one.second)]
            lines.append(
                [
                    *(number, *_protocol_values(block.protocol), block.people),
                    *(one.metric, one.first, one.second, *runs),
                    *(one.difference, one.low, one.high, one.p, one.p_holm, block.pairs),
                ]
            )
    return _csv(header, lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    return csv_text([header, *lines])

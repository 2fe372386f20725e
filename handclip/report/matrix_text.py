"""A comparison in tables and in words: what every form of it shows, and its files in Markdown, LaTeX and CSV."""

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from handclip.csv_files import csv_table
from handclip.metrics.uncertainty import (
    EXACT_UP_TO,
    LEVEL,
    PERMUTATIONS,
    REPLICATES,
    permutations_for,
    smallest_corrected_p,
)
from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.matrix import METRICS, TESTED, Matrix, MatrixBlock, RunRow, Score
from handclip.report.prose import Prose
from handclip.report.protocol import Protocol
from handclip.report.published import PublishedResult
from handclip.report.row_names import distinguishing_columns
from handclip.report.table import Cell, Column, Table, latex_table, markdown_code, markdown_table, plain_columns

CONVERTED = "†"
"""Marks a published value that was converted from the other convention of AP."""

NAME_COLUMNS = {
    "seed": Column("seed", "Seed"),
    "trained_on": Column("trained_on", "Trained on"),
    "differs_by": Column("differs_by", "Differs by", lambda text: text or "-"),
}
"""What tells rows of one stage, model and losses apart."""

COST_COLUMNS = (
    Column("feature_dim", "Embedding", "{:,}".format, numeric=True),
    Column("parameters", "Parameters (M)", lambda number: f"{number / 1e6:,.1f}", numeric=True),
    Column("gflops_per_image", "GFLOPs per image", "{:,.2f}".format, numeric=True),
    Column("training_seconds", "Training s", "{:,.0f}".format, numeric=True),
    Column("training_images_per_second", "Training images/s", "{:,.0f}".format, numeric=True),
    Column("memory", "Peak memory (MiB)", numeric=True),
    Column("hardware", "Hardware", numeric=True),
)
COST_LEGEND = (
    "GFLOPs: multiplications and additions, each counted. Parameters: of the encoder. Training seconds: of the "
    "training steps of this stage."
)


def run_record(row: RunRow) -> dict[str, Any]:
    """Return all of a row for a table, by the columns of `comparison.csv`; metrics are fractions."""
    return {
        "row": row.number,
        "source": "run",
        "run": row.run,
        "experiment": row.experiment,
        "stage": row.stage,
        "model": row.model,
        "losses": row.losses_text,
        "seed": row.seed,
        "trained_on": row.trained_on,
        "differs_by": row.differs_by,
        "training_ended": row.training_ended,
        "tied_queries": row.tied_queries,
        "copied_queries": row.copied_queries,
        **{f"{metric}_{name}": value for metric in METRICS for name, value in vars(row.scores[metric]).items()},
        **{f"{metric}_letters": row.letters.get(metric) for metric in TESTED},
        "converted": None,
        "feature_dim": row.feature_dim,
        "parameters": row.parameters,
        "gflops_per_image": row.gflops_per_image,
        **{name.replace("machine", "hardware"): getattr(row.cost, name) for name in row.cost.model_dump()},
        **{f"{name}_file": row.files.get(name) for name in ("metrics", "per_query", "cost", "training")},
        "note": None,
    }


def cost_record(row: RunRow) -> dict[str, Any]:
    """Return what `COST_COLUMNS` and the columns of names show of a row."""
    cost = row.cost
    memory, gpu = ("" if mib is None else f"{mib:,.0f}" for mib in (cost.peak_memory_mib, cost.peak_gpu_memory_mib))
    return {
        **run_record(row),
        "memory": f"{memory or '-'}{f' + {gpu} GPU' if gpu else ''}",
        "hardware": cost.hardware or None,
    }


def score_texts(score: Score, letters: str) -> tuple[str, str, str]:
    """Return mean and standard deviation in percent, the interval, and letters, where there are any."""
    spread = "" if score.std is None else f" ± {100 * score.std:.1f}"
    return f"{100 * score.mean:.1f}{spread}", f"[{100 * score.low:.1f}, {100 * score.high:.1f}]", letters


def score_cells(row: RunRow) -> dict[str, Cell]:
    """Return each metric of a row in two lines: mean, standard deviation and letters; the interval."""
    cells = {}
    for metric in METRICS:
        spread, interval, letters = score_texts(row.scores[metric], row.letters.get(metric, ""))
        cells[metric] = Cell(f"{f'{spread} {letters}'.rstrip()}\n{interval}", metric in row.best)
    return cells


def published_cells(result: PublishedResult) -> dict[str, Cell]:
    """Return each metric of a published result in percent, marked where it was converted."""
    cells = {}
    for metric, value in result.scores.items():
        if value is None:
            continue
        percent = (100 * Decimal(str(value))).quantize(Decimal("0.01"), ROUND_HALF_UP)
        cells[metric] = Cell(f"{percent}{CONVERTED if metric == result.converted else ''}")
    return cells


def method_text(result: PublishedResult, block: MatrixBlock) -> str:
    """Return a published method's name, with the number of its note in the legend."""
    return f"{result.method} [{_notes(block).index(result.note) + 1}]" if result.note else result.method


def _notes(block: MatrixBlock) -> list[str]:
    return list(dict.fromkeys(result.note for result in block.published if result.note))


def legend(block: MatrixBlock) -> list[str]:
    """Return one sentence for each thing in the table that needs one."""
    lettered = [metric for metric in TESTED if any(metric in row.letters for row in block.rows)]
    return Prose("comparison").paragraphs(
        "legend",
        block=block,
        draws=block.protocol.draws,
        interval=f"{1 - LEVEL:.0%}",
        level=f"{LEVEL:.0%}",
        replicates=REPLICATES,
        permutations=PERMUTATIONS,
        all_permutations=2**block.people if block.people <= EXACT_UP_TO else None,
        most=permutations_for(block.pairs),
        lettered=lettered,
        not_lettered=[METRIC_TITLES[metric] for metric in TESTED if metric not in lettered],
        can_differ=smallest_corrected_p(block.people, block.pairs) < LEVEL,
        unfinished=[row for row in block.rows if row.training_ended is False],
        tied=[row for row in block.rows if row.tied_queries],
        copied=sorted({row.copied_queries for row in block.rows if row.copied_queries}),
        several_seeds=len({row.seed for row in block.rows}) > 1,
        mark=CONVERTED,
        notes=_notes(block),
    )


def matrix_markdown(matrix: Matrix) -> str:
    """Return the comparison for reading: a table and its legend for each block, then the files it was made from."""
    parts = ["# Comparison"]
    for number, block in enumerate(matrix.blocks, start=1):
        parts += [
            f"## {number}. {block.protocol.label}",
            markdown_table(_block_table(block)),
            " ".join([*legend(block), *([COST_LEGEND] if block.rows else [])]),
        ]
    return "\n\n".join([*parts, "## Sources", markdown_table(_sources(matrix))]) + "\n"


def matrix_latex(matrix: Matrix) -> str:
    """Return one `table` for each block; needs the packages `booktabs` and `graphicx`."""
    tables = [
        latex_table(_block_table(block), f"tab:comparison-{number}")
        for number, block in enumerate(matrix.blocks, start=1)
    ]
    return "\n\n".join([r"% \usepackage{booktabs, graphicx}", *tables]) + "\n"


def _block_table(block: MatrixBlock) -> Table:
    """Return a block with a line for each row."""
    extra = distinguishing_columns(block.rows)
    columns = [
        *(Column("row", "#"), Column("stage", "Stage"), Column("model", "Model"), Column("losses", "Losses")),
        *(NAME_COLUMNS[name] for name in extra),
        *(Column(metric, title, numeric=True) for metric, title in METRIC_TITLES.items()),
        *COST_COLUMNS,
    ]
    records: list[Mapping[str, Any]] = []
    for row in block.rows:
        texts = {metric: score_texts(row.scores[metric], row.letters.get(metric, "")) for metric in METRICS}
        scores = {metric: Cell(" ".join(parts).rstrip(), metric in row.best) for metric, parts in texts.items()}
        records.append({**cost_record(row), **scores})
    for result in block.published:
        empty = dict.fromkeys(["row", "stage", *extra], Cell(""))
        named = {"model": method_text(result, block), "losses": "published, other draws"}
        records.append({**empty, **named, **published_cells(result)})
    return Table(columns, records, f"{block.protocol.label}. {' '.join(legend(block))}")


def _sources(matrix: Matrix) -> Table:
    """Return a line for each run, with all its rows, and one for each published result."""
    rows: dict[tuple[str, str], list[str]] = {}
    for number, block in enumerate(matrix.blocks, start=1):
        for row in block.rows:
            files = ", ".join(map(markdown_code, row.files.values()))
            rows.setdefault((markdown_code(row.run), files), []).append(f"{number}.{row.number}")
        for result in block.published:
            rows.setdefault((result.method, f"{result.source}. {result.note}".rstrip()), []).append(str(number))
    records = [{"Rows": ", ".join(numbers), "Run": run, "Files": files} for (run, files), numbers in rows.items()]
    return Table(plain_columns("Rows", "Run", "Files"), records)


def matrix_csv(matrix: Matrix) -> str:
    """Return a line for each row of every block; metrics are fractions."""
    records: list[Mapping[str, Any]] = []
    for number, block in enumerate(matrix.blocks, start=1):
        shared = {
            "block": number,
            **_protocol_record(block.protocol),
            "people": block.people or None,
            "queries": block.queries,
            "matched_queries": " ".join(map(str, block.matched_queries)),
        }
        records += [{**shared, **run_record(row)} for row in block.rows]
        records += [{**shared, **_published_record(result)} for result in block.published]
    return csv_table(records)


def _protocol_record(protocol: Protocol) -> dict[str, Any]:
    return {
        "dataset": protocol.dataset,
        "aspect": protocol.aspect,
        "gallery_protocol": protocol.gallery_protocol,
        "gallery_images": " ".join(map(str, protocol.gallery_images)),
        "flip": protocol.flip,
        "rerank": " ".join(map(str, protocol.rerank)) if protocol.rerank else "none",
        "draws": protocol.draws,
        "manifest_sha256": protocol.manifest_sha256,
        "block_trained_on": protocol.trained_on,
    }


def _published_record(result: PublishedResult) -> dict[str, Any]:
    return {
        "source": result.source,
        "model": result.method,
        "trained_on": result.protocol.trained_on,
        **{f"{metric}_mean": value for metric, value in result.scores.items()},
        "converted": result.converted,
        "note": result.note,
    }


_DIFFERENCE_KEYS = (
    *("metric", "first", "second", "first_run", "second_run"),
    *("difference", "low", "high", "p", "p_holm", "pairs"),
)


def differences_csv(matrix: Matrix) -> str:
    """Return a line for each pair of runs of a block and each metric: first minus second, as fractions."""
    records = []
    for number, block in enumerate(matrix.blocks, start=1):
        shared = {"block": number, **_protocol_record(block.protocol), "people": block.people, "pairs": block.pairs}
        for one in block.differences:
            first, second = (block.rows[place - 1].run for place in (one.first, one.second))
            records.append({**shared, **vars(one), "first_run": first, "second_run": second})
    protocol_keys = _protocol_record(matrix.blocks[0].protocol)
    return csv_table(records, ["block", *protocol_keys, "people", *_DIFFERENCE_KEYS])

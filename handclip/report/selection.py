"""Which of many runs a report goes into, and in what colours."""

import textwrap
from collections.abc import Sequence

from handclip.report.comparison import compare_evaluations
from handclip.report.figures.style import MOST_SERIES
from handclip.report.matrix import Matrix, MatrixBlock, RunRow, best_of_clip_and_cnn, merit
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.row_names import differing_options
from handclip.report.runs import EvaluatedRun

MOST_FEATURED = 4

_LONGEST_OPTIONS = 30
"""Characters of a label that say in which options a run differs; figures have no room for more."""


def gather(runs: Sequence[EvaluatedRun], matrix: Matrix | None = None, *, with_photographs: bool = True) -> ReportData:
    """Choose what a report shows of evaluated runs.

    It goes into the block of the comparison that has the most runs; of several, the one that averages aspects, was
    ranked in the plain gallery with both flips summed, and is neither re-ranked nor cross-domain.

    Args:
        runs: at least one.
        matrix: their comparison, where it was made already.
        with_photographs: whether the report may hold photographs.

    Raises:
        HandCLIPError: the runs do not belong together.
    """
    matrix = compare_evaluations(runs) if matrix is None else matrix
    block = max((block for block in matrix.blocks if block.rows), key=_preference)
    best = max(block.rows, key=merit)
    featured = _featured(block.rows, best)
    shown = _shown(block.rows, best, featured)
    by_file = {run.files()["metrics"]: run for run in runs}
    places = {row.number: place for place, row in enumerate(shown)}
    reported = {}
    for row, differing in zip(block.rows, differing_options(block.rows), strict=True):
        run, aspect = by_file[row.files["metrics"]], block.protocol.aspect
        reported[row.number] = ReportRun(
            evaluated=run,
            row=row,
            label=run_label(row, differing),
            # A run that was evaluated on several stands in the blocks of single ones too.
            aspects=run.aspects() if aspect == run.metrics.aspect else (aspect,),
            flip=block.protocol.flip,
            style=places.get(row.number),
            with_photographs=with_photographs,
        )
    return ReportData(
        matrix=matrix,
        block=block,
        runs=list(reported.values()),
        shown=[reported[row.number] for row in shown],
        featured=[reported[row.number] for row in featured],
        best=reported[best.number],
    )


def _preference(block: MatrixBlock) -> tuple[object, ...]:
    protocol = block.protocol
    return (
        len(block.rows),
        protocol.trained_on is None,
        len(protocol.gallery_images),
        protocol.rerank is None,
        protocol.gallery_protocol == "gallery",
        protocol.flip == "sum",
    )


def run_label(row: RunRow, differing: str) -> str:
    """Return what figures call a run; its number tells it from all others, so that the rest may be cut short."""
    stage = f"{row.number}. stage {row.stage} {row.model}"
    options = textwrap.shorten(differing, _LONGEST_OPTIONS, placeholder=" ...")
    return ", ".join(part for part in (f"{stage} {row.losses_text if row.losses else ''}".rstrip(), options) if part)


def _shown(rows: Sequence[RunRow], best: RunRow, featured: Sequence[RunRow]) -> list[RunRow]:
    """Return the best run of each model and stage, in the order of the rows; if too many, baselines give way first."""
    if len(rows) <= MOST_SERIES:
        return list(rows)
    kinds: dict[tuple[str, str], RunRow] = {}
    for row in sorted(rows, key=merit, reverse=True):
        kinds.setdefault((row.model, row.stage), row)
    candidates = {row.number: row for row in (*featured, *kinds.values())}.values()
    chosen = sorted(candidates, key=lambda row: (row is best, row in featured, row.stage != "0", merit(row)))
    return sorted(chosen[-MOST_SERIES:], key=lambda row: row.number)


def _featured(rows: Sequence[RunRow], best: RunRow) -> list[RunRow]:
    """Return stage 0, 1 and 2 of the best of CLIP's models, and the best CNN; what is lacking gives way to the best."""
    clip, cnn = best_of_clip_and_cnn(rows)
    chosen = []
    if clip is not None:
        of_model = sorted((row for row in rows if row.model == clip.model), key=merit, reverse=True)
        for stage in ("0", "1", "2"):
            chosen += [row for row in of_model if row.stage == stage][:1]
    chosen += [cnn] if cnn is not None else []
    for row in sorted(rows, key=lambda row: (row is best, merit(row)), reverse=True):
        if row not in chosen and len(chosen) < MOST_FEATURED:
            chosen.append(row)
    return sorted(chosen, key=lambda row: (row.family != "clip", row.stage, row.number))

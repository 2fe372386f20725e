"""From what runs have written to a comparison in which only like stands beside like."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from handclip.config.experiment import HAND_ASPECTS
from handclip.errors import HandCLIPError
from handclip.file_names import PER_QUERY
from handclip.files import write_json, write_text
from handclip.metrics.uncertainty import Intervals, PairedDifferences, compact_letters, compare_tables, containing
from handclip.report.manifests import differing_manifests, require_one_manifest
from handclip.report.matrix import (
    METRICS,
    TESTED,
    Difference,
    Matrix,
    MatrixBlock,
    RunRow,
    Score,
)
from handclip.report.matrix_text import differences_csv, matrix_csv, matrix_latex, matrix_markdown
from handclip.report.protocol import Protocol
from handclip.report.published import DRAWS, PublishedResult, published_results
from handclip.report.row_names import differs_by
from handclip.report.runs import EvaluatedRun, RunResult, read_runs

logger = logging.getLogger(__name__)


def compare_runs(paths: Iterable[Path], *, published: bool = False, different_manifests: bool = False) -> Matrix:
    """Set evaluated runs side by side, in one block for each way of measuring.

    Rows of a block are ordered by stage, model, losses, seed and name.

    Args:
        paths: folders of evaluations, their `metrics.json`, or folders that hold some (up to three levels down).
        published: add a block for each kind of published result.
        different_manifests: put runs on different manifests of the same data into blocks of their own, with a warning;
            otherwise they are refused.

    Raises:
        HandCLIPError: there is no evaluation, one is named twice, a file is missing or damaged, two files that should
            belong together do not, or runs were evaluated on different manifests.
    """
    runs, unread = read_runs(paths)
    if not different_manifests:
        require_one_manifest(runs)
    return replace(compare_evaluations(runs, published=published), unread=unread)


def compare_evaluations(runs: Sequence[EvaluatedRun], *, published: bool = False) -> Matrix:
    """Do what `compare_runs` does with evaluations that have been read, on different manifests too.

    Raises:
        HandCLIPError: two of them that should belong together do not.
    """
    _say_what_is_not_compared(runs)
    groups: dict[Protocol, list[RunResult]] = {}
    for run in _without_copies(runs):
        for result in run.results():
            groups.setdefault(_protocol(result), []).append(result)
    blocks = [_block(protocol, groups[protocol]) for protocol in sorted(groups, key=_block_order)]
    return Matrix([*blocks, *(_published_blocks() if published else [])])


def _without_copies(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Keep one of the evaluations of a run that two studies share."""
    kept: dict[str, EvaluatedRun] = {}
    others = []
    for run in runs:
        before = kept.setdefault(run.metrics.run, run)
        if before.metrics == run.metrics and before is not run:
            logger.info(f"{run.folder} holds the same as {before.folder}; it is taken once.")
        elif before is not run:
            others.append(run)
    return [*kept.values(), *others]


def _say_what_is_not_compared(runs: Sequence[EvaluatedRun]) -> None:
    """Warn of runs that look alike and are not, as their splits were drawn with another seed, say."""
    for different in differing_manifests(runs):
        which = "; ".join(
            f"manifest {sha256[:8]}: {', '.join(run.metrics.run for run in of_one)}"
            for sha256, of_one in different.runs.items()
        )
        logger.warning(
            f"These runs were evaluated on different manifests of {different}, so they are in blocks of their own and "
            f"are not compared with each other: {which}. To compare them, evaluate all of them on one manifest"
        )


def write_matrix(matrix: Matrix, folder: Path) -> list[Path]:
    """Write `comparison.md`, `.csv`, `.tex`, `.json` and `differences.csv`; return their paths.

    The Markdown is for reading, the LaTeX for `booktabs`; the others hold fractions.
    """
    texts = {
        "comparison.md": matrix_markdown(matrix),
        "comparison.csv": matrix_csv(matrix),
        "comparison.tex": matrix_latex(matrix),
        "differences.csv": differences_csv(matrix),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "comparison.json", matrix.to_dict())
    return [folder / name for name in (*texts, "comparison.json")]


def _protocol(result: RunResult) -> Protocol:
    metrics, entry, rerank = result.run.metrics, result.entry, result.run.metrics.rerank
    # A model that has seen the other aspects too is no peer of those that were trained on one alone.
    is_told_apart = metrics.cross_domain or result.part_of_average
    return Protocol(
        dataset=metrics.dataset,
        aspect=result.aspect,
        manifest_sha256=result.manifest_sha256,
        gallery_protocol=entry.gallery_protocol,
        gallery_images=tuple(entry.gallery_images),
        flip=entry.flip,
        rerank=(rerank.k1, rerank.k2, rerank.weight) if rerank is not None else None,
        draws=entry.num_splits,
        trained_on=metrics.trained_on if is_told_apart else None,
    )


def _block_order(protocol: Protocol) -> tuple[object, ...]:
    aspects = ("all", *HAND_ASPECTS)
    place = aspects.index(protocol.aspect) if protocol.aspect in aspects else len(aspects)
    return (
        str(protocol.trained_on or ""),
        protocol.dataset,
        place,
        protocol.gallery_protocol,
        protocol.flip,
        protocol.rerank or (),
        protocol.draws,
        protocol.manifest_sha256 or "",
    )


def _block(protocol: Protocol, results: Sequence[RunResult]) -> MatrixBlock:
    results = sorted(results, key=_row_order)
    _check_paired(protocol, results)
    sums = [result.person_sums() for result in results]
    intervals, paired = compare_tables(sums)
    rows = [_row(number, result, intervals) for number, result in enumerate(results, start=1)]
    if len(rows) > 1:
        rows = _ranked(rows, paired)
    queries = results[0].entry.queries
    # Over all aspects, whose draws stand side by side.
    matched = sums[0].counts.sum(axis=0).reshape(-1, protocol.draws).sum(axis=0)
    return MatrixBlock(
        protocol=protocol,
        people=len(sums[0].counts),
        queries=queries,
        rows=rows,
        published=_published_beside(protocol, queries),
        differences=list(_differences(paired)),
        matched_queries=tuple(map(int, matched)),
    )


def _row_order(result: RunResult) -> tuple[object, ...]:
    metrics = result.run.metrics
    return metrics.stage, metrics.model, metrics.losses, metrics.seed, metrics.run


def _check_paired(protocol: Protocol, results: Sequence[RunResult]) -> None:
    first = results[0]
    folders: dict[str, Path] = {}
    for result in results:
        name, folder = result.run.metrics.run, result.run.folder
        if (before := folders.setdefault(name, folder)) != folder:
            raise HandCLIPError(f"{before} and {folder} both hold the run {name}; compare one of them")
        if [part.queries for part in result.outcomes] != [part.queries for part in first.outcomes]:
            raise HandCLIPError(
                f"{first.run.folder / PER_QUERY} and {folder / PER_QUERY} list different queries for "
                f"{protocol.label}, although the manifest is the same; evaluate both again"
            )


def _row(number: int, result: RunResult, intervals: Intervals) -> RunRow:
    entry = result.entry
    means = [entry.mean[name] for name in METRICS]
    # The means that were written are of the same queries, summed in another order.
    low, high = containing(means, intervals.low[number - 1], intervals.high[number - 1])
    stds = [entry.std[name] if entry.num_splits > 1 else None for name in METRICS]
    scores = map(Score, means, stds, low.tolist(), high.tolist())
    return RunRow(
        **{**dict(result.run.metrics), **dict(entry)},
        number=number,
        scores=dict(zip(METRICS, scores, strict=True)),
        cost=result.run.cost,
        part_of_average=result.part_of_average,
        files=result.run.files(),
    )


def _ranked(rows: Sequence[RunRow], paired: PairedDifferences) -> list[RunRow]:
    """Say of each row what it differs by, where it is the best, and by letters from which others it differs."""
    letters: dict[str, dict[int, str]] = {}
    for name in TESTED:
        best_first = sorted(range(len(rows)), key=lambda index: -rows[index].scores[name].mean)
        significant = paired.significant(METRICS.index(name), len(rows))[best_first][:, best_first]
        readable = compact_letters(significant)
        if readable is not None:
            letters[name] = dict(zip(best_first, readable, strict=True))
    best = {name: max(row.scores[name].mean for row in rows) for name in METRICS}
    return [
        row.model_copy(
            update={
                "letters": {name: letters[name][index] for name in letters},
                "best": tuple(name for name in METRICS if row.scores[name].mean == best[name]),
                "differs_by": text,
            }
        )
        for index, (row, text) in enumerate(zip(rows, differs_by(rows), strict=True))
    ]


def _differences(paired: PairedDifferences) -> Iterator[Difference]:
    for metric, name in enumerate(METRICS):
        numbers = (paired.differences, paired.low, paired.high, paired.p_values, paired.adjusted)
        for (first, second), *values in zip(paired.pairs, *(of[:, metric].tolist() for of in numbers), strict=True):
            yield Difference(name, first + 1, second + 1, *values)


def _published_beside(protocol: Protocol, queries: int) -> list[PublishedResult]:
    """Return the published results that were measured alike, on the same whole data set."""
    trained_on = protocol.trained_on and replace(protocol.trained_on, manifest_sha256=None)
    alike = replace(protocol, manifest_sha256=None, draws=DRAWS, trained_on=trained_on)
    return [result for result in published_results() if (result.protocol, result.queries) == (alike, queries)]


def _published_blocks() -> list[MatrixBlock]:
    groups: dict[Protocol, list[PublishedResult]] = {}
    for result in published_results():
        groups.setdefault(result.protocol, []).append(result)
    return [
        MatrixBlock(protocol, 0, groups[protocol][0].queries, [], groups[protocol], [])
        for protocol in sorted(groups, key=_block_order)
    ]

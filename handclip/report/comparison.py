"""From what runs have written to a comparison in which only like stands beside like."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from handclip.config.experiment import HAND_ASPECTS
from handclip.errors import HandCLIPError
from handclip.files import write_json, write_text
from handclip.metrics.uncertainty import PersonSums, compact_letters, compare_tables, containing
from handclip.report.manifests import differing_manifests, require_one_manifest
from handclip.report.matrix import (
    METRICS,
    TESTED,
    Cost,
    Difference,
    Machine,
    Matrix,
    MatrixBlock,
    Protocol,
    RunRow,
    Score,
    TrainedOn,
)
from handclip.report.matrix_text import differences_csv, matrix_csv, matrix_latex, matrix_markdown
from handclip.report.published import PublishedResult, published_results
from handclip.report.row_names import differs_by
from handclip.report.runs import (
    EvaluatedRun,
    MachineEntry,
    Outcomes,
    ResultEntry,
    person_sums,
    read_runs,
)

logger = logging.getLogger(__name__)

_PUBLISHED_DRAWS = 10


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
    groups: dict[Protocol, list[_Measured]] = {}
    _say_what_is_not_compared(runs)
    for run in _without_copies(runs):
        for protocol, measured in _measured(run):
            groups.setdefault(protocol, []).append(measured)
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


@dataclass(frozen=True, eq=False)
class _Measured:
    """One run under one protocol."""

    run: EvaluatedRun
    entry: ResultEntry
    outcomes: Sequence[Outcomes]
    part_of_average: bool

    @property
    def order(self) -> tuple[str, str, tuple[str, ...], int, str]:
        metrics = self.run.metrics
        return metrics.stage, metrics.model, tuple(metrics.losses), metrics.seed, metrics.run


def _measured(run: EvaluatedRun) -> Iterable[tuple[Protocol, _Measured]]:
    metrics = run.metrics
    for entry in metrics.results:
        trained_on = _trained_on(run) if metrics.cross_domain else None
        protocol = _protocol(run, metrics.aspect, metrics.manifest_sha256, entry, trained_on)
        yield protocol, _Measured(run, entry, run.outcomes_of(run.aspects(), entry), False)
    for aspect, part in metrics.per_aspect.items():
        for entry in part.results:
            # A model that has seen the other aspects too is no peer of those that were trained on this one.
            protocol = _protocol(run, aspect, part.manifest_sha256, entry, _trained_on(run))
            yield protocol, _Measured(run, entry, run.outcomes_of([aspect], entry), True)


def _protocol(
    run: EvaluatedRun, aspect: str, manifest_sha256: str, entry: ResultEntry, trained_on: TrainedOn | None
) -> Protocol:
    rerank = run.metrics.rerank
    return Protocol(
        dataset=run.metrics.dataset,
        aspect=aspect,
        manifest_sha256=manifest_sha256,
        gallery_protocol=entry.gallery_protocol,
        gallery_images=tuple(entry.gallery_images),
        flip=entry.flip,
        rerank=(rerank.k1, rerank.k2, rerank.weight) if rerank is not None else None,
        draws=entry.num_splits,
        trained_on=trained_on,
    )


def _trained_on(run: EvaluatedRun) -> TrainedOn | None:
    data = run.metrics.trained_on
    return TrainedOn(data.dataset, data.aspect, data.manifest_sha256) if data is not None else None


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


def _block(protocol: Protocol, measured: Sequence[_Measured]) -> MatrixBlock:
    measured = sorted(measured, key=lambda one: one.order)
    _check_paired(protocol, measured)
    tables = [person_sums(one.outcomes) for one in measured]
    intervals, paired = compare_tables(tables)
    rows = []
    for index, one in enumerate(measured):
        means = [one.entry.mean[name] for name in METRICS]
        # The means that were written are of the same queries, summed in another order.
        low, high = containing(means, intervals.low[index], intervals.high[index])
        scores = {
            name: Score(
                means[metric],
                one.entry.std[name] if protocol.draws > 1 else None,
                float(low[metric]),
                float(high[metric]),
            )
            for metric, name in enumerate(METRICS)
        }
        rows.append(_row(index + 1, one, scores))
    differences = [
        Difference(
            name,
            first + 1,
            second + 1,
            float(paired.differences[pair, metric]),
            float(paired.low[pair, metric]),
            float(paired.high[pair, metric]),
            float(paired.p_values[pair, metric]),
            float(paired.adjusted[pair, metric]),
        )
        for metric, name in enumerate(METRICS)
        for pair, (first, second) in enumerate(paired.pairs)
    ]
    if len(rows) > 1:
        letters: dict[str, dict[int, str]] = {}
        for name in TESTED:
            best_first = sorted(range(len(rows)), key=lambda index: -rows[index].scores[name].mean)
            significant = paired.significant(METRICS.index(name), len(rows))[best_first][:, best_first]
            readable = compact_letters(significant)
            if readable is not None:
                letters[name] = dict(zip(best_first, readable, strict=True))
        best = {name: max(row.scores[name].mean for row in rows) for name in METRICS}
        rows = [
            replace(
                row,
                letters={name: letters[name][index] for name in letters},
                best=tuple(name for name in METRICS if row.scores[name].mean == best[name]),
                differs_by=text,
            )
            for index, (row, text) in enumerate(zip(rows, differs_by(rows), strict=True))
        ]
    queries = measured[0].entry.queries
    published = _published_beside(protocol, queries)
    return MatrixBlock(
        protocol, len(tables[0].counts), queries, rows, published, differences, _matched(protocol, tables[0])
    )


def _matched(protocol: Protocol, table: PersonSums) -> tuple[int, ...]:
    """Return how many queries of each draw can be answered, over all aspects, whose draws stand side by side."""
    of_draws = table.counts.sum(axis=0).reshape(-1, protocol.draws).sum(axis=0)
    return tuple(map(int, of_draws))


def _check_paired(protocol: Protocol, measured: Sequence[_Measured]) -> None:
    first = measured[0]
    names: dict[str, _Measured] = {}
    for one in measured:
        before = names.setdefault(one.run.metrics.run, one)
        if before is not one:
            raise HandCLIPError(
                f"{before.run.folder} and {one.run.folder} both hold the run {one.run.metrics.run}; compare one of them"
            )
        if [part.queries for part in one.outcomes] != [part.queries for part in first.outcomes]:
            raise HandCLIPError(
                f"{first.run.folder / 'per_query.csv'} and {one.run.folder / 'per_query.csv'} list different queries "
                f"for {protocol.label}, although the manifest is the same; evaluate both again"
            )


def _row(number: int, measured: _Measured, scores: dict[str, Score]) -> RunRow:
    metrics = measured.run.metrics
    return RunRow(
        number=number,
        run=metrics.run,
        experiment=metrics.experiment,
        model=metrics.model,
        family=metrics.family,
        stage=metrics.stage,
        losses=tuple(metrics.losses),
        seed=metrics.seed,
        trained_on=_trained_on(measured.run),
        options=metrics.options,
        differs_by="",
        input_size=metrics.input_size,
        scores=scores,
        letters={},
        best=(),
        feature_dim=metrics.feature_dim,
        parameters=metrics.parameters,
        gflops_per_image=metrics.gflops_per_image,
        cost=_cost(measured.run),
        part_of_average=measured.part_of_average,
        training_ended=metrics.training_ended,
        tied_queries=measured.entry.tied_queries,
        copied_queries=measured.entry.copied_queries,
        files=measured.run.files(),
    )


def _cost(run: EvaluatedRun) -> Cost:
    if run.cost is None:
        return Cost()
    evaluation, training = run.cost.evaluation, run.cost.training
    return Cost(
        training_seconds=training.seconds if training else None,
        training_images_per_second=training.images_per_second if training else None,
        peak_memory_mib=training.peak_memory_mib if training else None,
        peak_gpu_memory_mib=training.peak_gpu_memory_mib if training else None,
        precision=training.precision if training else None,
        training_machine=_machine(training) if training else None,
        embedding_images_per_second=evaluation.images_per_second,
        evaluation_machine=_machine(evaluation),
    )


def _machine(entry: MachineEntry) -> Machine:
    return Machine(entry.device, entry.processor, entry.cores)


def _published_beside(protocol: Protocol, queries: int) -> list[PublishedResult]:
    """Return the published results that were measured alike, on the same whole data set."""
    trained_on = protocol.trained_on and replace(protocol.trained_on, manifest_sha256=None)
    alike = replace(protocol, manifest_sha256=None, draws=_PUBLISHED_DRAWS, trained_on=trained_on)
    return [
        result for result in published_results() if _published_protocol(result) == alike and result.queries == queries
    ]


def _published_protocol(result: PublishedResult) -> Protocol:
    return Protocol(
        dataset=result.dataset,
        aspect=result.aspect,
        manifest_sha256=None,
        gallery_protocol=result.gallery_protocol,
        gallery_images=(result.gallery_images,),
        flip=result.flip,
        rerank=None,
        draws=_PUBLISHED_DRAWS,
        trained_on=TrainedOn(*result.trained_on, manifest_sha256=None) if result.trained_on is not None else None,
    )


def _published_blocks() -> list[MatrixBlock]:
    groups: dict[Protocol, list[PublishedResult]] = {}
    for result in published_results():
        groups.setdefault(_published_protocol(result), []).append(result)
    return [
        MatrixBlock(protocol, 0, groups[protocol][0].queries, [], groups[protocol], [])
        for protocol in sorted(groups, key=_block_order)
    ]

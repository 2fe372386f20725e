"""What a comparison holds: blocks of runs that were measured in the same way, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from handclip.config.naming import losses_text
from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.protocol import Protocol
from handclip.report.published import PublishedResult
from handclip.report.runs import Cost, RunFacts

METRICS = tuple(METRIC_TITLES)
TESTED = ("rank1", "map")
"""Metrics whose significance is shown by letters; mAP trapezoid follows from both."""


@dataclass(frozen=True)
class Score:
    """A metric as fractions: mean and standard deviation over the draws, and the 95 % interval over people.

    One draw has no standard deviation.
    """

    mean: float
    std: float | None
    low: float
    high: float


class RunRow(RunFacts):
    """One evaluated run in one block.

    Args:
        number: place in the block, from 1.
        differs_by: what tells it from rows that would read the same; empty where there are none.
        scores: of each metric.
        letters: of each tested metric; none where there is nothing to compare with, or too many letters to be read.
        best: metrics in which no run of the block is better.
        cost: what differs from machine to machine.
        part_of_average: these numbers are one aspect of an evaluation on several.
        tied_queries: see `ResultEntry`.
        copied_queries: see `ResultEntry`.
        files: where each number comes from.
    """

    number: int
    differs_by: str = ""
    scores: Mapping[str, Score]
    letters: Mapping[str, str] = {}
    best: tuple[str, ...] = ()
    cost: Cost
    part_of_average: bool
    tied_queries: int
    copied_queries: int
    files: Mapping[str, str]

    @property
    def losses_text(self) -> str:
        """The losses by their short names, as in the config files' names."""
        return losses_text(self.losses)


_ROW_KEYS = (
    *("number", "run", "experiment", "model", "family", "stage", "losses", "seed", "trained_on", "options"),
    *("differs_by", "input_size", "scores", "letters", "best", "feature_dim", "parameters", "gflops_per_image"),
    *("cost", "part_of_average", "training_ended", "tied_queries", "copied_queries", "files"),
)
"""Their order in `comparison.json`."""


@dataclass(frozen=True)
class Difference:
    """Row `first` minus row `second` in one metric: fractions, with 95 % interval and p-values."""

    metric: str
    first: int
    second: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class MatrixBlock:
    """Runs measured in the same way, and published results that may stand below them.

    Args:
        protocol: what they share.
        people: how many are resampled and swapped.
        queries: of each draw, over all aspects, answerable or not.
        rows: the runs.
        published: results measured alike on the whole data set, on draws of their own.
        differences: between every two rows, for each metric.
        matched_queries: of each draw, over all aspects: those whose person is in the gallery, of whom every rate is;
            none where there are no rows.
    """

    protocol: Protocol
    people: int
    queries: int
    rows: Sequence[RunRow]
    published: Sequence[PublishedResult]
    differences: Sequence[Difference]
    matched_queries: tuple[int, ...] = ()

    @property
    def searches(self) -> str:
        """How many queries of each draw can be answered."""
        counts = sorted(set(self.matched_queries or (self.queries,)))
        return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"

    @property
    def denominator(self) -> str:
        """How many queries of each draw the rates are of, in words."""
        over = ", averaged over the aspects" if len(self.protocol.gallery_images) > 1 else ""
        return f"{self.searches} queries of {'each' if self.protocol.draws > 1 else 'the'} draw{over}"

    @property
    def pairs(self) -> int:
        """Number of pairs of runs, over which each metric's p-values are corrected."""
        return len(self.rows) * (len(self.rows) - 1) // 2

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; metrics are fractions."""
        rows = [row.model_dump() for row in self.rows]
        return {
            "label": self.protocol.label,
            "protocol": asdict(self.protocol),
            "people": self.people,
            "queries": self.queries,
            "matched_queries": list(self.matched_queries),
            "rows": [{key: row[key] for key in _ROW_KEYS} for row in rows],
            "published": [result.to_dict() for result in self.published],
            "differences": [asdict(difference) for difference in self.differences],
        }


def merit(row: RunRow) -> tuple[float, float]:
    """Return what runs are ordered by: Rank-1, then mAP."""
    return row.scores["rank1"].mean, row.scores["map"].mean


def best_of_clip_and_cnn(rows: Sequence[RunRow]) -> tuple[RunRow | None, RunRow | None]:
    """Return the best run of CLIP's models and the best of the CNNs they are compared with."""
    clip = [row for row in rows if row.family == "clip"]
    cnn = [row for row in rows if row.family in ("mbanet", "resnet")]
    return max(clip, key=merit, default=None), max(cnn, key=merit, default=None)


@dataclass(frozen=True)
class Matrix:
    """All blocks of a comparison.

    Args:
        blocks: runs that can be compared, or published results.
        unread: a sentence for each folder that may not be read, and so is not compared.
    """

    blocks: Sequence[MatrixBlock]
    unread: Sequence[str] = ()

    def main_blocks(self) -> dict[int, MatrixBlock]:
        """Return the blocks that are shown if not asked for more, by their number from 1.

        Left out are the flip setting `none` where there is `sum`, and single aspects of runs evaluated on several.
        """
        protocols = {block.protocol for block in self.blocks}

        def is_main(block: MatrixBlock) -> bool:
            if not block.rows:
                return True  # published results, which were asked for
            with_sum = replace(block.protocol, flip="sum")
            is_average = not all(row.part_of_average for row in block.rows)
            return is_average and (block.protocol == with_sum or with_sum not in protocols)

        return {number: block for number, block in enumerate(self.blocks, start=1) if is_main(block)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; metrics are fractions."""
        return {"blocks": [block.to_dict() for block in self.blocks]}

"""How soon the right person is found, what that looks like, and who is taken for whom."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handclip.csv_files import csv_rows
from handclip.datasets.images import read_image
from handclip.datasets.manifest import ManifestImage
from handclip.errors import DataError, HandCLIPError
from handclip.file_names import PER_QUERY
from handclip.files import opened_text
from handclip.metrics import rank_similarities
from handclip.metrics.ranking import COSINE_TIE
from handclip.report.figures.names import person_labels, visible_name
from handclip.report.figures.retrieval import (
    PAIR_NAME_INCHES,
    TILE_NAME_INCHES,
    TILE_NAME_SIZE,
    CmcCurve,
    ConfusedPair,
    RankList,
    Tile,
    cmc_figure,
    confused_pairs_figure,
    rank_list_figure,
)
from handclip.report.prose import percent
from handclip.report.report_data import ReportData, ReportRun, Search, why_not_searched
from handclip.report.report_writer import ReportWriter, Section, SectionWriter
from handclip.runs.artifacts import AGAIN

_MOST_RANKS = 20
_LISTED = 10
_OF_EACH_KIND = 2
_PAIRS = 6
_PIXELS = 160
_SAID = 60
"""Letters of a name in a sentence."""

Floats = NDArray[np.float64]
People = tuple[int, int]
"""The person of a query and the person that was chosen."""


def retrieval_section(data: ReportData, writer: ReportWriter) -> Section:
    """Return CMC curves of all runs that figures show, and rank lists and confused pairs of the best one."""
    run = data.best
    page = writer.section(
        "retrieval", data=data, run=run, reranked=run.evaluated.metrics.rerank is not None, said=_said
    )
    _cmc(data, page)
    first: list[_Answer] = []
    tally = _Tally()
    try:
        for search in run.searches():
            answers = _answers(search)
            for answer in answers:
                tally.add(answer)
            # The other draws are let go, since their scores would fill the memory.
            first += answers if search.split == 0 else []
    except HandCLIPError as error:
        run.missing["features"] = str(error)
        run.tell_damage(str(error))
        first = []
    page.words("searches", reason="" if first else why_not_searched(run) or f"no draw has a gallery. {AGAIN}")
    if first:
        _looks(run, first, tally, page)
    return page.finished()


# CMC


def _cmc(data: ReportData, page: SectionWriter) -> None:
    curves = {run.row.run: _curves(run) for run in data.runs}
    panels: dict[str, list[CmcCurve]] = {}
    rows: list[dict[str, object]] = []
    for protocol in ("gallery", "gallery_all"):
        for run in data.runs:
            if protocol not in curves[run.row.run]:
                continue
            draws, searches = curves[run.row.run][protocol]
            if run in data.shown and run.style is not None:
                title = f"{protocol}{_size(run, protocol, data)}"
                panels.setdefault(title, []).append(CmcCurve(run.label, run.style, draws))
            for rank, values in enumerate(draws.T, start=1):
                spread = {"mean": values.mean(), "lowest_draw": values.min(), "highest_draw": values.max()}
                named = {"run": run.row.run, "gallery_protocol": protocol, "rank": rank}
                rows.append({**named, **spread, "matched_queries": " ".join(map(str, searches))})
    page.csv("cmc", rows)
    page.words("cmc", galleries=len(panels))
    gallery, first = next(iter(panels.items()))
    page.picture("cmc", cmc_figure(panels), gallery=gallery, curves=first, draws=len(first[0].draws))


def _size(run: ReportRun, protocol: str, data: ReportData) -> str:
    """Say how many images a gallery has."""
    metrics = run.evaluated.metrics
    aspect = data.block.protocol.aspect
    results = metrics.per_aspect[aspect].results if aspect in metrics.per_aspect else metrics.results
    sizes = next(one.gallery_images for one in results if (one.gallery_protocol, one.flip) == (protocol, run.flip))
    low, high = min(sizes), max(sizes)
    return f" ({low:,} images)" if low == high else f" ({low:,} to {high:,} images)"


def _curves(run: ReportRun) -> dict[str, tuple[Floats, list[int]]]:
    """Return for each gallery the (D, K) CMC of each draw up to rank K, over queries, then aspects; and its queries."""
    ranks = _ranks(run)
    curves = {}
    for entry in run.evaluated.metrics.results:
        if entry.flip == run.flip:
            most = min(_MOST_RANKS, *entry.gallery_images)
            parts = [ranks[aspect, entry.gallery_protocol] for aspect in run.aspects]
            curve = np.mean([_cmc_of_draws(part, most) for part in parts], axis=0)
            counts = [sum(len(part[draw]) for part in parts) for draw in sorted(parts[0])]
            curves[entry.gallery_protocol] = curve, counts
    return curves


def _cmc_of_draws(ranks_by_draw: dict[int, list[int]], most: int) -> Floats:
    draws = [np.array(ranks) for _, ranks in sorted(ranks_by_draw.items())]
    return np.array([[np.mean(ranks <= k) for k in range(1, most + 1)] for ranks in draws])


def _ranks(run: ReportRun) -> dict[tuple[str, str], dict[int, list[int]]]:
    """Read the rank of the right person from `per_query.csv`, by aspect and gallery, then draw."""
    ranks: dict[tuple[str, str], dict[int, list[int]]] = {}
    with opened_text(run.folder / PER_QUERY) as file:
        reader = csv_rows(file)
        place = next(reader).index("rank")
        for row in reader:
            aspect, protocol, flip, split, rank = *row[:4], row[place]
            # A query whose person is not in the gallery has rank 0 and counts nowhere.
            if flip == run.flip and rank != "0":
                ranks.setdefault((aspect, protocol), {}).setdefault(int(split), []).append(int(rank))
    return ranks


# Rank lists and confused pairs


@dataclass(frozen=True, eq=False)
class _Answer:
    """What one query got that has an image of its person in the gallery.

    Args:
        search: draw of an aspect.
        query: its place among the queries.
        rank: of the first right image.
        margin: score of the best right image less that of the best wrong one.
        best_wrong: column of the best wrong image.
    """

    search: Search
    query: int
    rank: int
    margin: float
    best_wrong: int

    @property
    def image(self) -> ManifestImage:
        return self.search.query[self.query]

    @property
    def person(self) -> int:
        return int(self.search.query_people[self.query])

    @property
    def scores(self) -> Floats:
        scores: Floats = self.search.scores[self.query]
        return scores

    def found_first(self) -> list[int]:
        """Return the columns of what was found first; of equal scores the wrong one comes first, as in the metrics."""
        right = self.search.gallery_people == self.person
        found: list[int] = np.lexsort((right, -self.scores))[:_LISTED].tolist()
        return found


def _answers(search: Search) -> list[_Answer]:
    right = search.query_people[:, None] == search.gallery_people
    wrong_scores = np.where(right, -np.inf, search.scores)
    margins = np.where(right, search.scores, -np.inf).max(axis=1) - wrong_scores.max(axis=1)
    people = search.query_people, search.gallery_people
    ranks = rank_similarities(search.scores, *people, tie=COSINE_TIE).first_ranks
    columns = wrong_scores.argmax(axis=1)
    return [
        _Answer(search, query, int(ranks[query]), float(margins[query]), int(columns[query]))
        for query in np.flatnonzero(ranks).tolist()
    ]


@dataclass(frozen=True, eq=False)
class _Photographs:
    """Small copies of the photographs, each read once, and which could not be had."""

    run: ReportRun
    read: dict[str, NDArray[np.uint8] | None] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def of(self, aspect: str, image: ManifestImage) -> NDArray[np.uint8] | None:
        if image.path not in self.read:
            self.read[image.path] = self._read(aspect, image)
        return self.read[image.path]

    def _read(self, aspect: str, image: ManifestImage) -> NDArray[np.uint8] | None:
        path = self.run.photograph(aspect, image)
        if path is None:
            return None
        try:
            photograph = read_image(path, image.sha256)
        except DataError as error:
            self.damaged.append(str(error))
            self.run.tell_damage(str(error))
            return None
        photograph.thumbnail((_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
        return np.asarray(photograph)


class _Error(NamedTuple):
    """A search whose person did not come first."""

    score: float
    aspect: str
    query: ManifestImage
    chosen: ManifestImage


@dataclass(frozen=True, eq=False)
class _Confusion:
    """Searches for one person, and those of them that chose another person instead."""

    people: People
    searches: int
    errors: Sequence[_Error]

    @property
    def wrong(self) -> int:
        return len(self.errors)

    @property
    def share(self) -> float:
        return self.wrong / self.searches

    @property
    def example(self) -> _Error:
        """The error of the highest score."""
        return max(self.errors, key=lambda error: error.score)


@dataclass(frozen=True, eq=False)
class _Tally:
    """Counts, over searches, how often each person was searched for and taken for whom."""

    searches: Counter[int] = field(default_factory=Counter)
    errors: dict[People, list[_Error]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def add(self, one: _Answer) -> None:
        search, column = one.search, one.best_wrong
        self.searches[one.person] += 1
        if one.rank > 1:
            people = one.person, int(search.gallery_people[column])
            error = _Error(float(one.scores[column]), search.aspect, one.image, search.gallery[column])
            self.errors.setdefault(people, []).append(error)
            self.names.update({person: search.names[person] for person in people})

    def confusions(self) -> list[_Confusion]:
        """Return everyone who was taken for somebody else, the largest share of searches first."""
        found = [_Confusion(people, self.searches[people[0]], errors) for people, errors in self.errors.items()]
        return sorted(found, key=lambda one: (-one.share, -one.wrong, -one.example.score, one.people))


def _looks(run: ReportRun, first: Sequence[_Answer], tally: _Tally, page: SectionWriter) -> None:
    photographs = _Photographs(run)
    chosen = _best_median_worst(first)
    names = {
        person: one.search.names[person]
        for _, one in chosen
        for person in (one.person, *one.search.gallery_people[one.found_first()].tolist())
    }
    labels = person_labels(names, TILE_NAME_INCHES, TILE_NAME_SIZE)
    lists = rank_list_figure([_rank_list(kind, one, labels, photographs) for kind, one in chosen])
    page.csv("rank_lists", [row for kind, one in chosen for row in _list_rows(run, kind, one)])

    confusions = tally.confusions()
    pairs = _distinct_pairs(confusions)
    people = sorted({person for one in pairs for person in one.people})
    pair_labels = person_labels({one: tally.names[one] for one in people}, PAIR_NAME_INCHES, TILE_NAME_SIZE)
    drawn = [_drawn_pair(run, one, pair_labels, photographs) for one in pairs]

    absent = sum(photograph is None for photograph in photographs.read.values())
    page.words("rank_lists", photographs=len(photographs.read), absent=absent, damaged=photographs.damaged)
    page.picture("rank_lists", lists, photographic=True, chosen=chosen, listed=_LISTED, cut=_are_cut(labels))
    wrong = sum(one.wrong for one in confusions)
    page.words("confusions", wrong=wrong, searches=tally.searches.total(), pairs=len(pairs))
    if pairs:
        page.csv("confusions", [_confusion_row(run, one, tally.names) for one in confusions])
        known = {"pairs": len(pairs), "most": pairs[0], "names": tally.names, "cut": _are_cut(pair_labels)}
        page.picture("confused_pairs", confused_pairs_figure(drawn), photographic=True, **known)


def _best_median_worst(answers: Sequence[_Answer]) -> list[tuple[str, _Answer]]:
    """Choose queries of different people; fewer where there are not enough people."""
    queries = sorted(answers, key=lambda one: (one.rank, -one.margin))
    middle = (len(queries) - 1) / 2
    orders = {
        "best": queries,
        "worst": queries[::-1],
        "median": [queries[place] for place in sorted(range(len(queries)), key=lambda place: abs(place - middle))],
    }
    taken: set[int] = set()
    chosen: dict[str, list[tuple[str, _Answer]]] = {kind: [] for kind in orders}
    for kind, order in orders.items():
        for one in order:
            if one.person not in taken and len(chosen[kind]) < _OF_EACH_KIND:
                taken.add(one.person)
                chosen[kind].append((kind, one))
    return [*chosen["best"], *chosen["median"], *reversed(chosen["worst"])]


def _rank_list(kind: str, one: _Answer, labels: Mapping[int, str], photographs: _Photographs) -> RankList:
    search = one.search
    found = [
        Tile(
            photographs.of(search.aspect, search.gallery[place]),
            labels[int(search.gallery_people[place])],
            float(one.scores[place]),
            bool(search.gallery_people[place] == one.person),
        )
        for place in one.found_first()
    ]
    query = Tile(photographs.of(search.aspect, one.image), labels[one.person])
    return RankList(f"{kind}\n{search.aspect}", query, found, f"right one\nat rank {one.rank}")


def _list_rows(run: ReportRun, kind: str, one: _Answer) -> list[dict[str, object]]:
    search = one.search
    return [
        {
            "run": run.row.run,
            "kind": kind,
            "aspect": search.aspect,
            "query": one.image.path,
            "query_person": one.person,
            "query_name": search.names[one.person],
            "rank_of_right": one.rank,
            "place": number,
            "image": search.gallery[place].path,
            "person": int(search.gallery_people[place]),
            "name": search.names[int(search.gallery_people[place])],
            "score": float(one.scores[place]),
        }
        for number, place in enumerate(one.found_first(), start=1)
    ]


def _distinct_pairs(confusions: Sequence[_Confusion]) -> list[_Confusion]:
    """Keep the first few, and of two people who are taken for each other the direction that comes first."""
    kept: dict[frozenset[int], _Confusion] = {}
    for one in confusions:
        kept.setdefault(frozenset(one.people), one)
    return list(kept.values())[:_PAIRS]


def _drawn_pair(run: ReportRun, one: _Confusion, labels: Mapping[int, str], photographs: _Photographs) -> ConfusedPair:
    score, aspect, *images = one.example
    query, chosen = (photographs.of(aspect, image) for image in images)
    query_label, chosen_label = (labels[person] for person in one.people)
    which = f"\nphotographs: {aspect}" if len(run.aspects) > 1 else ""
    return ConfusedPair(
        Tile(query, f"query: {query_label}"),
        Tile(chosen, f"chosen: {chosen_label}", score, right=False),
        f"{one.wrong} of {one.searches} searches ({percent(one.share)} %){which}",
    )


def _confusion_row(run: ReportRun, one: _Confusion, names: Mapping[int, str]) -> dict[str, object]:
    (query, chosen), example = one.people, one.example
    return {
        "run": run.row.run,
        "query_person": query,
        "query_name": names[query],
        "chosen_person": chosen,
        "chosen_name": names[chosen],
        "wrong_searches": one.wrong,
        "searches": one.searches,
        "share": one.share,
        "highest_score": example.score,
        "aspect": example.aspect,
        "query_image": example.query.path,
        "chosen_image": example.chosen.path,
    }


def _said(name: str) -> str:
    """Return a name as part of a sentence."""
    text = visible_name(name)
    return text if len(text) <= _SAID else f"{text[:_SAID]}…"


def _are_cut(labels: Mapping[int, str]) -> bool:
    """Whether some names are not whole in a figure."""
    return any("…" in label or label == f"#{person}" for person, label in labels.items())

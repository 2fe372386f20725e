"""How soon the right person is found, what that looks like, and who is taken for whom."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from handclip.report.report_data import ReportData, ReportRun, Search, why_not_searched
from handclip.report.report_writer import Block, Heading, Note, Picture, ReportWriter, Section, Text, percent
from handclip.runs.artifacts import AGAIN

_MOST_RANKS = 20
_LISTED = 10
_OF_EACH_KIND = 2
_PAIRS = 6
_PIXELS = 160
_SAID = 60
"""Letters of a name in a sentence."""
_PROTOCOLS = ("gallery", "gallery_all")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
People = tuple[int, int]
"""The person of a query and the person that was chosen."""


def retrieval_section(data: ReportData, writer: ReportWriter) -> Section:
    """Return CMC curves of all runs that figures show, and rank lists and confused pairs of the best one."""
    run = data.best
    blocks: list[Block] = [*_cmc(data, writer), Heading("What a search looks like")]
    first, tally = [], _Tally()
    try:
        for search in run.searches():
            answers = _Answers.of(search)
            tally.add(answers)
            # The other draws are let go, since their scores would fill the memory.
            first += [answers] if search.split == 0 else []
    except HandCLIPError as error:
        run.missing["features"] = str(error)
        run.tell_damage(str(error))
        first = []
    blocks += _looks(run, first, tally, writer) if first else [_searches_missing(run)]
    question = "How soon is the right person found, and who is taken for whom?"
    return Section("retrieval", "Retrieval", question, blocks)


def _searches_missing(run: ReportRun) -> Note:
    reason = why_not_searched(run) or f"no draw has a gallery. {AGAIN}"
    return Note(
        f"There are no rank lists and no confused pairs of {run.label}, since what it ranked is not "
        f"to be had: {reason}.",
        "missing",
    )


# CMC


def _cmc(data: ReportData, writer: ReportWriter) -> list[Block]:
    curves = {run.row.run: _curves(run, run.aspects) for run in data.runs}
    panels: dict[str, list[CmcCurve]] = {}
    rows: list[dict[str, object]] = []
    for protocol in _PROTOCOLS:
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
    writer.csv("cmc", rows)
    left_out = len(data.runs) - len(data.shown)
    texts = [
        "Every query image searches the gallery for its person. Rank-k is the share of queries whose person is among "
        "the first k images found; drawn over k this is the cumulative match characteristic (CMC). A curve that starts "
        "high finds the right person at once; where it rises late, the right person is near the top but not first.",
    ]
    if len(panels) > 1:
        texts.append(
            "In gallery are images of the people who are searched for; gallery_all adds those of others, and of hands "
            "that no query shows, which makes the search harder."
        )
    if left_out:
        texts.append(f"The figure shows {len(data.shown)} of {len(data.runs)} runs; tables/cmc.csv has all.")
    return [Heading("Cumulative match characteristic"), *map(Text, texts), _cmc_picture(panels, data, writer)]


def _cmc_picture(panels: dict[str, list[CmcCurve]], data: ReportData, writer: ReportWriter) -> Picture:
    first_title, first = next(iter(panels.items()))
    found = "; ".join(
        f"{curve.label}: {percent(curve.draws[:, 0].mean())} % at rank 1, {percent(curve.draws[:, -1].mean())} % at "
        f"rank {curve.draws.shape[1]}"
        for curve in first
    )
    draws = len(first[0].draws)
    aspects = "of the mean over the aspects, " if len(data.best.aspects) > 1 else ""
    band = (
        f"averaged over {draws} draws; the band goes from the lowest to the highest of them. It shows how much the "
        "choice of gallery images matters, not how much the choice of people does: see the intervals under Training"
        if draws > 1
        else "in the only draw there is"
    )
    reranked = " Ranks are those after re-ranking." if data.best.evaluated.metrics.rerank is not None else ""
    return writer.picture(
        "cmc",
        cmc_figure(panels),
        alt=f"CMC curves. In {first_title}: {found}.",
        caption=f"Rank-k {aspects}{band}. Shares are of the {data.block.denominator}. The vertical axis may "
        f"start above 0, and says so.{reranked}",
    )


def _size(run: ReportRun, protocol: str, data: ReportData) -> str:
    """Say how many images a gallery has."""
    metrics = run.evaluated.metrics
    aspect = data.block.protocol.aspect
    results = metrics.per_aspect[aspect].results if aspect in metrics.per_aspect else metrics.results
    sizes = next(one.gallery_images for one in results if (one.gallery_protocol, one.flip) == (protocol, run.flip))
    low, high = min(sizes), max(sizes)
    return f" ({low:,} images)" if low == high else f" ({low:,} to {high:,} images)"


def _curves(run: ReportRun, aspects: Sequence[str]) -> dict[str, tuple[Floats, list[int]]]:
    """Return for each gallery the (D, K) CMC of each draw up to rank K, over queries, then aspects; and its queries."""
    ranks = _ranks(run)
    curves = {}
    for entry in run.evaluated.metrics.results:
        if entry.flip == run.flip:
            most = min(_MOST_RANKS, *entry.gallery_images)
            parts = [ranks[aspect, entry.gallery_protocol] for aspect in aspects]
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
        place = next(reader).index("rank")  # older evaluations have no names before it
        for row in reader:
            aspect, protocol, flip, split, rank = *row[:4], row[place]
            # A query whose person is not in the gallery has rank 0 and counts nowhere.
            if flip == run.flip and rank != "0":
                ranks.setdefault((aspect, protocol), {}).setdefault(int(split), []).append(int(rank))
    return ranks


# Rank lists and confused pairs


@dataclass(frozen=True, eq=False)
class _Answers:
    """What the queries of one search got.

    Args:
        search: draw of an aspect.
        ranks: (Q,) rank of the first right image; 0 where the gallery has none.
        margins: (Q,) score of the best right image less that of the best wrong one.
        best_wrong: (Q,) column of the best wrong image.
    """

    search: Search
    ranks: Integers
    margins: Floats
    best_wrong: Integers

    @classmethod
    def of(cls, search: Search) -> "_Answers":
        right = search.query_people[:, None] == search.gallery_people
        wrong_scores = np.where(right, -np.inf, search.scores)
        best_right = np.where(right, search.scores, -np.inf).max(axis=1)
        margins = np.where(right.any(axis=1), best_right, 0) - wrong_scores.max(axis=1)
        people = search.query_people, search.gallery_people
        ranks = rank_similarities(search.scores, *people, tie=COSINE_TIE).first_ranks
        return cls(search, ranks, margins, wrong_scores.argmax(axis=1))


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

    def note(self) -> Note | None:
        """Say what is not there, if anything."""
        absent = sum(photograph is None for photograph in self.read.values())
        if not absent:
            return None
        if self.damaged:
            return Note(
                f"{absent} of {len(self.read)} photographs are absent, damaged or changed, and are grey tiles. The "
                f"first that could not be used: {self.damaged[0]}."
            )
        if not self.run.with_photographs:
            return Note(
                "Photographs were left out, as was asked for; a grey tile stands for each. Persons, scores and ranks "
                "are from the evaluation's own files."
            )
        which = "The" if absent == len(self.read) else f"{absent} of {len(self.read)}"
        return Note(
            f"{which} photographs are not on this machine; a grey tile stands for each. Persons, scores and ranks are "
            "from the evaluation's own files. To see the hands, make the report where the data set is.",
            "missing",
        )


@dataclass(frozen=True, eq=False)
class _Confusion:
    """How often one person's searches chose another person, and the example with the highest score."""

    people: People
    wrong: int
    searches: int
    score: float
    aspect: str
    query: ManifestImage
    chosen: ManifestImage

    @property
    def share(self) -> float:
        return self.wrong / self.searches


@dataclass
class _Tally:
    """Counts, over searches, how often each person was searched for and taken for whom."""

    searches: Counter[int] = field(default_factory=Counter)
    wrong: Counter[People] = field(default_factory=Counter)
    examples: dict[People, tuple[float, str, ManifestImage, ManifestImage]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def add(self, answers: _Answers) -> None:
        search = answers.search
        self.names.update(search.names)
        self.searches.update(search.query_people[answers.ranks > 0].tolist())
        for query in np.flatnonzero(answers.ranks > 1).tolist():
            column = int(answers.best_wrong[query])
            people = int(search.query_people[query]), int(search.gallery_people[column])
            score = float(search.scores[query, column])
            self.wrong[people] += 1
            if people not in self.examples or score > self.examples[people][0]:
                self.examples[people] = score, search.aspect, search.query[query], search.gallery[column]

    def confusions(self) -> list[_Confusion]:
        """Return everyone who was taken for somebody else, the largest share of searches first."""
        found = [
            _Confusion(people, count, self.searches[people[0]], *self.examples[people])
            for people, count in self.wrong.items()
        ]
        return sorted(found, key=lambda one: (-one.share, -one.wrong, -one.score, one.people))


def _looks(run: ReportRun, first: Sequence[_Answers], tally: _Tally, writer: ReportWriter) -> list[Block]:
    photographs = _Photographs(run)
    lists = _rank_lists(run, first, photographs, writer)
    pairs = _confused_pairs(run, tally, photographs, writer)
    texts = [
        f"These are searches of {run.label}, which has the highest Rank-1. Scores are cosine similarities of two "
        "embeddings: 1 is the most alike that two images can be. A score orders images; it is not a probability."
    ]
    if any(one is not None for one in photographs.read.values()):
        texts.append(
            "The page holds these photographs: think of the people on them before you pass it on. "
            "handclip report --no-photographs leaves them out."
        )
    if run.evaluated.metrics.rerank is not None:
        texts.append("The order is the one before re-ranking, since the scores are; the CMC above is after it.")
    note = photographs.note()
    return [*map(Text, texts), *([note] if note else []), lists, Heading("Who is taken for whom"), *pairs]


def _rank_lists(
    run: ReportRun, answers: Sequence[_Answers], photographs: _Photographs, writer: ReportWriter
) -> Picture:
    chosen = _best_median_worst(answers)
    orders = [_order(one, query) for _, one, query in chosen]
    labels = _labels_of_lists(chosen, orders)
    lists, rows = [], []
    for (kind, one, query), order in zip(chosen, orders, strict=True):
        search, person = one.search, int(one.search.query_people[query])
        found = [
            Tile(
                photographs.of(search.aspect, search.gallery[place]),
                labels[int(search.gallery_people[place])],
                float(search.scores[query, place]),
                bool(search.gallery_people[place] == person),
            )
            for place in order
        ]
        image = search.query[query]
        query_tile = Tile(photographs.of(search.aspect, image), labels[person])
        remark = f"right one\nat rank {one.ranks[query]}"
        lists.append(RankList(f"{kind}\n{search.aspect}", query_tile, found, remark))
        shared: dict[str, object] = {
            "run": run.row.run, "kind": kind, "aspect": search.aspect, "query": image.path, "query_person": person,
            "query_name": search.name_of_query(query),
        }  # fmt: skip
        rows += [
            {
                **shared,
                "rank_of_right": int(one.ranks[query]),
                "place": number,
                "image": search.gallery[place].path,
                "person": int(search.gallery_people[place]),
                "name": search.name_in_gallery(place),
                "score": float(search.scores[query, place]),
            }
            for number, place in enumerate(order, start=1)
        ]
    writer.csv("rank_lists", rows)
    found_at = "; ".join(
        f"{kind}, person {_said(one.search.name_of_query(query))}: right one at rank {one.ranks[query]}"
        for kind, one, query in chosen
    )
    return writer.picture(
        "rank_lists",
        rank_list_figure(lists),
        alt=f"Rank lists of {len(lists)} queries, with the {_LISTED} images found first. {found_at}.",
        caption="The best, the middle and the worst queries of the first draw, by the rank of the right image and then "
        "by how far its score is ahead of the best wrong one; each of another person. The person's name in the data "
        "set stands above each photograph, the score below. Solid green frame and tick: the right person; dashed red "
        f"frame and cross: somebody else. {_cut_names('rank_lists', labels)}",
        photographic=True,
    )


def _order(one: _Answers, query: int) -> Integers:
    """Return the columns of what was found first; of equal scores the wrong one comes first, as in the metrics."""
    search = one.search
    right = search.gallery_people == search.query_people[query]
    return np.lexsort((right, -search.scores[query]))[:_LISTED]


def _labels_of_lists(chosen: Sequence[tuple[str, _Answers, int]], orders: Sequence[Integers]) -> dict[int, str]:
    """Return what stands for each person in the figure of rank lists."""
    names: dict[int, str] = {}
    for (_, one, query), order in zip(chosen, orders, strict=True):
        people = {int(one.search.query_people[query]), *one.search.gallery_people[order].tolist()}
        names |= {person: one.search.names[person] for person in people}
    return person_labels(names, TILE_NAME_INCHES, TILE_NAME_SIZE)


def _said(name: str) -> str:
    """Return a name as part of a sentence."""
    text = visible_name(name)
    return text if len(text) <= _SAID else f"{text[:_SAID]}…"


def _cut_names(table: str, labels: Mapping[int, str]) -> str:
    """Say where the names are whole, if some are not in a figure."""
    if not any("…" in label or label == f"#{person}" for person, label in labels.items()):
        return ""
    return (
        "Long names are cut, and # and the person's number stand for one that cannot be drawn or told apart here; "
        f"tables/{table}.csv has the names."
    )


def _best_median_worst(answers: Sequence[_Answers]) -> list[tuple[str, _Answers, int]]:
    """Choose queries of different people; fewer where there are not enough people."""
    queries = [(one, query) for one in answers for query in np.flatnonzero(one.ranks)]
    queries.sort(key=lambda found: (found[0].ranks[found[1]], -found[0].margins[found[1]]))
    middle = (len(queries) - 1) / 2
    orders = {
        "best": queries,
        "worst": queries[::-1],
        "median": [queries[place] for place in sorted(range(len(queries)), key=lambda place: abs(place - middle))],
    }
    taken: set[int] = set()
    chosen: dict[str, list[tuple[str, _Answers, int]]] = {kind: [] for kind in ("best", "median", "worst")}
    for kind, order in orders.items():
        for one, query in order:
            person = int(one.search.query_people[query])
            if person not in taken and len(chosen[kind]) < _OF_EACH_KIND:
                taken.add(person)
                chosen[kind].append((kind, one, int(query)))
    return [*chosen["best"], *chosen["median"], *reversed(chosen["worst"])]


def _confused_pairs(run: ReportRun, tally: _Tally, photographs: _Photographs, writer: ReportWriter) -> list[Block]:
    confusions = tally.confusions()
    total = tally.searches.total()
    if not confusions:
        return [Text(f"Nobody is: in all {total:,} searches of all draws the right person came first.")]
    rows = [
        {
            "run": run.row.run,
            "query_person": one.people[0],
            "query_name": tally.names[one.people[0]],
            "chosen_person": one.people[1],
            "chosen_name": tally.names[one.people[1]],
            "wrong_searches": one.wrong,
            "searches": one.searches,
            "share": one.share,
            "highest_score": one.score,
            "aspect": one.aspect,
            "query_image": one.query.path,
            "chosen_image": one.chosen.path,
        }
        for one in confusions
    ]
    writer.csv("confusions", rows)
    shown = _distinct_pairs(confusions)
    people = sorted({person for one in shown for person in one.people})
    labels = person_labels({person: tally.names[person] for person in people}, PAIR_NAME_INCHES, TILE_NAME_SIZE)
    pairs = [
        ConfusedPair(
            Tile(photographs.of(one.aspect, one.query), f"query: {labels[one.people[0]]}"),
            Tile(photographs.of(one.aspect, one.chosen), f"chosen: {labels[one.people[1]]}", one.score, right=False),
            f"{one.wrong} of {one.searches} searches ({percent(one.share)} %)"
            + (f"\nphotographs: {one.aspect}" if len(run.aspects) > 1 else ""),
        )
        for one in shown
    ]
    wrong = sum(one.wrong for one in confusions)
    text = (
        f"In {wrong:,} of {total:,} searches of all draws ({percent(wrong / total)} %) somebody else came first. The "
        f"figure shows the {'pair' if len(shown) == 1 else f'{len(shown)} pairs of people'} for whom this happened to "
        "the largest share of one person's searches; tables/confusions.csv has all pairs."
    )
    most = shown[0]
    searched_for, taken_for = (_said(tally.names[person]) for person in most.people)
    picture = writer.picture(
        "confused_pairs",
        confused_pairs_figure(pairs),
        alt=f"Photographs of the {len(shown)} most confused pairs of people. Most often: person {searched_for} is "
        f"taken for person {taken_for} in {most.wrong} of {most.searches} searches.",
        caption="Left a query, right the image of somebody else that came first, with the highest such score. Below: "
        "how many of the left person's searches, over all draws, chose the right person's images. The same photographs "
        "are searched for again in every draw, so these are not independent errors. "
        f"{_cut_names('confusions', labels)}",
        photographic=True,
    )
    return [Text(text), picture]


def _distinct_pairs(confusions: Sequence[_Confusion]) -> list[_Confusion]:
    """Keep the first few, and of two people who are taken for each other the direction that comes first."""
    kept: dict[frozenset[int], _Confusion] = {}
    for one in confusions:
        kept.setdefault(frozenset(one.people), one)
    return list(kept.values())[:_PAIRS]

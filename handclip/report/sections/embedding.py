"""Embedding space: where each run puts the photographs of the same people, as pictures and as numbers."""

from collections.abc import Mapping
from typing import Any

from handclip.metrics.ranking import COSINE_TIE
from handclip.report.figures.embedding import projection_figure
from handclip.report.project import Sample, Space, enough_to_project, numbers, project
from handclip.report.report_data import ReportData, ReportRun, why_not_searched
from handclip.report.report_writer import Block, Column, Note, ReportWriter, Section, Text

_PROJECTIONS_TEXT = (
    "A model turns a photograph into a list of numbers, its embedding: a point in a space of hundreds of dimensions. "
    "Two projections bring that space to paper. t-SNE keeps neighbours together: look whether each person's marks form "
    "one group. PCA looks at the space from where its points are spread widest, and keeps distances as far as two "
    "dimensions can."
)
_NUMBERS_TEXT = (
    "Paper shows two dimensions; these numbers are about all of them. Distances are cosine distances: 0 between "
    "embeddings that point the same way, 1 at a right angle, 2 between opposite ones. Silhouette compares each "
    "photograph's distance to its own person with that to the nearest other person: near 1 people are apart, near 0 "
    "they overlap, below 0 most photographs lie nearer to someone else. Within and between are the mean distances of "
    "two photographs of one person and of two people: a model that tells people apart has a small first and a large "
    "second. Alignment (lower is better) is the mean squared distance within a person, twice the first, as papers give "
    "it. Uniformity is low when embeddings use the whole sphere and 0 when they are all the same; alignment alone "
    "would praise a model that maps everything to one point (Wang and Isola, 2020)."
)


def embedding_section(data: ReportData, writer: ReportWriter) -> Section:
    """Show the featured runs beside each other, and the numbers of all runs."""
    aspect = _aspect(data)
    spaces = {run.row.run: space for run in data.runs if (space := _space(run, aspect)) is not None}
    blocks: list[Block] = []
    if spaces:
        measured = {run: numbers(space) for run, space in spaces.items()}
        blocks += _projections(data, writer, aspect, spaces, measured)
        blocks += _numbers(data, writer, aspect, measured)
    lacking = [run for run in data.runs if run.row.run not in spaces]
    if lacking:
        blocks.append(_missing(lacking, len(data.runs)))
    return Section(
        anchor="embedding",
        title="Embedding space",
        question="Does a model put the photographs of one person together, and those of different people apart?",
        blocks=blocks,
    )


def _aspect(data: ReportData) -> str:
    """One aspect only: one number names a person in all of them, but their hands, palms and backs look different."""
    aspects = data.best.evaluated.aspects()
    return data.block.protocol.aspect if data.block.protocol.aspect in aspects else aspects[0]


def _space(run: ReportRun, aspect: str) -> Space | None:
    found = run.test_features(aspect)
    return None if found is None else Space(run.row.run, run.label, *found, run.names(aspect))


def _missing(lacking: list[ReportRun], runs: int) -> Note:
    names = "; ".join(run.label for run in lacking) if len(lacking) < runs else "all runs"
    of_which = ". Of the first of them" if len(lacking) > 1 else ""
    return Note(f"The embeddings of {names} cannot be shown{of_which}: {why_not_searched(lacking[0])}.", "missing")


def _projections(
    data: ReportData,
    writer: ReportWriter,
    aspect: str,
    spaces: Mapping[str, Space],
    measured: Mapping[str, dict[str, Any]],
) -> list[Block]:
    featured = [spaces[run.row.run] for run in data.featured if run.row.run in spaces]
    if not featured:
        return []
    if not all(map(enough_to_project, featured)):
        return [
            Note(
                f"The {len(featured[0].images)} test images of {aspect} are too few for a picture, which takes three "
                "images and a person with two of them.",
                "missing",
            )
        ]
    sample = Sample.of(featured[0].people)
    panels, rows = project(featured, sample)
    path = writer.csv("projections", rows)
    return [
        Text(_PROJECTIONS_TEXT),
        writer.picture(
            "embedding_space",
            projection_figure(panels, sample.named, featured[0].names),
            alt=_alt(featured, measured, len(sample.named)),
            caption=_caption(aspect, sample, featured[0], path.name),
        ),
    ]


def _alt(featured: list[Space], measured: Mapping[str, dict[str, Any]], named: int) -> str:
    parts = [f"{space.label}: silhouette {_decimal(measured[space.run]['silhouette'])}" for space in featured]
    return (
        f"Scatter plots of the same photographs for {len(featured)} runs, t-SNE above and PCA below, with {named} "
        f"people marked by colour and shape. How well people are apart: {'; '.join(parts)}."
    )


def _caption(aspect: str, sample: Sample, space: Space, table: str) -> str:
    people = len(set(space.people.tolist()))
    part = f"{len(sample.people)} of the {people}" if len(sample.people) < people else f"all {people}"
    return (
        f"Test photographs ({aspect}) of {part} people, once for each run: t-SNE above, PCA below. The same "
        f"{len(sample.named)} people, drawn at random, have the same colour and shape everywhere; all others are grey. "
        "In t-SNE the distances between groups and their sizes mean little, and its axes have no unit. The axes of "
        "PCA say how much of the variance they show; where that is little, people may be apart in other directions. "
        f"Every point is in tables/{table}."
    )


def _numbers(
    data: ReportData, writer: ReportWriter, aspect: str, measured: Mapping[str, dict[str, Any]]
) -> list[Block]:
    labels = {run.row.run: run.label for run in data.runs}
    columns = [
        Column("run", "Run", lambda run: labels[run]),
        *(
            Column(key, title, _decimal, numeric=True)
            for key, title in (
                ("silhouette", "Silhouette"),
                ("within", "Within a person"),
                ("between", "Between people"),
                ("alignment", "Alignment"),
                ("uniformity", "Uniformity"),
            )
        ),
    ]
    rows = list(measured.values())
    first = rows[0]
    caption = (
        f"The embedding space of {first['images']} test photographs ({aspect}) of {first['people']} people, of whom "
        f"{first['people_with_pairs']} have at least two; who has one is left out of what needs two."
    )
    return [Text(_NUMBERS_TEXT), writer.table("embedding_space", columns, rows, caption)]


def _decimal(value: float | None) -> str:
    if value is None:
        return "not known"
    if abs(value) < COSINE_TIE:  # of images that a model sees no difference between
        return "0"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1g}"

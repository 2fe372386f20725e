"""Embedding space: where each run puts the photographs of the same people, as pictures and as numbers."""

from collections.abc import Mapping
from typing import Any

from handclip.metrics.ranking import COSINE_TIE
from handclip.report.figures.embedding import projection_figure
from handclip.report.project import Sample, Space, enough_to_project, numbers, project
from handclip.report.report_data import ReportData, ReportRun, why_not_searched
from handclip.report.report_writer import ReportWriter, Section, SectionWriter
from handclip.report.table import Column


def embedding_section(data: ReportData, writer: ReportWriter) -> Section:
    """Show the featured runs beside each other, and the numbers of all runs."""
    # One aspect only: one number names a person in all of them, but their hands, palms and backs look different.
    aspects = data.best.evaluated.aspects()
    aspect = data.block.protocol.aspect if data.block.protocol.aspect in aspects else aspects[0]
    page = writer.section("embedding", data=data, aspect=aspect, decimal=_decimal)
    spaces = {run.row.run: space for run in data.runs if (space := _space(run, aspect)) is not None}
    if spaces:
        measured = {run: numbers(space) for run, space in spaces.items()}
        featured = [spaces[run.row.run] for run in data.featured if run.row.run in spaces]
        if featured:
            _projections(featured, measured, page)
        _numbers(data, measured, page)
    lacking = [run for run in data.runs if run.row.run not in spaces]
    if lacking:
        page.words("lacking", lacking=lacking, reason=why_not_searched(lacking[0]))
    return page.finished()


def _space(run: ReportRun, aspect: str) -> Space | None:
    found = run.test_features(aspect)
    return None if found is None else Space(run.row.run, run.label, *found, run.names(aspect))


def _projections(featured: list[Space], measured: Mapping[str, dict[str, Any]], page: SectionWriter) -> None:
    first = featured[0]
    too_few = not all(map(enough_to_project, featured))
    page.words("projections", too_few=too_few, images=len(first.images))
    if too_few:
        return
    sample = Sample.of(first.people)
    panels, rows = project(featured, sample)
    page.csv("projections", rows)
    figure = projection_figure(panels, sample.named, first.names)
    people = len(set(first.people.tolist()))
    page.picture("embedding_space", figure, featured=featured, measured=measured, sample=sample, people=people)


def _numbers(data: ReportData, measured: Mapping[str, dict[str, Any]], page: SectionWriter) -> None:
    labels = {run.row.run: run.label for run in data.runs}
    titles = {
        "silhouette": "Silhouette",
        "within": "Within a person",
        "between": "Between people",
        "alignment": "Alignment",
        "uniformity": "Uniformity",
    }
    columns = [
        Column("run", "Run", labels.__getitem__),
        *(Column(key, title, _decimal, numeric=True) for key, title in titles.items()),
    ]
    rows = list(measured.values())
    page.words("numbers")
    page.table("embedding_space", columns, rows, page.csv("embedding_space", rows), first=rows[0])


def _decimal(value: float | None) -> str:
    if value is None:
        return "not known"
    if abs(value) < COSINE_TIE:  # of images that a model sees no difference between
        return "0"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1g}"

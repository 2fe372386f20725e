"""How runs arrange people in their embedding spaces: what `handclip project` draws, and the report's section too."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.datasets.manifest import ManifestImage
from handclip.errors import HandCLIPError
from handclip.locks import holding
from handclip.metrics.embedding_space import FEWEST_POINTS, measure_space, principal_plane, project_tsne
from handclip.report.figures.embedding import MOST_NAMED, MOST_PANELS, Projections, projection_figure
from handclip.report.report_data import ReportRun, why_not_searched
from handclip.report.report_writer import ReportWriter
from handclip.report.row_names import differing_options
from handclip.report.runs import read_runs, require_all_read
from handclip.report.selection import gather, run_label

MOST_POINTS = 500
"""More images are not projected: t-SNE takes a second for 250 of them, and dots would hide each other."""

_SEED = 0


@dataclass(frozen=True, eq=False)
class Space:
    """The test images of one aspect as a run embeds them.

    Args:
        run: the run's name.
        label: its short name in figures.
        images: N images.
        features: (N, D) of length 1.
        names: what the data set calls each identity.
    """

    run: str
    label: str
    images: Sequence[ManifestImage]
    features: NDArray[np.float64]
    names: Mapping[int, str]

    @property
    def people(self) -> NDArray[np.int64]:
        """(N,) identity on each image."""
        return np.array([image.identity for image in self.images], dtype=np.int64)


@dataclass(frozen=True)
class Sample:
    """The people of a projection, the same for all runs: `named` have a colour each, `people` are all that are shown.

    They are drawn at random, the same way every time, and never by how well a run does on them.
    """

    named: tuple[int, ...]
    people: frozenset[int]

    @classmethod
    def of(cls, people: NDArray[np.int64]) -> "Sample":
        """Choose from the (N,) identities on all images; who has one image only gets no colour."""
        persons, counts = np.unique(people, return_counts=True)
        order = np.random.default_rng(_SEED).permutation(len(persons))
        named = [place for place in order if counts[place] > 1][:MOST_NAMED]
        chosen, points = list(named), int(counts[named].sum())
        for place in order:
            if place not in named and points + counts[place] <= MOST_POINTS:
                chosen.append(place)
                points += counts[place]
        return cls(tuple(sorted(map(int, persons[named]))), frozenset(map(int, persons[chosen])))


def project(spaces: Sequence[Space], sample: Sample) -> tuple[list[Projections], list[dict[str, Any]]]:
    """Return the columns of a figure, and the rows of a table with every point in it."""
    panels, rows = [], []
    for space in spaces:
        shown = np.isin(space.people, list(sample.people))
        features, people = space.features[shown], space.people[shown]
        images = [image for image, chosen in zip(space.images, shown, strict=True) if chosen]
        plane, tsne = principal_plane(features), project_tsne(features, seed=_SEED)
        panels.append(Projections(space.label, tsne, plane.points, plane.explained, people))
        for method, points in (("tsne", tsne), ("pca", plane.points)):
            rows += [
                {
                    "run": space.run, "method": method, "image": image.path, "person": image.identity,
                    "name": space.names[image.identity], "x": x, "y": y,
                }
                for image, (x, y) in zip(images, points.tolist(), strict=True)
            ]  # fmt: skip
    return panels, rows


def numbers(space: Space) -> dict[str, Any]:
    """Return one row of the table of numbers."""
    return {"run": space.run, **asdict(measure_space(space.features, space.people))}


def enough_to_project(space: Space) -> bool:
    """Whether there are points enough for a picture, of at least one person with two."""
    people = space.people
    return len(people) >= max(FEWEST_POINTS, len(np.unique(people)) + 1)


def project_runs(paths: Sequence[Path], out: Path) -> list[Path]:
    """Draw the embedding spaces of evaluated runs beside each other, in the order given.

    Runs that were evaluated on the same test images share figures, four in each; of several aspects the first is
    taken, where each person has one identity. Files in `figures/` and `tables/` are replaced.

    Args:
        paths: folders of evaluations, or folders that hold some.
        out: folder to write to.

    Returns:
        The files: PNG and SVG of each figure, `projections.csv` with every point, and `embedding_space.csv` with
        silhouette, distances, alignment and uniformity.

    Raises:
        HandCLIPError: there is no evaluation, one lacks its features or what belongs to them, or one has too few
            images.
        InUseError: another process writes to `out`.
    """
    with holding(out):
        runs, unread = _read_runs(paths)
        groups = _on_the_same_images(runs)
        writer = ReportWriter(out)
        points: list[dict[str, Any]] = []
        measured: list[dict[str, Any]] = []
        for name, ((dataset, aspect, sha256, _), spaces) in zip(_names(groups), groups.items(), strict=True):
            data = {"dataset": dataset, "aspect": aspect, "manifest_sha256": sha256}
            sample = Sample.of(spaces[0].people)
            panels, rows = project(spaces, sample)
            points += [{**data, **row} for row in rows]
            measured += [{**data, "label": space.label, **numbers(space)} for space in spaces]
            for part, start in enumerate(range(0, len(panels), MOST_PANELS), start=1):
                figure = projection_figure(panels[start : start + MOST_PANELS], sample.named, spaces[0].names)
                part_name = f"{name}_{part}" if len(panels) > MOST_PANELS else name
                writer.picture(part_name, figure, alt="", caption="")
        writer.csv("projections", points)
        writer.csv("embedding_space", measured)
        require_all_read(unread, out)
        return writer.files


def _on_the_same_images(runs: Iterable[ReportRun]) -> dict[tuple[str, str, str, tuple[str, ...]], list[Space]]:
    """Put runs together by data set, aspect, manifest and the hashes of the test images that were drawn of it."""
    groups: dict[tuple[str, str, str, tuple[str, ...]], list[Space]] = {}
    for run in runs:
        aspect = run.aspects[0]
        space = _space(run, aspect)
        assert run.manifests is not None
        images = tuple(image.sha256 for image in space.images)
        place = (run.evaluated.metrics.dataset, aspect, run.manifests[aspect].sha256, images)
        groups.setdefault(place, []).append(space)
    return groups


def _read_runs(paths: Sequence[Path]) -> tuple[list[ReportRun], list[str]]:
    """Read evaluations, and number them in the order given; return also what may not be read."""
    # Each alone, since nothing is compared: they may be of different data.
    evaluated, unread = read_runs(paths)
    runs = [gather([run]).best for run in evaluated]
    rows = [run.row.model_copy(update={"number": number}) for number, run in enumerate(runs, start=1)]
    return [
        replace(run, row=row, label=run_label(row, differing))
        for run, row, differing in zip(runs, rows, differing_options(rows), strict=True)
    ], unread


def _space(run: ReportRun, aspect: str) -> Space:
    found = run.test_features(aspect)
    if found is None:
        raise HandCLIPError(why_not_searched(run))
    space = Space(run.row.run, run.label, *found, run.names(aspect))
    if not enough_to_project(space):
        raise HandCLIPError(
            f"{run.folder}: its {len(space.images)} test images of {len(set(space.people.tolist()))} people are too "
            "few to be projected; it takes three images, and a person with two of them"
        )
    return space


def _names(groups: Iterable[tuple[str, str, str, tuple[str, ...]]]) -> list[str]:
    """Name figures after their data; a number tells apart what would read the same."""
    names = [f"projection_{dataset}_{aspect}_{sha256[:8]}" for dataset, aspect, sha256, _ in groups]
    return [
        f"{name}_draws{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]

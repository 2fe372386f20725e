"""What a report is made from: the files of evaluated runs, read once, and what follows from them in common.

No model is run and no photograph is needed. What cannot be read is None here, and the reason is in `missing`.
"""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from handclip.checksums import require_intact
from handclip.config.loading import read_yaml
from handclip.csv_files import csv_rows
from handclip.datasets.manifest import Manifest, ManifestImage
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import CONFIG, ENVIRONMENT, HISTORY, PER_QUERY, RESULT
from handclip.files import opened_text, read_json_object
from handclip.report.matrix import Matrix, MatrixBlock, RunRow
from handclip.report.runs import EvaluatedRun
from handclip.retrieval.features import validation_pairs
from handclip.runs.artifacts import (
    AGAIN,
    Explanation,
    KeptFeatures,
    manifest_file,
    read_attributes,
    read_explanations,
    read_features,
)
from handclip.runs.data import combined_sha256

logger = logging.getLogger(__name__)

_TRAINING_AGAIN = "Put the file back from a copy; only training once more could make it again"

Integers = NDArray[np.int64]
_Content = TypeVar("_Content")


@dataclass(frozen=True, eq=False)
class Search:
    """Every query of one draw of one aspect against its gallery.

    Args:
        aspect: aspect of the hand.
        split: number of the draw, from 0; -1 for the validation images.
        query: Q images.
        gallery: G images.
        scores: (Q, G) cosine similarities, before any re-ranking; in float64, in which the metrics rank.
        query_people: (Q,) identity of each query.
        gallery_people: (G,) identity of each gallery image.
        names: what the data set calls each identity.
    """

    aspect: str
    split: int
    query: Sequence[ManifestImage]
    gallery: Sequence[ManifestImage]
    scores: NDArray[np.float64]
    query_people: Integers
    gallery_people: Integers
    names: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class ReportRun:
    """One evaluated run, as a report shows it.

    Args:
        evaluated: its metrics and outcomes.
        row: its row of the block that the report is about; its `number` is shown wherever the run is named.
        label: number, stage, model and losses: `7. stage 2 vit_small ce + triplet`.
        aspects: aspects that the report is about; the run may have been evaluated on more.
        flip: flip setting that the report is about.
        style: number of its colour and dash in every figure; None for runs that figures leave out.
        with_photographs: whether the report may hold photographs.
    """

    evaluated: EvaluatedRun
    row: RunRow
    label: str
    aspects: Sequence[str]
    flip: str
    style: int | None
    with_photographs: bool = True

    @property
    def folder(self) -> Path:
        """The folder of its evaluation."""
        return self.evaluated.folder

    @cached_property
    def missing(self) -> dict[str, str]:
        """What could not be read, by name: `features`, `manifests`, ...; each with why and what to do, no full stop."""
        return {}

    @cached_property
    def damaged(self) -> list[str]:
        """What was found damaged when it was read, and what to do about it; a sentence for each file."""
        return []

    def damage_of(self, *names: str) -> str:
        """Return why the first of some could not be read, where it was damaged, without a full stop; else nothing."""
        return next((self.missing[name] for name in names if self.missing.get(name) in self.damaged), "")

    def tell_damage(self, fault: str) -> None:
        """Add to `damaged`, and warn."""
        self.damaged.append(fault)
        logger.warning(fault)

    @cached_property
    def manifests(self) -> dict[str, Manifest] | None:
        """The manifest of each aspect that the report is about."""
        return self._read("manifests", self._read_manifests)

    @cached_property
    def features(self) -> KeptFeatures | None:
        """The features of all images of the draws, and of the validation pairs."""
        return self._read("features", lambda: read_features(self.folder))

    @cached_property
    def attributes(self) -> dict[str, dict[str, str]] | None:
        """Attributes of each image that has any, by path: `age`, `gender`, `skin_colour`, ..."""
        return self._read("attributes", lambda: read_attributes(self.folder))

    @cached_property
    def explanations(self) -> list[Explanation] | None:
        """Where the model looks in a few photographs."""
        if not self.with_photographs:
            self.missing["explanations"] = "photographs were left out, as was asked for"
            return None
        return self._read("explanations", lambda: read_explanations(self.folder))

    @cached_property
    def training_folder(self) -> Path | None:
        """Where training wrote its records; None for a baseline, and where they are gone."""
        if self.evaluated.cost.training_file is None:
            return None
        recorded = Path(self.evaluated.cost.training_file)
        # A study that was moved has them beside its evaluations.
        beside = self.folder.parent.parent / Path(*recorded.parts[-3:])
        return next((path.parent for path in (recorded, beside) if path.is_file()), None)

    @cached_property
    def history(self) -> list[dict[str, float | None]] | None:
        """What training recorded of each epoch; None for a baseline. A value that was not measured is None."""
        return self._read_of_training("history", HISTORY, _read_history)

    @cached_property
    def training_result(self) -> dict[str, Any] | None:
        """`result.json` of training."""
        return self._read_of_training("result", RESULT, read_json_object)

    @cached_property
    def training_environment(self) -> dict[str, Any] | None:
        """Code version, machine and libraries of training."""
        return self._read_of_training("environment of training", ENVIRONMENT, read_json_object)

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved config of the evaluation."""
        return self._read("config", lambda: read_yaml(_intact(self.folder, CONFIG)))

    @cached_property
    def environment(self) -> dict[str, Any] | None:
        """Code version, machine and libraries of the evaluation."""
        return self._read("environment", lambda: read_json_object(_intact(self.folder, ENVIRONMENT)))

    def searches(self) -> Iterator[Search]:
        """Yield each draw of each aspect with its own gallery; nothing where features or manifests are missing."""
        for aspect, manifest in self._embedded():
            for split, draw in enumerate(manifest.draws[: self._draws]):
                yield self._search(manifest, aspect, split, draw.query, draw.gallery)

    def validation_searches(self) -> Iterator[Search]:
        """Yield one search for each aspect: the validation images of training people against a training image of each.

        Whether the model was trained on the validation images is told by `validation_was_trained_on`.
        """
        for aspect, manifest in self._embedded():
            queries, gallery = validation_pairs(manifest)
            if queries:
                yield self._search(manifest, aspect, -1, queries, gallery)

    @property
    def validation_was_trained_on(self) -> bool:
        """Whether training used the validation images as well, which makes them too easy."""
        metrics = self.evaluated.metrics
        return not metrics.cross_domain and metrics.options.get("train_split") == "train_all"

    def test_features(self, aspect: str) -> tuple[list[ManifestImage], NDArray[np.float64]] | None:
        """Return the test images of an aspect that any draw uses, and their (N, D) features of length 1."""
        if self.manifests is None or self.features is None or aspect not in self.manifests:
            return None
        manifest = self.manifests[aspect]
        used = sorted({index for draw in manifest.draws[: self._draws] for index in (*draw.query, *draw.gallery)})
        tested = set(manifest.test)
        images = [manifest.images[index] for index in used if index in tested]
        return images, self.features.of(images, self.flip)

    def names(self, aspect: str) -> Mapping[int, str]:
        """Return what the data set calls each identity of an aspect; nothing where the manifest is missing."""
        return {} if self.manifests is None else self.manifests[aspect].identity_names

    def photograph(self, aspect: str, image: ManifestImage) -> Path | None:
        """Return the file of an image, None where it is not on this machine or may not be shown."""
        if self.manifests is None or not self.with_photographs:
            return None
        path = self.manifests[aspect].file_of(image)
        return path if path.is_file() else None

    @property
    def _draws(self) -> int:
        return self.evaluated.metrics.results[0].num_splits

    def _read_manifests(self) -> dict[str, Manifest]:
        names = {aspect: manifest_file(self.folder, aspect).name for aspect in self.evaluated.aspects()}
        manifests = {aspect: Manifest.load(_intact(self.folder, name)) for aspect, name in names.items()}
        if combined_sha256(manifests) != self.evaluated.metrics.manifest_sha256:
            raise DamagedFileError(
                f"{', '.join(names.values())} in {self.folder} are not what metrics.json beside them was measured "
                f"with. {AGAIN}"
            )
        return {aspect: manifests[aspect] for aspect in self.aspects}

    def _embedded(self) -> Iterable[tuple[str, Manifest]]:
        return self.manifests.items() if self.manifests is not None and self.features is not None else ()

    def _search(
        self, manifest: Manifest, aspect: str, split: int, query: Sequence[int], gallery: Sequence[int]
    ) -> Search:
        assert self.features is not None
        queries, candidates = ([manifest.images[index] for index in indices] for indices in (query, gallery))
        scores = self.features.of(queries, self.flip) @ self.features.of(candidates, self.flip).T
        query_people, gallery_people = (
            np.array([image.identity for image in images], dtype=np.int64) for images in (queries, candidates)
        )
        names = manifest.identity_names
        return Search(aspect, split, queries, candidates, scores, query_people, gallery_people, names)

    def _read_of_training(self, kind: str, name: str, read: Callable[[Path], _Content]) -> _Content | None:
        folder = self.training_folder
        return None if folder is None else self._read(kind, lambda: read(_intact(folder, name)))

    def _read(self, name: str, read: Callable[[], _Content]) -> _Content | None:
        try:
            return read()
        except HandCLIPError as error:
            self.missing[name] = str(error)
            if isinstance(error, DamagedFileError):
                self.tell_damage(str(error))
            return None


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report shows.

    Args:
        matrix: the comparison of all runs.
        block: the block of the matrix that the report goes into.
        runs: every run of that block, in its order.
        shown: runs that share a figure, at most eight: the best of each model and stage.
        featured: runs that are shown beside each other, at most four: CLIP's stages and the CNN.
        best: the run of the highest Rank-1.
    """

    matrix: Matrix
    block: MatrixBlock
    runs: Sequence[ReportRun]
    shown: Sequence[ReportRun]
    featured: Sequence[ReportRun]
    best: ReportRun


def why_not_searched(run: ReportRun) -> str:
    """Return why a run has no searches and no features, and what to do, without a full stop; empty where it has."""
    return run.missing.get("manifests") or run.missing.get("features", "")


def _intact(folder: Path, name: str) -> Path:
    """Return the path of a file of an evaluation, or of training, which is there and as it was written."""
    advice = AGAIN if (folder / PER_QUERY).exists() else _TRAINING_AGAIN
    require_intact(folder, [name], advice=advice)
    if not (folder / name).is_file():
        raise HandCLIPError(f"{folder / name}: no such file. {advice}")
    return folder / name


def _read_history(path: Path) -> list[dict[str, float | None]]:
    try:
        with opened_text(path) as file:
            header, *lines = csv_rows(file)
        values = [[float(cell) if cell else None for cell in line] for line in lines]
        return [dict(zip(header, line, strict=True)) for line in values]
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedFileError(f"{path}: is damaged ({error}). {_TRAINING_AGAIN}") from error

"""Reading what evaluations have written, and refusing what does not belong together."""

import csv
import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, field_validator

from handclip.checksums import faults, read_checksums
from handclip.csv_files import csv_rows
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import CHECKSUMS, COST, METRICS_FILE, PER_QUERY
from handclip.files import folders_in, is_file, is_folder, is_there, opened_text, read_json
from handclip.metrics.uncertainty import PersonSums
from handclip.report.matrix import METRICS
from handclip.runs.artifacts import AGAIN

logger = logging.getLogger(__name__)

_DEPTH = 3
"""How deep below a folder evaluations are looked for: a study's folder has them at 2."""

_COLUMNS = ("aspect", "gallery_protocol", "flip", "split", "image", "identity", "name", "rank", "ap", "ap_trapezoid")
_NAME = _COLUMNS.index("name")
"""Older evaluations have no such column, and nothing is computed from it."""
_TOLERANCE = 1e-9

Floats = NDArray[np.float64]
Setting = tuple[str, str, str]
"""Aspect, gallery protocol and flip setting."""


class RerankEntry(BaseModel):
    """`rerank` of `metrics.json`."""

    k1: int
    k2: int
    weight: float = Field(alias="lambda")


class TrainedOnEntry(BaseModel):
    """`trained_on` of `metrics.json`."""

    dataset: str
    aspect: str
    manifest_sha256: str


class ResultEntry(BaseModel):
    """One entry of `results`: a gallery protocol and a flip setting."""

    gallery_protocol: str
    flip: str
    num_splits: int
    mean: dict[str, FiniteFloat]
    std: dict[str, FiniteFloat]
    gallery_images: list[int]
    queries: int
    tied_queries: int | None = None
    copied_queries: int | None = None

    @field_validator("mean", "std")
    @classmethod
    def _hold_every_metric(cls, values: dict[str, float]) -> dict[str, float]:
        if lacking := [name for name in METRICS if name not in values]:
            raise ValueError(f"lacks {', '.join(lacking)}")
        return values


class AspectEntry(BaseModel):
    """One entry of `per_aspect`."""

    manifest_sha256: str
    results: list[ResultEntry]


class MetricsFile(BaseModel):
    """What a comparison needs of `metrics.json`."""

    run: str
    experiment: str
    variant: str
    dataset: str
    aspect: str
    model: str
    stage: str
    family: str = ""
    losses: list[str]
    seed: int
    input_size: tuple[int, int]
    manifest_sha256: str
    feature_dim: int
    parameters: int
    gflops_per_image: FiniteFloat | None
    rerank: RerankEntry | None
    trained_on: TrainedOnEntry | None
    training_ended: bool | None = None
    cross_domain: bool
    options: dict[str, Any] = {}
    results: list[ResultEntry]
    per_aspect: dict[str, AspectEntry] = {}


class MachineEntry(BaseModel):
    """What either part of `cost.json` says of the machine it ran on."""

    device: str | None = None
    processor: str | None = None
    cores: int | None = None


class EvaluationCost(MachineEntry):
    """`evaluation` of `cost.json`."""

    images_per_second: FiniteFloat | None = None


class TrainingCost(MachineEntry):
    """`training` of `cost.json`."""

    file: str | None = None
    seconds: FiniteFloat | None = None
    images_per_second: FiniteFloat | None = None
    peak_memory_mib: FiniteFloat | None = None
    peak_gpu_memory_mib: FiniteFloat | None = None
    precision: str | None = None


class CostFile(BaseModel):
    """What a comparison shows of `cost.json`."""

    evaluation: EvaluationCost = EvaluationCost()
    training: TrainingCost | None = None


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One aspect under one setting, summed over each person's queries: see `PersonSums`.

    `queries` is a hash of which queries there are in which draw, of whom, and which can be answered.
    """

    people: tuple[str, ...]
    sums: Floats
    counts: Floats
    queries: str


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """One evaluation, as its files have it."""

    folder: Path
    metrics: MetricsFile
    cost: CostFile | None
    outcomes: Mapping[Setting, Outcomes]
    damaged: tuple[str, ...] = ()
    """Tables beside them that are damaged, from which these numbers were not taken; a sentence for each."""

    def files(self) -> dict[str, str]:
        """Return where the numbers come from."""
        files = {"metrics": self.folder / METRICS_FILE, "per_query": self.folder / PER_QUERY}
        if self.cost is not None:
            files["cost"] = self.folder / COST
            if self.cost.training is not None and self.cost.training.file is not None:
                files["training"] = Path(self.cost.training.file)
        return {name: str(path) for name, path in files.items()}

    def aspects(self) -> tuple[str, ...]:
        """Return the aspects that were evaluated."""
        return tuple(self.metrics.per_aspect) or (self.metrics.aspect,)

    def outcomes_of(self, aspects: Sequence[str], entry: ResultEntry) -> list[Outcomes]:
        """Return the outcomes of some aspects under the setting of an entry of `results`.

        Raises:
            HandCLIPError: `per_query.csv` lacks them.
        """
        found = [self.outcomes.get((aspect, entry.gallery_protocol, entry.flip)) for aspect in aspects]
        present = [outcomes for outcomes in found if outcomes is not None]
        if len(present) < len(found):
            raise HandCLIPError(
                f"{self.folder / PER_QUERY}: has no {entry.gallery_protocol}, flip {entry.flip}, although "
                "metrics.json beside it has: the two do not belong together. Evaluate the run again"
            )
        return present


def find_evaluations(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return the folders of all evaluations that are named: by folder, by `metrics.json`, or by a folder above.

    Returns:
        The folders, and a sentence for each folder below the named ones that may not be read, which is warned of, too.

    Raises:
        HandCLIPError: a path names none, or may not be read itself; or an evaluation is named twice.
    """
    named: dict[Path, tuple[Path, Path]] = {}
    unread: list[str] = []
    for path in paths:
        folders, sentences = _evaluations_of(path)
        unread += sentences
        for folder in folders:
            place = folder.resolve()
            if place in named:
                raise HandCLIPError(f"{folder}: the same run is named twice, by {named[place][1]} and by {path}")
            named[place] = (folder, path)
    return [folder for folder, _ in named.values()], unread


def _evaluations_of(path: Path) -> tuple[list[Path], list[str]]:
    if path.name == METRICS_FILE and is_file(path):
        return [path.parent], []
    if not is_there(path):
        raise HandCLIPError(f"{path}: no such file or folder")
    if is_folder(path):
        found, unread = _look_below(path)
        if found:
            return found, unread
    raise HandCLIPError(f"{path}: holds no evaluation. Name folders that `handclip evaluate` has written, or one above")


def _look_below(place: Path) -> tuple[list[Path], list[str]]:
    """Return the evaluations in a folder and those below it, the upper ones first, and what may not be read."""
    found: list[Path] = []
    unread: list[str] = []
    level = [place]
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                inner = folders_in(folder)
                if is_there(folder / METRICS_FILE):
                    found.append(folder)
                elif is_there(folder / PER_QUERY):
                    why = f"holds {PER_QUERY} but no {METRICS_FILE}; evaluate that run again"
                    logger.warning(f"Left out: {folder} {why}")
            except HandCLIPError as error:
                if folder is place:
                    raise
                unread.append(f"{error}; what is there is not compared")
                logger.warning(f"Left out: {unread[-1]}")
            else:
                below += inner
        level = below
    return found, unread


def read_runs(paths: Iterable[Path]) -> tuple[list[EvaluatedRun], list[str]]:
    """Read all evaluations that are named, see `find_evaluations` and `read_run`.

    Returns:
        The evaluations, and a sentence for each folder that may not be read.

    Raises:
        HandCLIPError: as they do.
    """
    folders, unread = find_evaluations(paths)
    runs = [read_run(folder) for folder in folders]
    warn_of_missing_checksums(folders)
    return runs, unread


def require_all_read(unread: Sequence[str], out: Path) -> None:
    """Check that nothing was left out of what has been written to a folder.

    Raises:
        HandCLIPError: something was; says what and why.
    """
    if unread:
        raise HandCLIPError(f"{out} was written, but not of all that is named: {'; '.join(unread)}")


def warn_of_missing_checksums(folders: Iterable[Path]) -> None:
    """Say of which evaluations damage cannot be noticed."""
    without = [folder for folder in folders if not (folder / CHECKSUMS).exists()]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        logger.warning(
            f"Not checked for damage: {without[0]}{more}. An evaluation without {CHECKSUMS} is by an older version of "
            "HandCLIP, or was cut short at the very end; evaluate it again to have it"
        )


def read_run(folder: Path) -> EvaluatedRun:
    """Read one evaluation.

    Raises:
        HandCLIPError: a file is missing, damaged, or of another version, or `per_query.csv` does not add up to
            `metrics.json`.
        DamagedFileError: a file is not what `SHA256SUMS` beside it says.
    """
    damaged = _require_undamaged(folder)
    metrics = _parse(MetricsFile, folder / METRICS_FILE)
    cost = _parse(CostFile, folder / COST) if (folder / COST).exists() else None
    run = EvaluatedRun(folder, metrics, cost, _read_outcomes(folder / PER_QUERY), damaged)
    for entry in metrics.results:
        _check_adds_up(run, run.aspects(), entry)
    for aspect, part in metrics.per_aspect.items():
        for entry in part.results:
            _check_adds_up(run, [aspect], entry)
    return run


def _require_undamaged(folder: Path) -> tuple[str, ...]:
    """Check what a comparison is made from; return what is wrong with other tables, and warn of it."""
    needed = (METRICS_FILE, PER_QUERY, COST)
    if found := faults(folder, needed, all_listed=True):
        raise DamagedFileError(f"{found[0]}. {AGAIN}")
    others = [name for name in read_checksums(folder) or {} if name not in needed and not name.endswith(".safetensors")]
    damaged = tuple(f"{fault}. {AGAIN}" for fault in faults(folder, others))
    for fault in damaged:
        logger.warning(fault)
    return damaged


_File = TypeVar("_File", bound=BaseModel)


def _parse(kind: type[_File], path: Path) -> _File:
    content = read_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise HandCLIPError(
            f"{path}: {where + ': ' if where else ''}{fault['msg'].lower()}. It was damaged or written by another "
            "version of HandCLIP; evaluate the run again with --overwrite"
        ) from None


def _read_outcomes(path: Path) -> dict[Setting, Outcomes]:
    queries: dict[Setting, _Queries] = {}
    number = 2
    try:
        with opened_text(path) as file:
            reader = csv_rows(file)
            header = tuple(next(reader, ()))
            if header not in (_COLUMNS, (*_COLUMNS[:_NAME], *_COLUMNS[_NAME + 1 :])):
                raise HandCLIPError(
                    f"{path}: its columns are not {', '.join(_COLUMNS)}. It was damaged or written by another version "
                    "of HandCLIP; evaluate the run again with --overwrite"
                )
            for row in reader:
                if header == _COLUMNS:
                    row = [*row[:_NAME], *row[_NAME + 1 :]]
                aspect, protocol, flip, *query = row
                queries.setdefault((aspect, protocol, flip), _Queries()).add(*query)
                number += 1
    except FileNotFoundError:
        raise HandCLIPError(f"{path}: no such file; without it nothing can be tested. Evaluate the run again") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DamagedFileError(f"{path}: line {number}: is damaged ({error}). {AGAIN}") from error
    return {setting: found.outcomes() for setting, found in queries.items()}


class _Queries:
    """Collects the queries of one aspect under one setting."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._identities: list[str] = []
        self._splits: list[int] = []
        self._values: list[tuple[float, ...]] = []

    def add(self, split: str, image: str, identity: str, rank: str, ap: str, ap_trapezoid: str) -> None:
        place = int(rank)
        self._lines.append(f"{int(split)},{image},{identity},{place > 0}")
        if place > 0:  # a query without a relevant image is counted nowhere
            if not math.isfinite(float(ap)) or not math.isfinite(float(ap_trapezoid)):
                raise ValueError(f"its average precision is {ap} and {ap_trapezoid}")
            self._identities.append(identity)
            self._splits.append(int(split))
            self._values.append((place <= 1, place <= 5, place <= 10, float(ap), float(ap_trapezoid)))

    def outcomes(self) -> Outcomes:
        people, rows = np.unique(self._identities, return_inverse=True)
        draws, columns = np.unique(self._splits, return_inverse=True)
        sums = np.zeros((len(people), len(draws), len(METRICS)))
        counts = np.zeros((len(people), len(draws)))
        np.add.at(sums, (rows, columns), np.array(self._values, dtype=np.float64).reshape(-1, len(METRICS)))
        np.add.at(counts, (rows, columns), 1)
        queries = hashlib.sha256("\n".join(sorted(self._lines)).encode()).hexdigest()
        return Outcomes(tuple(map(str, people)), sums, counts, queries)


def person_sums(aspects: Sequence[Outcomes]) -> PersonSums:
    """Put the draws of several aspects side by side; a person's rows in all of them become one."""
    people = sorted({person for outcomes in aspects for person in outcomes.people})
    place = {person: row for row, person in enumerate(people)}
    sums, counts = [], []
    for outcomes in aspects:
        rows = [place[person] for person in outcomes.people]
        draws = outcomes.counts.shape[1]
        sums.append(np.zeros((len(people), draws, len(METRICS))))
        counts.append(np.zeros((len(people), draws)))
        sums[-1][rows] = outcomes.sums
        counts[-1][rows] = outcomes.counts
    return PersonSums(np.concatenate(sums, axis=1), np.concatenate(counts, axis=1))


def _check_adds_up(run: EvaluatedRun, aspects: Sequence[str], entry: ResultEntry) -> None:
    """The statistic that is resampled must be the one that is reported."""
    path = run.folder / PER_QUERY
    outcomes = run.outcomes_of(aspects, entry)
    if len({person for part in outcomes for person in part.people}) < 2:
        raise HandCLIPError(
            f"{path}: {entry.gallery_protocol}, flip {entry.flip}: only one person in the gallery is searched for, and "
            "intervals and tests take at least two. Evaluate on more people, or leave this evaluation out"
        )
    means = person_sums(outcomes).means
    draws = {part.counts.shape[1] for part in outcomes}
    for name, mean in zip(METRICS, means, strict=True):
        if draws != {entry.num_splits} or abs(mean - entry.mean[name]) > _TOLERANCE:
            raise HandCLIPError(
                f"{path}: {entry.gallery_protocol}, flip {entry.flip}: {name} is {mean:.6f} over {max(draws)} draws, "
                f"but metrics.json beside it says {entry.mean[name]:.6f} over {entry.num_splits}: the two do not "
                "belong together. Evaluate the run again"
            )

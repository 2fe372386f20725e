"""Reading what evaluations have written, and refusing what does not belong together."""

import csv
import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasPath, BaseModel, Field, FiniteFloat, ValidationError, field_validator

from handclip.checksums import faults, read_checksums
from handclip.csv_files import csv_rows
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import CHECKSUMS, COST, METRICS_FILE, PER_QUERY
from handclip.files import folders_in, is_file, is_folder, is_there, opened_text, read_json
from handclip.metrics.uncertainty import PersonSums
from handclip.plurals import counted
from handclip.retrieval.ranking import Condition
from handclip.retrieval.summary import METRICS
from handclip.runs.artifacts import AGAIN

logger = logging.getLogger(__name__)

_DEPTH = 3
"""How deep below a folder evaluations are looked for: a study's folder has them at 2."""

_COLUMNS = ["aspect", "gallery_protocol", "flip", "split", "image", "identity", "name", "rank", "ap", "ap_trapezoid"]
_TOLERANCE = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrainedOn:
    """The data that a model was trained on."""

    dataset: str
    aspect: str
    manifest_sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.dataset} {self.aspect}"


class RerankEntry(BaseModel):
    """`rerank` of `metrics.json`."""

    k1: int
    k2: int
    weight: float = Field(alias="lambda")


class ResultEntry(BaseModel):
    """One entry of `results`: a gallery protocol and a flip setting.

    `tied_queries` are those of all draws that a wrong image scores the same in as the best right one, and counts as
    ranked before it; `copied_queries` those of which the gallery holds the very same photograph.
    """

    gallery_protocol: str
    flip: str
    num_splits: int
    mean: dict[str, FiniteFloat]
    std: dict[str, FiniteFloat]
    gallery_images: list[int]
    queries: int
    tied_queries: int
    copied_queries: int

    @field_validator("mean", "std")
    @classmethod
    def _hold_every_metric(cls, values: dict[str, float]) -> dict[str, float]:
        if lacking := [name for name in METRICS if name not in values]:
            raise ValueError(f"lacks {', '.join(lacking)}")
        return values


class Measured(BaseModel):
    """What was measured on one manifest, or on those of several aspects."""

    manifest_sha256: str
    results: list[ResultEntry]


class RunFacts(BaseModel):
    """What `metrics.json` says of a run, as a row of a comparison has it.

    Args:
        run: the run's name.
        experiment: the experiment's name.
        model: the model's name.
        family: `clip`, `mbanet` or `resnet`.
        stage: 0 nothing trained, 1 from pre-trained weights, 2 from an earlier stage.
        losses: types of the losses; none for a baseline.
        seed: the run's seed.
        trained_on: the data it was trained on.
        options: keys of its config that differ from their default and are not named by another column.
        input_size: height and width of the images in pixels.
        feature_dim: dimensions of the embedding.
        parameters: of the encoder.
        gflops_per_image: billions of multiplications and additions, each counted.
        training_ended: whether its training had ended when it was evaluated; None of a baseline, and where unknown.
    """

    run: str
    experiment: str
    model: str
    family: str
    stage: str
    losses: tuple[str, ...]
    seed: int
    trained_on: TrainedOn | None
    options: dict[str, Any]
    input_size: tuple[int, int]
    feature_dim: int
    parameters: int
    gflops_per_image: FiniteFloat | None
    training_ended: bool | None


class MetricsFile(RunFacts, Measured):
    """What a comparison needs of `metrics.json`."""

    variant: str
    dataset: str
    aspect: str
    rerank: RerankEntry | None
    cross_domain: bool
    per_aspect: dict[str, Measured] = {}

    @property
    def by_aspect(self) -> dict[str, Measured]:
        """What was measured on its aspect, or on `all`, and then on each of these alone."""
        return {self.aspect: self, **self.per_aspect}


class Machine(BaseModel, frozen=True):
    """Where something ran."""

    device: str
    processor: str | None
    cores: int | None

    def __str__(self) -> str:
        cores = counted(self.cores, "core") if self.cores is not None else None
        return ", ".join(part for part in (self.device, self.processor, cores) if part)


def _training(name: str) -> Any:
    """A key of `training` in `cost.json`, which is null for a baseline, and where the records of training are gone."""
    return Field(None, validation_alias=AliasPath("training", name))


class Cost(BaseModel, frozen=True):
    """What training and evaluating took, as `cost.json` says; None where it does not.

    Seconds, memory and precision are those of training, on `training_machine`; images are embedded on
    `evaluation_machine`. `training_file` is where training has recorded its own.
    """

    training_seconds: FiniteFloat | None = _training("seconds")
    training_images_per_second: FiniteFloat | None = _training("images_per_second")
    peak_memory_mib: FiniteFloat | None = _training("peak_memory_mib")
    peak_gpu_memory_mib: FiniteFloat | None = _training("peak_gpu_memory_mib")
    precision: str | None = _training("precision")
    training_machine: Machine | None = Field(validation_alias="training")
    embedding_images_per_second: FiniteFloat = Field(validation_alias=AliasPath("evaluation", "images_per_second"))
    evaluation_machine: Machine = Field(validation_alias="evaluation")
    training_file: str | None = Field(None, validation_alias=AliasPath("training", "file"), exclude=True)

    @property
    def hardware(self) -> str:
        """The machine of training; of a baseline, which trains nothing, that of evaluating."""
        return str(self.training_machine or self.evaluation_machine)


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
    """One evaluation, as its files have it; its outcomes are by aspect and setting.

    `damaged` has a sentence for each table beside them that is damaged, from which these numbers were not taken.
    """

    folder: Path
    metrics: MetricsFile
    cost: Cost
    outcomes: Mapping[tuple[str, Condition], Outcomes]
    damaged: tuple[str, ...] = ()

    def files(self) -> dict[str, str]:
        """Return where the numbers come from."""
        files = {"metrics": METRICS_FILE, "per_query": PER_QUERY, "cost": COST}
        training = {"training": self.cost.training_file} if self.cost.training_file is not None else {}
        return {name: str(self.folder / file) for name, file in files.items()} | training

    def aspects(self) -> tuple[str, ...]:
        """Return the aspects that were evaluated."""
        return tuple(self.metrics.per_aspect) or (self.metrics.aspect,)

    def outcomes_of(self, aspects: Sequence[str], entry: ResultEntry) -> list[Outcomes]:
        """Return the outcomes of some aspects under the setting of an entry of `results`.

        Raises:
            HandCLIPError: `per_query.csv` lacks them.
        """
        try:
            return [self.outcomes[aspect, Condition(entry.gallery_protocol, entry.flip)] for aspect in aspects]
        except KeyError:
            raise HandCLIPError(
                f"{self.folder / PER_QUERY}: has no {entry.gallery_protocol}, flip {entry.flip}, although "
                "metrics.json beside it has: the two do not belong together. Evaluate the run again"
            ) from None

    def results(self) -> "Iterator[RunResult]":
        """Yield what was measured: over all aspects, and of several each alone.

        Raises:
            HandCLIPError: `per_query.csv` lacks something.
        """
        for aspect, part in self.metrics.by_aspect.items():
            is_part = part is not self.metrics
            for entry in part.results:
                outcomes = self.outcomes_of([aspect] if is_part else self.aspects(), entry)
                yield RunResult(self, aspect, part.manifest_sha256, entry, outcomes, is_part)


@dataclass(frozen=True, eq=False)
class RunResult:
    """What was measured of a run with one gallery protocol and flip setting, on an aspect or on `all`.

    Args:
        run: the run.
        aspect: what it was measured on.
        manifest_sha256: which images, people and draws.
        entry: the numbers.
        outcomes: of each aspect, from which the numbers follow.
        part_of_average: this is one aspect of an evaluation on several.
    """

    run: EvaluatedRun
    aspect: str
    manifest_sha256: str
    entry: ResultEntry
    outcomes: Sequence[Outcomes]
    part_of_average: bool

    def person_sums(self) -> PersonSums:
        """Put the draws of the aspects side by side; a person's rows in all of them become one."""
        people = sorted({person for outcomes in self.outcomes for person in outcomes.people})
        place = {person: row for row, person in enumerate(people)}
        sums, counts = [], []
        for outcomes in self.outcomes:
            rows = [place[person] for person in outcomes.people]
            draws = outcomes.counts.shape[1]
            sums.append(np.zeros((len(people), draws, len(METRICS))))
            counts.append(np.zeros((len(people), draws)))
            sums[-1][rows] = outcomes.sums
            counts[-1][rows] = outcomes.counts
        return PersonSums(np.concatenate(sums, axis=1), np.concatenate(counts, axis=1))


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
        for folder in _evaluations_of(path, unread):
            place = folder.resolve()
            if place in named:
                raise HandCLIPError(f"{folder}: the same run is named twice, by {named[place][1]} and by {path}")
            named[place] = (folder, path)
    return [folder for folder, _ in named.values()], unread


def _evaluations_of(path: Path, unread: list[str]) -> list[Path]:
    """Return the evaluations that a path names; what may not be read goes to `unread`."""
    if path.name == METRICS_FILE and is_file(path):
        return [path.parent]
    if not is_there(path):
        raise HandCLIPError(f"{path}: no such file or folder")
    found = list(_look_below(path, unread)) if is_folder(path) else []
    if not found:
        raise HandCLIPError(
            f"{path}: holds no evaluation. Name folders that `handclip evaluate` has written, or one above"
        )
    return found


def _look_below(place: Path, unread: list[str]) -> Iterator[Path]:
    """Yield the evaluations in a folder and those below it, the upper ones first."""
    folders = [(place, _DEPTH)]
    for folder, depth in folders:
        try:
            inner = folders_in(folder)
            if is_there(folder / METRICS_FILE):
                yield folder
            elif is_there(folder / PER_QUERY):
                why = f"holds {PER_QUERY} but no {METRICS_FILE}; evaluate that run again"
                logger.warning(f"Left out: {folder} {why}")
        except HandCLIPError as error:
            if folder is place:
                raise
            unread.append(f"{error}; what is there is not compared")
            logger.warning(f"Left out: {unread[-1]}")
        else:
            folders += [(one, depth - 1) for one in inner if depth]


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
            f"Not checked for damage: {without[0]}{more}. An evaluation without {CHECKSUMS} was cut short at the very "
            "end, or lost it; evaluate it again to have it"
        )


def read_run(folder: Path) -> EvaluatedRun:
    """Read one evaluation.

    Raises:
        HandCLIPError: a file is missing, damaged, or of another version, or `per_query.csv` does not add up to
            `metrics.json`.
        DamagedFileError: a file is not what `SHA256SUMS` beside it says.
    """
    damaged = _require_undamaged(folder)
    metrics, cost = _parse(MetricsFile, folder / METRICS_FILE), _parse(Cost, folder / COST)
    run = EvaluatedRun(folder, metrics, cost, _read_outcomes(folder / PER_QUERY), damaged)
    for result in run.results():
        _check_adds_up(result)
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
        raise _of_another_kind(path, f"{where + ': ' if where else ''}{fault['msg'].lower()}") from None


def _of_another_kind(path: Path, fault: str) -> HandCLIPError:
    return HandCLIPError(
        f"{path}: {fault}. It was damaged or written by another version of HandCLIP; evaluate the run again with "
        "--overwrite"
    )


@dataclass(frozen=True)
class _Queries:
    """Collects the queries of one aspect under one setting; values are of those that can be answered."""

    lines: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, split: str, image: str, identity: str, name: str, rank: str, ap: str, ap_trapezoid: str) -> None:
        place = int(rank)
        self.lines.append(f"{int(split)},{image},{identity},{place > 0}")
        if place > 0:  # a query without a relevant image is counted nowhere
            if not math.isfinite(float(ap)) or not math.isfinite(float(ap_trapezoid)):
                raise ValueError(f"its average precision is {ap} and {ap_trapezoid}")
            self.identities.append(identity)
            self.splits.append(int(split))
            self.values.append((place <= 1, place <= 5, place <= 10, float(ap), float(ap_trapezoid)))

    def outcomes(self) -> Outcomes:
        values = np.array(self.values, dtype=np.float64).reshape(-1, len(METRICS))
        people, sums, counts = sum_by_person(np.array(self.identities), np.array(self.splits), values)
        queries = hashlib.sha256("\n".join(sorted(self.lines)).encode()).hexdigest()
        return Outcomes(tuple(map(str, people)), sums, counts, queries)


def sum_by_person(
    people: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[Any], Floats, Floats]:
    """Return the P people of Q queries in order, and what `PersonSums` takes of them.

    Args:
        people: (Q,) whom each query shows.
        columns: (Q,) in which column it counts, of C.
        values: (Q, M) metrics of each.

    Returns:
        (P,) people, (P, C, M) sums and (P, C) counts.
    """
    people, rows = np.unique(people, return_inverse=True)
    columns, places = np.unique(columns, return_inverse=True)
    sums, counts = np.zeros((len(people), len(columns), values.shape[1])), np.zeros((len(people), len(columns)))
    np.add.at(sums, (rows, places), values)
    np.add.at(counts, (rows, places), 1)
    return people, sums, counts


def _read_outcomes(path: Path) -> dict[tuple[str, Condition], Outcomes]:
    queries: dict[tuple[str, Condition], _Queries] = {}
    number = 1
    try:
        with opened_text(path) as file:
            reader = csv_rows(file)
            if next(reader, None) != _COLUMNS:
                raise _of_another_kind(path, f"its columns are not {', '.join(_COLUMNS)}")
            number += 1
            for aspect, protocol, flip, *query in reader:
                queries.setdefault((aspect, Condition(protocol, flip)), _Queries()).add(*query)
                number += 1
    except FileNotFoundError:
        raise HandCLIPError(f"{path}: no such file; without it nothing can be tested. Evaluate the run again") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DamagedFileError(f"{path}: line {number}: is damaged ({error}). {AGAIN}") from error
    return {searched: found.outcomes() for searched, found in queries.items()}


def _check_adds_up(result: RunResult) -> None:
    """The statistic that is resampled must be the one that is reported."""
    entry = result.entry
    place = f"{result.run.folder / PER_QUERY}: {entry.gallery_protocol}, flip {entry.flip}"
    if len({person for part in result.outcomes for person in part.people}) < 2:
        raise HandCLIPError(
            f"{place}: only one person in the gallery is searched for, and intervals and tests take at least two. "
            "Evaluate on more people, or leave this evaluation out"
        )
    draws = {part.counts.shape[1] for part in result.outcomes}
    for name, mean in zip(METRICS, result.person_sums().means, strict=True):
        if draws != {entry.num_splits} or abs(mean - entry.mean[name]) > _TOLERANCE:
            raise HandCLIPError(
                f"{place}: {name} is {mean:.6f} over {max(draws)} draws, but metrics.json beside it says "
                f"{entry.mean[name]:.6f} over {entry.num_splits}: the two do not belong together. Evaluate the run "
                "again"
            )

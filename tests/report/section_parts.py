"""What the tests of sections have in common: made-up records of a run, and a look at what a section holds."""

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from made_runs import change_json

from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.report.report_data import ReportData
from handclip.report.report_writer import Note, Picture, Section, Text
from handclip.report.runs import find_evaluations, read_run
from handclip.report.selection import gather
from handclip.report.table import Table
from handclip.runs.artifacts import KeptFeatures, manifest_file, write_attributes, write_features
from handclip.runs.data import combined_sha256

IMAGES = 3
TRAINED = range(1000, 1060)


def data_of(study: Path) -> ReportData:
    return gather([read_run(folder) for folder in find_evaluations([study])[0]])


def of_kind(section: Section, kind: type) -> list[Any]:
    return [block for block in section.blocks if isinstance(block, kind)]


def the(section: Section, kind: type) -> Any:
    [found] = of_kind(section, kind)
    return found


def pictures(section: Section) -> dict[str, Picture]:
    return {picture.files.png.stem: picture for picture in of_kind(section, Picture)}


def notes(section: Section, kind: str = "") -> list[str]:
    return [note.text for note in of_kind(section, Note) if kind in (note.kind, "")]


def words(section: Section) -> str:
    return " ".join(block.text for block in of_kind(section, Text))


def cells_of(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.cells]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def image(aspect: str, person: int, number: int) -> ManifestImage:
    path = f"Hands/{aspect}_{person}_{number}.jpg"
    return ManifestImage(path, person, hashlib.sha256(path.encode()).hexdigest(), 1)


def write_records(
    run: Path,
    *,
    people: int = 12,
    noise: float = 0.4,
    spread: float = 1.0,
    aspects: tuple[str, ...] = ("dorsal_r",),
    noise_of: Mapping[int, float] | None = None,
    trained: range = TRAINED,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write what a report needs: three images of each person, each of which is the gallery in one of three draws."""
    rng = np.random.default_rng(0)
    manifests = {}
    hashes, features = [], []
    for aspect in aspects:
        everybody = [*range(people), *trained]
        images = tuple(image(aspect, person, number) for person in everybody for number in range(IMAGES))
        places = range(len(images))
        test = [place for place in places if images[place].identity < people]
        others = [place for place in places if images[place].identity >= people]
        draws = tuple(
            Draw(
                tuple(place for place in test if place % IMAGES != number),
                tuple(place for place in test if place % IMAGES == number),
            )
            for number in range(3)
        )
        manifests[aspect] = Manifest(
            dataset="11k", aspect=aspect, seed=0, images=images,
            train=tuple(place for place in others if place % IMAGES),
            val=tuple(place for place in others if place % IMAGES == 0),
            test=tuple(test), draws=draws, identity_names={person: str(person) for person in everybody},
            missing_images=0, unreadable_images=0, root=run / "gone",
        )  # fmt: skip
        manifests[aspect].save(manifest_file(run, aspect))
        centres = spread * rng.normal(size=(len(everybody), 16))
        for place, one in enumerate(images):
            own = (noise_of or {}).get(one.identity, noise)
            hashes.append(one.sha256)
            features.append(centres[place // IMAGES] + own * rng.normal(size=16))
    array = np.array(features, dtype=np.float32)
    write_features(run, KeptFeatures(hashes, {"none": array, "sum": 2 * array}))
    write_attributes(run, attributes or {})
    change_json(run / "metrics.json", manifest_sha256=combined_sha256(manifests))

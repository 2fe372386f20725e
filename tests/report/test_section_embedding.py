import csv
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import ALL_ASPECTS, change_json, write_run

from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.metrics.embedding_space import measure_space
from handclip.report.report_data import ReportData
from handclip.report.report_writer import Block, Note, Picture, ReportWriter, Table
from handclip.report.runs import find_evaluations, read_run
from handclip.report.sections.embedding import embedding_section
from handclip.report.selection import gather
from handclip.runs.artifacts import KeptFeatures, manifest_file, write_attributes, write_features
from handclip.runs.data import combined_sha256

IMAGES = 3
TRAINED = range(1000, 1060)


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


def material_of(study: Path) -> ReportData:
    return gather([read_run(folder) for folder in find_evaluations([study])[0]])


def one(blocks: Any, kind: type[Block]) -> Any:
    [found] = [block for block in blocks if isinstance(block, kind)]
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_stand_side_by_side_with_numbers_and_points(tmp_path: Path) -> None:
    for name, stage, noise in (("raw", "0", 3.0), ("trained", "1", 0.2)):
        write_records(write_run(tmp_path / name, stage=stage), noise=noise)
    data = material_of(tmp_path)
    section = embedding_section(data, ReportWriter(tmp_path / "out"))
    picture, table = one(section.blocks, Picture), one(section.blocks, Table)
    assert picture.files.png.is_file()
    assert not [block for block in section.blocks if isinstance(block, Note)]

    points = rows_of(tmp_path / "out" / "tables" / "projections.csv")
    assert {(point["run"], point["method"]) for point in points} == {
        (run, method) for run in ("raw", "trained") for method in ("tsne", "pca")
    }
    assert len(points) == 2 * 2 * 12 * IMAGES
    assert {point["image"] for point in points} == {image("dorsal_r", p, n).path for p in range(12) for n in range(3)}

    found = {row["run"]: row for row in rows_of(table.csv)}
    for run in data.runs:
        images, features = run.test_features("dorsal_r") or ([], np.empty((0, 0)))
        expected = measure_space(features, np.array([image.identity for image in images]))
        for key in ("silhouette", "within", "between", "alignment", "uniformity"):
            assert float(found[run.row.run][key]) == pytest.approx(getattr(expected, key))
        assert f"{run.label}: silhouette {expected.silhouette:.3f}" in picture.alt
    assert float(found["trained"]["silhouette"]) > float(found["raw"]["silhouette"]) + 0.3


def test_one_aspect_is_shown_where_there_are_several(tmp_path: Path) -> None:
    run = write_run(tmp_path / "all", aspects=ALL_ASPECTS)
    write_records(run, aspects=ALL_ASPECTS)
    section = embedding_section(material_of(tmp_path), ReportWriter(tmp_path / "out"))
    points = rows_of(tmp_path / "out" / "tables" / "projections.csv")
    assert {Path(point["image"]).name.rsplit("_", 2)[0] for point in points} == {"dorsal_r"}
    assert "dorsal_r" in one(section.blocks, Picture).caption


def test_an_old_evaluation_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "new"))
    write_records(write_run(tmp_path / "old", stage="0"))
    (tmp_path / "old" / "features.safetensors").unlink()
    data = material_of(tmp_path)
    section = embedding_section(data, ReportWriter(tmp_path / "out"))
    [old] = [run.label for run in data.runs if run.row.run == "old"]
    note = one(section.blocks, Note)
    assert note.kind == "missing"
    assert old in note.text
    assert "--overwrite" in note.text
    assert len(one(section.blocks, Table).cells) == 1


def test_nothing_but_a_note_where_no_run_kept_its_features(tmp_path: Path) -> None:
    write_run(tmp_path / "old")
    section = embedding_section(material_of(tmp_path), ReportWriter(tmp_path / "out"))
    assert one(section.blocks, Note).kind == "missing"
    assert len(section.blocks) == 1
    assert not (tmp_path / "out").exists()


def test_too_few_images_give_numbers_but_no_picture(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "few"), people=2)
    data = material_of(tmp_path)
    # Two people with an image each: the draws are cut down to the first query of each.
    manifests = data.best.manifests
    assert manifests is not None
    manifest = manifests["dorsal_r"]
    draw = Draw((0,), (3,))
    manifests["dorsal_r"] = replace(manifest, draws=(draw, draw, draw))
    section = embedding_section(data, ReportWriter(tmp_path / "out"))
    assert "too few" in one(section.blocks, Note).text
    assert one(section.blocks, Table).cells[0][1:3] == ["-", "-"]

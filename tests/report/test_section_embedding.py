from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import ALL_ASPECTS, write_run
from section_parts import IMAGES, cells_of, data_of, image, notes, rows_of, the, write_records

from handclip.datasets.manifest import Draw
from handclip.metrics.embedding_space import measure_space
from handclip.report.report_writer import Note, Picture, ReportWriter
from handclip.report.sections.embedding import embedding_section
from handclip.report.table import Table


def test_runs_stand_side_by_side_with_numbers_and_points(tmp_path: Path) -> None:
    for name, stage, noise in (("raw", "0", 3.0), ("trained", "1", 0.2)):
        write_records(write_run(tmp_path / name, stage=stage), noise=noise)
    data = data_of(tmp_path)
    section = embedding_section(data, ReportWriter(tmp_path / "out"))
    picture, table = the(section, Picture), the(section, Table)
    assert picture.files.png.is_file()
    assert not notes(section)

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
    section = embedding_section(data_of(tmp_path), ReportWriter(tmp_path / "out"))
    points = rows_of(tmp_path / "out" / "tables" / "projections.csv")
    assert {Path(point["image"]).name.rsplit("_", 2)[0] for point in points} == {"dorsal_r"}
    assert "dorsal_r" in the(section, Picture).caption


def test_an_old_evaluation_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "new"))
    write_records(write_run(tmp_path / "old", stage="0"))
    (tmp_path / "old" / "features.safetensors").unlink()
    data = data_of(tmp_path)
    section = embedding_section(data, ReportWriter(tmp_path / "out"))
    [old] = [run.label for run in data.runs if run.row.run == "old"]
    note = the(section, Note)
    assert note.kind == "missing"
    assert old in note.text
    assert "--overwrite" in note.text
    assert len(cells_of(the(section, Table))) == 1


def test_nothing_but_a_note_where_no_run_kept_its_features(tmp_path: Path) -> None:
    write_run(tmp_path / "old")
    section = embedding_section(data_of(tmp_path), ReportWriter(tmp_path / "out"))
    assert the(section, Note).kind == "missing"
    assert len(section.blocks) == 1
    assert not (tmp_path / "out").exists()


def test_too_few_images_give_numbers_but_no_picture(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "few"), people=2)
    data = data_of(tmp_path)
    # Two people with an image each: the draws are cut down to the first query of each.
    manifests = data.best.manifests
    assert manifests is not None
    manifest = manifests["dorsal_r"]
    draw = Draw((0,), (3,))
    manifests["dorsal_r"] = replace(manifest, draws=(draw, draw, draw))
    section = embedding_section(data, ReportWriter(tmp_path / "out"))
    assert "too few" in the(section, Note).text
    assert cells_of(the(section, Table))[0][1:3] == ["-", "-"]

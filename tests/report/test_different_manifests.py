"""Runs that look alike, and were evaluated on other draws of the same data, are not set side by side unawares."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_ASPECTS, MANIFEST, write_run
from tiny_study import load_manifest

from handclip.datasets.manifest import Manifest
from handclip.errors import HandCLIPError
from handclip.report import report as report_module
from handclip.report.comparison import compare_runs
from handclip.report.report import write_report
from handclip.runs.data import combined_sha256

OTHER = "f" * 64


def run_on(folder: Path, manifest: Manifest, **changes: Any) -> Path:
    """Write an evaluation on a manifest, with its copy."""
    run = write_run(folder, manifest_sha256=manifest.sha256, **changes)
    manifest.save(run / "manifest_dorsal_r.json")
    return run


@pytest.fixture(params=[compare_runs, write_report])
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Compare runs or report them, and return the error."""

    def set_side_by_side(*runs: Path) -> str:
        more = [tmp_path / "out"] if request.param is write_report else []
        with pytest.raises(HandCLIPError) as error:
            request.param(runs, *more)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return set_side_by_side


@pytest.mark.promise("different-manifests")
def test_runs_on_manifests_of_different_seeds_are_refused_and_it_is_said_which(
    manifests: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    first = load_manifest(manifests)
    other, elsewhere = replace(first, seed=1), replace(first, seed=None)
    mine, too = run_on(tmp_path / "mine", first), run_on(tmp_path / "too", first, luck=1)
    hers, theirs = run_on(tmp_path / "hers", other, luck=2), run_on(tmp_path / "theirs", elsewhere, luck=3)
    assert refused(mine, hers, too, theirs).splitlines() == [
        "these runs were evaluated on different manifests, so that their numbers are not comparable:",
        "  11k dorsal_r",
        f"    seed 0, manifest {first.sha256[:8]}: {mine}, {too}",
        f"    seed 1, manifest {other.sha256[:8]}: {hers}",
        f"    splits made elsewhere, manifest {elsewhere.sha256[:8]}: {theirs}",
        "Name only runs of one manifest, or set them in blocks of their own, not compared with each other, by "
        "--different-manifests",
    ]


def spoil(run: Path, damage: str, another: Manifest) -> None:
    """Remove the manifest that an evaluation has kept, cut it off, or put another in its place."""
    path = run / "manifest_dorsal_r.json"
    if damage == "gone":
        path.unlink()
    elif damage == "damaged":
        path.write_text(path.read_text()[:-100])
    else:
        another.save(path)


@pytest.mark.parametrize("damage", ["gone", "damaged", "another"])
def test_a_seed_that_cannot_be_known_is_not_told(
    damage: str, manifests: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    first = load_manifest(manifests)
    other = replace(first, seed=1)
    mine, hers = run_on(tmp_path / "mine", first), run_on(tmp_path / "hers", other, luck=1)
    spoil(hers, damage, replace(first, seed=2))
    lines = refused(mine, hers).splitlines()
    assert f"    seed 0, manifest {first.sha256[:8]}: {mine}" in lines
    assert f"    manifest {other.sha256[:8]}: {hers}" in lines


def test_runs_on_all_aspects_are_told_once_with_their_seed(
    manifests: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    runs = []
    for seed in (0, 1):
        made = {aspect: replace(load_manifest(manifests, aspect), seed=seed) for aspect in ALL_ASPECTS}
        # Made-up runs have hashes of their own for single aspects, which are alike; their mean is not.
        run = write_run(tmp_path / f"run{seed}", aspects=ALL_ASPECTS, luck=seed, manifest_sha256=combined_sha256(made))
        for aspect, manifest in made.items():
            manifest.save(run / f"manifest_{aspect}.json")
        runs.append(run)
    lines = refused(*runs).splitlines()
    assert lines[1] == "  11k all"
    assert [line.split(",")[0] for line in lines[2:4]] == ["    seed 0", "    seed 1"]
    assert len(lines) == 5


@pytest.mark.promise("different-manifests")
def test_a_single_aspect_beside_runs_on_all_of_them_counts(tmp_path: Path, refused: Callable[..., str]) -> None:
    everything = write_run(tmp_path / "everything", aspects=ALL_ASPECTS)
    single = write_run(tmp_path / "single", manifest_sha256=OTHER, luck=1)
    assert refused(everything, single).splitlines()[1:4] == [
        "  11k dorsal_r",
        f"    manifest 0{MANIFEST[1:8]}: {everything}",
        f"    manifest ffffffff: {single}",
    ]
    same = write_run(tmp_path / "same", manifest_sha256=f"0{MANIFEST[1:]}", luck=1)
    compare_runs([everything, same])


def test_other_data_beside_each_other_and_a_manifest_at_another_place_are_no_error(
    manifests: Path, tmp_path: Path
) -> None:
    first = load_manifest(manifests)
    run_on(tmp_path / "a", first)
    run_on(tmp_path / "b", replace(first, root=tmp_path / "elsewhere"), luck=1)
    write_run(tmp_path / "c", aspects=["palmar_l"], manifest_sha256=OTHER)
    write_run(tmp_path / "d", dataset="hd", manifest_sha256=OTHER)
    blocks = compare_runs([tmp_path]).blocks
    assert {(block.protocol.dataset, block.protocol.aspect): len(block.rows) for block in blocks} == {
        ("11k", "dorsal_r"): 2,
        ("11k", "palmar_l"): 1,
        ("hd", "dorsal_r"): 1,
    }


@pytest.mark.promise("different-manifests")
@pytest.mark.parametrize("damage", ["gone", "damaged", "another"])
def test_any_run_that_has_kept_the_photographs_says_whether_they_are_shared(
    damage: str, manifests: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Folders of photographs are the same data where they share some."""
    first = replace(load_manifest(manifests), dataset="folder")
    images = tuple(replace(image, sha256=image.sha256[::-1]) for image in first.images)
    strangers = replace(first, images=images)
    mine = run_on(tmp_path / "mine", first, dataset="folder")
    again = [run_on(tmp_path / f"again{n}", replace(first, seed=1), dataset="folder", luck=n) for n in (1, 2)]
    others = [run_on(tmp_path / f"other{n}", strangers, dataset="folder", luck=n) for n in (3, 4)]
    spoil(again[0], damage, strangers)
    spoil(others[0], damage, first)
    assert "  folder dorsal_r" in refused(mine, *again)
    compare_runs([mine, *others])
    # Of which no run knows it, they may be.
    (others[1] / "manifest_dorsal_r.json").unlink()
    assert "  folder dorsal_r" in refused(mine, *others)
    compare_runs([mine, *others], different_manifests=True)


@pytest.mark.promise("different-manifests-apart")
def test_different_manifests_can_be_asked_for_and_stand_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "handclip")
    runs = [write_run(tmp_path / "mine"), write_run(tmp_path / "hers", manifest_sha256=OTHER, luck=1)]
    matrix = compare_runs(runs, different_manifests=True)
    assert all(len(block.rows) == 1 and not block.differences for block in matrix.blocks)
    told = (
        "These runs were evaluated on different manifests of 11k dorsal_r, so they are in blocks of their own and are "
        "not compared with each other: manifest 01234567: mine; manifest ffffffff: hers. To compare them, evaluate all "
        "of them on one manifest"
    )
    assert caplog.messages.count(told) == 1
    monkeypatch.setattr(report_module, "_SECTIONS", ())
    files = write_report(runs, tmp_path / "out", different_manifests=True)
    assert files.page.is_file() and not files.fault
    assert caplog.messages.count(told) == 2

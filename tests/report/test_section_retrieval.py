import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from made_runs import ALL_ASPECTS, change_json, write_run
from matplotlib.figure import Figure
from PIL import Image
from quick_figures import keep_figures
from section_parts import data_of, notes, pictures, rows_of, the, words

from handclip.csv_files import plain
from handclip.datasets.manifest import Draw, Manifest, ManifestImage
from handclip.report.report_writer import Note, ReportWriter, Section
from handclip.report.sections.retrieval import retrieval_section
from handclip.runs.artifacts import KeptFeatures, manifest_file, write_features
from handclip.runs.data import combined_sha256

GALLERY = {1: 0, 2: 30, 3: 60, 4: 90}
QUERIES = {1: 2, 2: 10, 3: 61, 4: 10}
"""Where each person's image stands on a circle, in degrees: person 2 is nearest to 1, and 4 to 1, then 2, then 3."""


def write_records(
    run: Path,
    hands: Path,
    gallery: dict[int, float],
    queries: dict[int, float],
    names: dict[int, str] | None = None,
    aspect: str = "dorsal_r",
) -> Manifest:
    """Keep features of one gallery image and one query of each person, the same in each of three draws."""
    images, vectors = [], []
    for kind, angles in (("gallery", gallery), ("query", queries)):
        for person, angle in angles.items():
            path = hands / f"{kind}_{person}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (400, 300), (person, int(angle), 99 if kind == "query" else 0)).save(path)
            content = path.read_bytes()
            images.append(ManifestImage(path.name, person, hashlib.sha256(content).hexdigest(), len(content)))
            vectors.append([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    features = 3 * np.array(vectors, dtype=np.float32)
    write_features(run, KeptFeatures([image.sha256 for image in images], {"none": features, "sum": features}))
    places = tuple(range(len(images)))
    draw = Draw(query=places[len(gallery) :], gallery=places[: len(gallery)])
    names = names or {person: str(person) for person in gallery}
    manifest = Manifest(
        dataset="11k", aspect=aspect, seed=0, images=tuple(images), train=(), val=(), test=places,
        draws=(draw,) * 3, identity_names=names, missing_images=0, unreadable_images=0, root=hands,
    )  # fmt: skip
    manifest.save(manifest_file(run, aspect))
    change_json(run / "metrics.json", manifest_sha256=manifest.sha256)
    return manifest


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that were made, by name; drawing them is the matter of other tests and takes long."""
    return keep_figures(monkeypatch)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_records(write_run(tmp_path / "eval" / "a"), tmp_path / "hands", GALLERY, QUERIES)
    return tmp_path


def section_of(study: Path) -> Section:
    return retrieval_section(data_of(study), ReportWriter(study / "report"))


def table(study: Path, name: str) -> list[dict[str, str]]:
    return rows_of(study / "report" / "tables" / f"{name}.csv")


@pytest.mark.parametrize("aspects", [ALL_ASPECTS, ("dorsal_r",)])
def test_cmc_agrees_with_the_evaluation_without_features(tmp_path: Path, aspects: Sequence[str]):
    folder = write_run(tmp_path / "eval" / "a", aspects=aspects, unmatched=True)
    section = section_of(tmp_path)
    assert list(pictures(section)) == ["cmc"]
    curve = {(row["gallery_protocol"], int(row["rank"])): row for row in table(tmp_path, "cmc")}
    for entry in json.loads((folder / "metrics.json").read_text())["results"]:
        if entry["flip"] != "sum":
            continue
        for rank in (1, 5, 10):
            row, name = curve[entry["gallery_protocol"], rank], f"rank{rank}"
            draws = [split[name] for split in entry["splits"]]
            assert float(row["mean"]) == pytest.approx(entry["mean"][name])
            assert (float(row["lowest_draw"]), float(row["highest_draw"])) == pytest.approx((min(draws), max(draws)))
    assert len(curve) == 2 * 20


def test_without_features_there_is_the_cmc_to_the_end_of_the_smallest_gallery(tmp_path: Path):
    write_run(tmp_path / "eval" / "a", people=16, protocols=["gallery"])
    section = section_of(tmp_path)
    assert [int(row["rank"]) for row in table(tmp_path, "cmc")] == list(range(1, 17))
    assert float(table(tmp_path, "cmc")[-1]["mean"]) == 1
    assert "In gallery (16 images)" in pictures(section)["cmc"].alt
    [note] = notes(section, "missing")
    for part in ("no rank lists and no confused pairs", "no such file", "valuate the run again"):
        assert part in note


def test_features_that_do_not_belong_to_the_manifest_are_refused_in_words(study: Path):
    write_features(study / "eval" / "a", KeptFeatures(["0" * 64], {"sum": np.ones((1, 2), dtype=np.float32)}))
    section = section_of(study)
    assert "do not belong together" in the(section, Note).text
    assert "cmc" in pictures(section)


def test_rank_lists_and_confusions_of_the_best_the_median_and_the_worst_query(study: Path, figures: dict[str, Figure]):
    section = section_of(study)
    rows = table(study, "rank_lists")
    lists = dict.fromkeys((row["kind"], row["query_person"], row["rank_of_right"]) for row in rows)
    # Persons 3 and 1 are found at once, 3 by the wider margin; 2 is second, 4 last: no fifth person is left for median.
    assert list(lists) == [("best", "3", "1"), ("best", "1", "1"), ("worst", "2", "2"), ("worst", "4", "4")]
    worst = [row for row in rows if row["query_person"] == "4"]
    assert [row["person"] for row in worst] == ["1", "2", "3", "4"]
    expected = [np.cos(np.radians(degrees)) for degrees in (10, 20, 50, 80)]
    assert [float(row["score"]) for row in worst] == pytest.approx(expected, abs=1e-6)
    assert "worst, person 4: right one at rank 4" in pictures(section)["rank_lists"].alt
    assert "not a probability" in words(section)
    assert not notes(section)

    # Confusions are counted over all draws, as a share of one person's searches.
    rows = table(study, "confusions")
    found = {
        (row["query_person"], row["chosen_person"]): (row["wrong_searches"], row["searches"], row["share"])
        for row in rows
    }
    assert found == {("2", "1"): ("3", "3", "1.0"), ("4", "1"): ("3", "3", "1.0")}
    assert float(rows[0]["highest_score"]) == pytest.approx(np.cos(np.radians(10)), abs=1e-6)
    assert "In 6 of 12 searches of all draws (50.0 %) somebody else came first" in words(section)
    assert "person 2 is taken for person 1 in 3 of 3 searches" in pictures(section)["confused_pairs"].alt

    # Photographs are small copies of those that were ranked.
    shown = [image.get_array() for image in figures["rank_lists"].axes[0].images]
    assert len(shown) == 4 * (1 + 4)
    assert {image.shape for image in shown} == {(120, 160, 3)}
    assert shown[0][0, 0].tolist() == [3, 61, 99], "the best query is person 3's"
    pair = [image.get_array()[0, 0].tolist() for image in figures["confused_pairs"].axes[0].images[:2]]
    assert pair == [[2, 10, 99], [1, 0, 0]]


def test_median_query_is_in_the_middle(tmp_path: Path):
    gallery = {person: 30 * person for person in range(1, 8)}
    # The higher the number the narrower the margin, but for person 7, who has nobody beyond and is the best.
    queries = {person: 30 * person + 2 * person for person in range(1, 8)}
    write_records(write_run(tmp_path / "eval" / "a"), tmp_path / "hands", gallery, queries)
    section_of(tmp_path)
    kinds = dict.fromkeys((row["kind"], row["query_person"]) for row in table(tmp_path, "rank_lists"))
    assert next(person for kind, person in kinds if kind == "median") == "3"


def test_people_have_the_names_of_the_data_set(tmp_path: Path, figures: dict[str, Figure]) -> None:
    names = {1: "=Zoë", 2: "山田太郎", 3: "<b>Ann</b>", 4: "a name that is far too long\n" * 9}
    write_records(write_run(tmp_path / "eval" / "a"), tmp_path / "hands", GALLERY, QUERIES, names)
    section = section_of(tmp_path)
    lists = table(tmp_path, "rank_lists")
    assert {(row["query_person"], plain(row["query_name"])) for row in lists} == {(str(k), v) for k, v in names.items()}
    assert {(row["person"], plain(row["name"])) for row in lists} == {(str(k), v) for k, v in names.items()}
    confusions = table(tmp_path, "confusions")
    assert [(row["query_person"], plain(row["query_name"])) for row in confusions] == [("2", names[2]), ("4", names[4])]
    assert [(row["chosen_person"], row["chosen_name"]) for row in confusions] == [("1", "'=Zoë")] * 2
    assert [(row["aspect"], row["query_image"], row["chosen_image"]) for row in confusions] == [
        ("dorsal_r", "query_2.png", "gallery_1.png"),
        ("dorsal_r", "query_4.png", "gallery_1.png"),
    ]
    shown = {text.get_text() for text in figures["rank_lists"].axes[0].texts}
    assert {"=Zoë", "#2", "<b>…/b>", "a na…ng\\n"} <= shown
    assert {"chosen: =Zoë", "query: #2"} <= {text.get_text() for text in figures["confused_pairs"].axes[0].texts}
    picture = pictures(section)["rank_lists"]
    assert "worst, person 山田太郎: right one at rank 2" in picture.alt
    assert "\n" not in picture.alt and "person a name that is far too long\\na name" in picture.alt
    assert "# and the person's number stand for one that cannot be drawn" in picture.caption
    assert "Long names are cut" in pictures(section)["confused_pairs"].caption


def test_an_aspect_is_named_where_a_person_has_several(tmp_path: Path, figures: dict[str, Figure]) -> None:
    run = write_run(tmp_path / "eval" / "a", aspects=ALL_ASPECTS)
    names = {person: f"{person:07}" for person in GALLERY}
    manifests = {
        aspect: write_records(run, tmp_path / "hands", GALLERY, QUERIES, names, aspect) for aspect in ALL_ASPECTS
    }
    change_json(run / "metrics.json", manifest_sha256=combined_sha256(manifests))
    section = section_of(tmp_path)
    assert "worst, person 0000004: right one at rank 4" in pictures(section)["rank_lists"].alt
    assert "Long names" not in pictures(section)["rank_lists"].caption
    texts = {text.get_text() for text in figures["confused_pairs"].axes[0].texts}
    assert {"query: 0000004", "12 of 12 searches (100.0 %)\nphotographs: dorsal_r"} <= texts


def test_two_people_taken_for_each_other_are_one_pair(tmp_path: Path):
    write_records(write_run(tmp_path / "eval" / "a"), tmp_path / "hands", {1: 0, 2: 30}, {1: 29, 2: 1})
    section = section_of(tmp_path)
    assert len(table(tmp_path, "confusions")) == 2
    assert "the 1 most confused pair" in pictures(section)["confused_pairs"].alt


def test_without_an_error_there_is_no_figure_of_errors(tmp_path: Path):
    write_records(write_run(tmp_path / "eval" / "a"), tmp_path / "hands", GALLERY, GALLERY)
    section = section_of(tmp_path)
    assert "confused_pairs" not in pictures(section)
    assert "in all 12 searches of all draws the right person came first" in words(section)


def test_absent_photographs_leave_all_else_standing(study: Path):
    section_of(study)
    before = table(study, "rank_lists")
    rmtree(study / "hands")
    section = section_of(study)
    [note] = notes(section, "missing")
    assert note.startswith("The photographs are not on this machine")
    assert set(pictures(section)) == {"cmc", "rank_lists", "confused_pairs"}
    assert table(study, "rank_lists") == before


@pytest.mark.parametrize("damage", ["not an image", "exchanged"])
def test_damaged_or_changed_photograph_is_a_grey_tile_and_named(study: Path, damage: str):
    path = study / "hands" / "query_1.png"
    if damage == "exchanged":
        path.write_bytes((study / "hands" / "query_2.png").read_bytes())
    else:
        path.write_text(damage)
    [note] = notes(section_of(study), "warning")
    assert note.startswith("1 of 8 photographs are absent, damaged or changed")
    assert "query_1.png" in note


def test_lists_before_re_ranking_say_so(study: Path):
    change_json(study / "eval" / "a" / "metrics.json", rerank={"k1": 20, "k2": 6, "lambda": 0.3})
    section = section_of(study)
    assert "The order is the one before re-ranking" in words(section)
    assert "after re-ranking" in pictures(section)["cmc"].caption

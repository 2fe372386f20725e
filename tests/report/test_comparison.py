import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_ASPECTS, MANIFEST, METRICS, change_json, write_run

from handclip.errors import HandCLIPError
from handclip.report.comparison import compare_runs, write_matrix
from handclip.report.matrix import Matrix, MatrixBlock

ONE_SETTING: dict[str, Any] = {"protocols": ["gallery"], "flips": ["sum"]}
TRAINED_ON = {"dataset": "11k", "aspect": "palmar_l", "manifest_sha256": "f" * 64}
ON_ALL = {"dataset": "11k", "aspect": "all", "manifest_sha256": MANIFEST}
DORSAL_R = "0" + MANIFEST[1:]
RERANKED = {"k1": 20, "k2": 6, "lambda": 0.3}


def block(matrix: Matrix, protocol: str = "gallery", flip: str = "sum", aspect: str = "dorsal_r") -> MatrixBlock:
    wanted = (aspect, protocol, flip)
    [found] = [
        one
        for one in matrix.blocks
        if (one.protocol.aspect, one.protocol.gallery_protocol, one.protocol.flip) == wanted
    ]
    return found


def test_runs_measured_alike_share_a_block(tmp_path: Path) -> None:
    write_run(tmp_path / "trained", skill=0.9)
    write_run(tmp_path / "untrained", skill=0.2, stage="0")
    matrix = compare_runs([tmp_path])
    assert [one.protocol.label for one in matrix.blocks] == [
        f"11k dorsal_r · {gallery} images) · flip: {flip} · re-ranking: none · 3 draws · manifest 01234567"
        for gallery in ("gallery (20", "gallery_all (80")
        for flip in ("none", "sum")
    ]
    for one in matrix.blocks:
        assert [row.run for row in one.rows] == ["untrained", "trained"]
        assert (one.people, one.queries) == (20, 50)
        assert [row.best for row in one.rows] == [(), METRICS]
        assert [dict(row.letters) for row in one.rows] == [{"rank1": "b", "map": "b"}, {"rank1": "a", "map": "a"}]
        assert [(found.metric, found.first, found.second) for found in one.differences] == [
            (metric, 1, 2) for metric in METRICS
        ]
        assert all(found.low <= found.difference <= found.high for found in one.differences)
        assert one.differences[0].p_holm < 0.05


def test_rows_are_ordered_by_stage_model_losses_and_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", stage="2")
    write_run(tmp_path / "b", model="vit_small", seed=1)
    write_run(tmp_path / "c", model="vit_small", seed=0)
    write_run(tmp_path / "d", model="mbanet_small", losses=["cross_entropy"])
    write_run(tmp_path / "e", model="mbanet_small", losses=["arcface"])
    write_run(tmp_path / "f", stage="0")
    rows = block(compare_runs([tmp_path])).rows
    assert [(row.number, row.run) for row in rows] == list(enumerate("fedcba", start=1))
    assert [row.losses_text for row in rows][:4] == ["no training", "arcface", "ce", "ce + triplet"]


def test_identical_runs_share_their_letter_and_a_single_one_has_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    [row] = block(compare_runs([run])).rows
    assert (row.best, dict(row.letters)) == ((), {})
    write_run(tmp_path / "two")
    one = block(compare_runs([tmp_path]))
    assert {difference.p for difference in one.differences} == {1.0}
    assert [(row.letters["rank1"], row.best) for row in one.rows] == [("a", METRICS)] * 2


def test_letters_that_cannot_be_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, skill in (("one", 0.1), ("two", 0.9)):
        write_run(tmp_path / name, skill=skill)
    monkeypatch.setattr("handclip.report.comparison.compact_letters", lambda significant: None)
    assert [(dict(row.letters), row.best) for row in block(compare_runs([tmp_path])).rows] == [({}, ()), ({}, METRICS)]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "synthetic"},
        {"aspects": ["palmar_l"]},
        {"manifest_sha256": "f" * 64},
        {"rerank": RERANKED},
        {"cross_domain": True, "trained_on": TRAINED_ON},
        {"gallery_images": 21},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_measured_in_different_ways_is_never_ranked_together(changes: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "one", skill=0.2)
    write_run(tmp_path / "two", skill=0.9, **changes)
    matrix = compare_runs([tmp_path], different_manifests=True)
    assert len(matrix.blocks) == len({one.protocol.label for one in matrix.blocks}) == 8
    assert all([row.best for row in one.rows] == [()] and not one.differences for one in matrix.blocks)
    if "rerank" in changes:
        assert any("· re-ranking: k1 20, k2 6, lambda 0.3 ·" in one.protocol.label for one in matrix.blocks)


def test_cross_domain_runs_stand_apart_by_what_they_were_trained_on(tmp_path: Path) -> None:
    for run, digit in {"one": "e", "two": "f", "three": "f"}.items():
        trained_on = {**TRAINED_ON, "manifest_sha256": digit * 64}
        write_run(tmp_path / run, cross_domain=True, trained_on=trained_on, **ONE_SETTING)
    first, second = compare_runs([tmp_path]).blocks
    assert [len(first.rows), len(second.rows)] == [1, 2]
    assert first.protocol.label.endswith("cross-domain: trained on 11k palmar_l (manifest eeeeeeee)")


def test_runs_on_all_aspects_have_a_block_of_their_mean_and_one_of_each(tmp_path: Path) -> None:
    write_run(tmp_path / "one", aspects=ALL_ASPECTS, skill=0.3, trained_on=ON_ALL)
    write_run(tmp_path / "two", aspects=ALL_ASPECTS, skill=0.7, trained_on=ON_ALL)
    matrix = compare_runs([tmp_path])
    assert [one.protocol.aspect for one in matrix.blocks][::4] == ["all", *ALL_ASPECTS]
    mean = block(matrix, aspect="all")
    assert mean.protocol.label.startswith("11k, mean of four aspects · gallery (20, 20, 20, 20 images)")
    assert mean.protocol.trained_on is None
    assert mean.people == 20  # a person is one person in all aspects
    assert [row.part_of_average for row in block(matrix).rows] == [True, True]


def test_what_was_trained_on_all_aspects_is_not_ranked_with_what_was_trained_on_one(tmp_path: Path) -> None:
    own = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": DORSAL_R}
    write_run(tmp_path / "own", manifest_sha256=DORSAL_R, trained_on=own, **ONE_SETTING)
    write_run(tmp_path / "untrained", manifest_sha256=DORSAL_R, stage="0", **ONE_SETTING)
    write_run(tmp_path / "all", aspects=ALL_ASPECTS, trained_on=ON_ALL, **ONE_SETTING)
    # The same checkpoint, evaluated on one aspect, is what the evaluation on all holds of that aspect.
    write_run(tmp_path / "of_all", manifest_sha256=DORSAL_R, trained_on=ON_ALL, cross_domain=True, **ONE_SETTING)
    alone, with_others = [one for one in compare_runs([tmp_path]).blocks if one.protocol.aspect == "dorsal_r"]
    assert [row.run for row in alone.rows] == ["untrained", "own"]
    assert "trained on" not in alone.protocol.label
    assert [row.run for row in with_others.rows] == ["all", "of_all"]
    assert with_others.protocol.label.endswith(" · trained on all four aspects (manifest 01234567)")
    assert {difference.p for difference in with_others.differences} == {1.0}


def test_what_was_trained_on_all_aspects_of_another_data_set_is_cross_domain(tmp_path: Path) -> None:
    write_run(tmp_path / "one", dataset="synthetic", cross_domain=True, trained_on=ON_ALL)
    for one in compare_runs([tmp_path]).blocks:
        assert one.protocol.label.endswith("cross-domain: trained on 11k all (manifest 01234567)")


def test_where_nobody_fails_the_interval_is_not_closed(tmp_path: Path) -> None:
    write_run(tmp_path / "one", skill=50)
    [row] = block(compare_runs([tmp_path])).rows
    assert (row.scores["rank1"].mean, row.scores["rank1"].high) == (1, 1)
    assert row.scores["rank1"].low == pytest.approx(0.05 ** (1 / 20))


def test_the_machines_of_training_and_evaluation_are_kept_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "trained")
    write_run(tmp_path / "untrained", stage="0")
    untrained, trained = block(compare_runs([tmp_path])).rows
    assert str(trained.cost.training_machine) == trained.cost.hardware == "cpu, AMD EPYC, 2 cores"
    assert str(trained.cost.evaluation_machine) == untrained.cost.hardware == "cpu, Intel Xeon, 1 core"
    assert untrained.cost.training_machine is None


def whole(folder: Path, **changes: Any) -> Path:
    """A run that claims the size of all of 11k's dorsal right hands."""
    claims = {"gallery_images": 71, "queries": 971, "protocols": ["gallery"], "flips": ["none"]}
    return write_run(folder, **{**claims, **changes})


def test_published_results_stand_below_runs_on_the_whole_data_set(tmp_path: Path) -> None:
    whole(tmp_path / "one", skill=0.1)
    whole(tmp_path / "two", skill=0.2)
    [one] = compare_runs([tmp_path]).blocks
    methods = [result.method for result in one.published]
    assert "CLIP-FH zero-shot ViT-B/16" in methods and "MBA-Net" not in methods
    assert any(row.best for row in one.rows)  # although published rows are better
    assert {(difference.first, difference.second) for difference in one.differences} == {(1, 2)}


@pytest.mark.parametrize(
    "changes",
    [
        {"gallery_images": 59},
        {"queries": 540},
        {"dataset": "synthetic"},
        {"aspects": ["palmar_r"]},
        {"flips": ["sum"]},
        {"rerank": RERANKED},
        {"cross_domain": True, "trained_on": TRAINED_ON},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_published_results_do_not_stand_beside_anything_else(changes: dict[str, Any], tmp_path: Path) -> None:
    [one] = compare_runs([whole(tmp_path / "one", **changes)]).blocks
    assert one.published == []


def test_cross_domain_results_stand_beside_cross_domain_runs(tmp_path: Path) -> None:
    facts = {"dataset": "hd", "aspects": ["dorsal"], "gallery_images": 1593, "queries": 1992, "flips": ["sum"]}
    whole(tmp_path / "own", **facts)
    whole(tmp_path / "cross", **facts, cross_domain=True, trained_on={**TRAINED_ON, "aspect": "dorsal_r"})
    own, cross = compare_runs([tmp_path]).blocks
    assert [result.average_precision for result in own.published] == [0.9508, 0.9539, 0.9538, 0.9554, None]
    assert [result.average_precision for result in cross.published] == [0.8465, 0.8007, 0.7386, 0.8598]


def test_all_published_results_on_request(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    added = compare_runs([run], published=True).blocks[len(compare_runs([run]).blocks) :]
    assert len(added) == 11
    assert all(one.rows == [] and one.published for one in added)
    assert sum(len(one.published) for one in added) == 85


def test_every_number_is_in_the_file_that_its_row_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("eval_logs/a"), aspects=ALL_ASPECTS, skill=0.3)
    write_run(Path("eval_logs/b"), skill=0.7, stage="0", luck=3)
    write_matrix(compare_runs([Path("eval_logs")]), tmp_path / "out")
    blocks = json.loads((tmp_path / "out" / "comparison.json").read_text())["blocks"]
    rows = [(one["protocol"], row) for one in blocks for row in one["rows"]]
    assert len(rows) == 4 * (5 + 1)
    for protocol, row in rows:
        metrics, cost = (json.loads(Path(row["files"][name]).read_text()) for name in ("metrics", "cost"))
        part = metrics["per_aspect"][protocol["aspect"]] if row["part_of_average"] else metrics
        setting = (protocol["gallery_protocol"], protocol["flip"])
        [entry] = [one for one in part["results"] if (one["gallery_protocol"], one["flip"]) == setting]
        assert (protocol["manifest_sha256"], protocol["gallery_images"]) == (
            part["manifest_sha256"],
            entry["gallery_images"],
        )
        for name, score in row["scores"].items():
            assert (score["mean"], score["std"]) == (entry["mean"][name], entry["std"][name])
            assert score["low"] <= score["mean"] <= score["high"]
        for name in ("run", "model", "losses", "seed", "stage", "feature_dim", "parameters", "gflops_per_image"):
            assert row[name] == metrics[name]
        assert Path(row["files"]["per_query"]).is_file()
        training, evaluation, found = cost["training"] or {}, cost["evaluation"], row["cost"]
        assert found["embedding_images_per_second"] == evaluation["images_per_second"]
        for name in ("training_seconds", "training_images_per_second", "peak_memory_mib", "precision"):
            assert found[name] == training.get(name.removeprefix("training_"))
        for file, name in ((training, "training_machine"), (evaluation, "evaluation_machine")):
            assert (found[name] or {}).items() <= file.items()
        assert row["files"].get("training") == training.get("file")


def test_queries_without_a_relevant_image_are_counted_nowhere(tmp_path: Path) -> None:
    write_run(tmp_path / "one", unmatched=True)
    assert block(compare_runs([tmp_path])).people == 19  # the first person has that query only


@pytest.mark.parametrize("path", ["", "eval_logs", "eval_logs/one", "eval_logs/one/metrics.json"])
def test_runs_are_found_by_folder_file_or_study(path: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "study" / "eval_logs" / "one")
    [row] = block(compare_runs([tmp_path / "study" / path])).rows
    assert row.files["metrics"] == str(run / "metrics.json")


def change_first_line(column: int, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        rows[1][column] = change(rows[1][column])
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    return damage


def cut(end: int) -> Callable[[Path], Any]:
    return lambda path: path.write_text(path.read_text()[:end])


def content(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


def without_a_setting(path: Path) -> None:
    path.write_text("".join(line for line in path.read_text().splitlines(True) if ",gallery,none," not in line))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("per_query.csv", Path.unlink, r"b/per_query.csv: no such file"),
        (
            "per_query.csv",
            change_first_line(7, lambda rank: "2" if rank == "1" else "1"),
            r"b/per_query.csv: gallery, flip none: rank1 is .* do not belong together",
        ),
        (
            "per_query.csv",
            change_first_line(4, lambda image: "Hands/another.jpg"),
            r"a/per_query.csv and .*b/per_query.csv list different queries",
        ),
        ("per_query.csv", content("image,rank\n"), r"b/per_query.csv: its columns are not"),
        ("per_query.csv", cut(-9), r"b/per_query.csv: line \d+: is dam"),
        ("per_query.csv", cut(400), r"b/per_query.csv: "),
        ("per_query.csv", without_a_setting, r"per_query.csv: has no gallery, flip none, although metrics.json"),
        ("metrics.json", content('{"run":'), r"b/metrics.json: is damaged or is not JSON"),
        ("metrics.json", content("[]"), r"b/metrics.json: .*another version"),
        ("metrics.json", lambda path: change_json(path, stage=...), r"b/metrics.json: stage: field required.*again"),
        ("metrics.json", lambda path: change_json(path, run="a", seed=1), r"/a and .*/b both hold the run a"),
        ("cost.json", lambda path: change_json(path, training="fast"), r"b/cost.json: training: .*another version"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    name: str, damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "a")
    damage(write_run(tmp_path / "b") / name)
    with pytest.raises(HandCLIPError, match=message):
        compare_runs([tmp_path])


def test_what_names_no_run_or_one_twice_or_one_of_too_few_people_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "eval_logs" / "a")
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([tmp_path / "eval_logs", run], r"the same run is named twice, by .*eval_logs and by .*a"),
        ([tmp_path / "empty"], "empty: holds no evaluation"),
        ([tmp_path / "nowhere"], "nowhere: no such file or folder"),
        ([write_run(tmp_path / "one_person", people=1)], "at least two"),
    ):
        with pytest.raises(HandCLIPError, match=message):
            compare_runs(paths)


def test_writing_the_same_comparison_again_changes_nothing(tmp_path: Path) -> None:
    for name, skill in (("a", 0.5), ("b", 0.7)):
        write_run(tmp_path / "runs" / name, skill=skill)
    files = write_matrix(compare_runs([tmp_path / "runs"]), tmp_path / "out")
    names = {"comparison.md", "comparison.csv", "comparison.tex", "comparison.json", "differences.csv"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == names
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_matrix(compare_runs([tmp_path / "runs"]), tmp_path / "out")] == before

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import ALL_ASPECTS, MANIFEST, METRICS, change_json, write_run

from handclip.errors import HandCLIPError
from handclip.report.comparison import compare_runs, write_matrix
from handclip.report.matrix import Matrix, MatrixBlock

TRAINED_ON = {"dataset": "11k", "aspect": "palmar_l", "manifest_sha256": "f" * 64}


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
        assert one.rows[1].best == METRICS
        assert one.rows[0].best == ()
        assert [dict(row.letters) for row in one.rows] == [{"rank1": "b", "map": "b"}, {"rank1": "a", "map": "a"}]
        assert len(one.differences) == 5
        for difference in one.differences:
            assert (difference.first, difference.second) == (1, 2)
            assert difference.low <= difference.difference <= difference.high
        by_metric = {difference.metric: difference for difference in one.differences}
        assert by_metric["rank1"].p_holm < 0.05


def test_rows_are_ordered_by_stage_model_losses_and_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", stage="2")
    write_run(tmp_path / "b", model="vit_small", seed=1)
    write_run(tmp_path / "c", model="vit_small", seed=0)
    write_run(tmp_path / "d", model="mbanet_small", losses=["cross_entropy"])
    write_run(tmp_path / "e", model="mbanet_small", losses=["arcface"])
    write_run(tmp_path / "f", stage="0")
    rows = block(compare_runs([tmp_path])).rows
    assert [row.run for row in rows] == list("fedcba")
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.losses_text for row in rows][:4] == ["no training", "arcface", "ce", "ce + triplet"]


def test_identical_runs_share_their_letter(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    one = block(compare_runs([tmp_path]))
    assert {difference.p for difference in one.differences} == {1.0}
    assert [row.letters["rank1"] for row in one.rows] == ["a", "a"]
    assert [row.best for row in one.rows] == [METRICS, METRICS]


def test_a_single_run_is_neither_best_nor_tested(tmp_path: Path) -> None:
    [row] = block(compare_runs([write_run(tmp_path / "one")])).rows
    assert (row.best, dict(row.letters)) == ((), {})


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "synthetic"},
        {"aspect": "palmar_l", "aspects": ["palmar_l"]},
        {"manifest_sha256": "f" * 64},
        {"rerank": {"k1": 20, "k2": 6, "lambda": 0.3}},
        {"cross_domain": True, "trained_on": TRAINED_ON},
        {"gallery_images": 21},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_measured_in_different_ways_is_never_ranked_together(changes: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "one", skill=0.2)
    write_run(tmp_path / "two", skill=0.9, **changes)
    matrix = compare_runs([tmp_path], different_manifests=True)
    assert len(matrix.blocks) == 8
    assert len({one.protocol.label for one in matrix.blocks}) == 8
    for one in matrix.blocks:
        assert [row.best for row in one.rows] == [()]
        assert one.differences == []


def test_cross_domain_runs_stand_apart_by_what_they_were_trained_on(tmp_path: Path) -> None:
    for run, digit in {"one": "e", "two": "f", "three": "f"}.items():
        trained_on = {**TRAINED_ON, "manifest_sha256": digit * 64}
        write_run(tmp_path / run, cross_domain=True, trained_on=trained_on, flips=["sum"], protocols=["gallery"])
    first, second = compare_runs([tmp_path]).blocks
    assert [len(first.rows), len(second.rows)] == [1, 2]
    assert first.protocol.label.endswith("cross-domain: trained on 11k palmar_l (manifest eeeeeeee)")


ON_ALL = {"dataset": "11k", "aspect": "all", "manifest_sha256": MANIFEST}
DORSAL_R = "0" + MANIFEST[1:]


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
    settings: dict[str, Any] = {"protocols": ["gallery"], "flips": ["sum"]}
    own = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": DORSAL_R}
    write_run(tmp_path / "own", manifest_sha256=DORSAL_R, trained_on=own, **settings)
    write_run(tmp_path / "untrained", manifest_sha256=DORSAL_R, stage="0", **settings)
    write_run(tmp_path / "all", aspects=ALL_ASPECTS, trained_on=ON_ALL, **settings)
    # The same checkpoint, evaluated on one aspect, is what the evaluation on all holds of that aspect.
    write_run(tmp_path / "of_all", manifest_sha256=DORSAL_R, trained_on=ON_ALL, cross_domain=True, **settings)
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
    assert (str(trained.cost.training_machine), str(trained.cost.evaluation_machine)) == (
        "cpu, AMD EPYC, 2 cores",
        "cpu, Intel Xeon, 1 core",
    )
    assert trained.cost.hardware == "cpu, AMD EPYC, 2 cores"
    assert untrained.cost.training_machine is None
    assert untrained.cost.hardware == "cpu, Intel Xeon, 1 core"


def whole(folder: Path, **changes: Any) -> Path:
    """A run that claims the size of all of 11k's dorsal right hands."""
    return write_run(
        folder, **{"gallery_images": 71, "queries": 971, "protocols": ["gallery"], "flips": ["none"], **changes}
    )


def test_published_results_stand_below_runs_on_the_whole_data_set(tmp_path: Path) -> None:
    whole(tmp_path / "one", skill=0.1)
    whole(tmp_path / "two", skill=0.2)
    [one] = compare_runs([tmp_path]).blocks
    assert "CLIP-FH zero-shot ViT-B/16" in [result.method for result in one.published]
    assert "MBA-Net" not in [result.method for result in one.published]
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
        {"rerank": {"k1": 20, "k2": 6, "lambda": 0.3}},
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
    without, matrix = compare_runs([run]), compare_runs([run], published=True)
    added = matrix.blocks[len(without.blocks) :]
    assert len(added) == 11
    assert all(one.rows == [] and one.published for one in added)
    assert sum(len(one.published) for one in added) == 85


def test_every_number_is_in_the_file_that_its_row_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("eval_logs/a"), aspects=ALL_ASPECTS, skill=0.3)
    write_run(Path("eval_logs/b"), skill=0.7, stage="0", luck=3)
    write_matrix(compare_runs([Path("eval_logs")]), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    rows = 0
    for one in content["blocks"]:
        for row in one["rows"]:
            rows += 1
            metrics = json.loads(Path(row["files"]["metrics"]).read_text())
            part = metrics["per_aspect"][one["protocol"]["aspect"]] if row["part_of_average"] else metrics
            [entry] = [
                entry
                for entry in part["results"]
                if (entry["gallery_protocol"], entry["flip"])
                == (one["protocol"]["gallery_protocol"], one["protocol"]["flip"])
            ]
            assert one["protocol"]["manifest_sha256"] == part["manifest_sha256"]
            assert one["protocol"]["gallery_images"] == entry["gallery_images"]
            for name, score in row["scores"].items():
                assert (score["mean"], score["std"]) == (entry["mean"][name], entry["std"][name])
                assert score["low"] <= score["mean"] <= score["high"]
            for name in ("run", "model", "losses", "seed", "stage", "feature_dim", "parameters", "gflops_per_image"):
                assert row[name] == metrics[name]
            assert Path(row["files"]["per_query"]).is_file()
            cost = json.loads(Path(row["files"]["cost"]).read_text())
            training = cost["training"] or {}
            assert row["cost"]["embedding_images_per_second"] == cost["evaluation"]["images_per_second"]
            assert row["cost"]["training_seconds"] == training.get("seconds")
            assert row["cost"]["training_images_per_second"] == training.get("images_per_second")
            assert row["cost"]["peak_memory_mib"] == training.get("peak_memory_mib")
            for part, machine in (("training", training), ("evaluation", cost["evaluation"])):
                for name, value in (row["cost"][f"{part}_machine"] or {}).items():
                    assert value == machine[name]
            assert row["files"].get("training") == training.get("file")
    assert rows == 4 * (5 + 1)


def test_queries_without_a_relevant_image_are_counted_nowhere(tmp_path: Path) -> None:
    write_run(tmp_path / "one", unmatched=True)
    assert block(compare_runs([tmp_path])).people == 19  # the first person has that query only


@pytest.mark.parametrize("path", ["", "eval_logs", "eval_logs/one", "eval_logs/one/metrics.json"])
def test_runs_are_found_by_folder_file_or_study(path: str, tmp_path: Path) -> None:
    write_run(tmp_path / "study" / "eval_logs" / "one")
    [row] = block(compare_runs([tmp_path / "study" / path])).rows
    assert row.files["metrics"] == str(tmp_path / "study" / "eval_logs" / "one" / "metrics.json")


def damage_first_line(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    with path.open(newline="") as file:
        header, first, *rest = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, change(first), *rest])


def move_to_another_image(path: Path) -> None:
    damage_first_line(path, lambda line: [*line[:4], "Hands/another.jpg", *line[5:]])


def rank_otherwise(path: Path) -> None:
    damage_first_line(path, lambda line: [*line[:7], "2" if line[7] == "1" else "1", *line[8:]])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("per_query.csv", Path.unlink, r"b/per_query.csv: no such file"),
        ("per_query.csv", rank_otherwise, r"b/per_query.csv: gallery, flip none: rank1 is .* do not belong together"),
        ("per_query.csv", move_to_another_image, r"a/per_query.csv and .*b/per_query.csv list different queries"),
        ("per_query.csv", lambda path: path.write_text("image,rank\n"), r"b/per_query.csv: its columns are not"),
        (
            "per_query.csv",
            lambda path: path.write_text(path.read_text()[:-9]),
            r"b/per_query.csv: line \d+: is dam",
        ),
        ("per_query.csv", lambda path: path.write_text(path.read_text()[:400]), r"b/per_query.csv: "),
        ("metrics.json", lambda path: path.write_text('{"run":'), r"b/metrics.json: is damaged or is not JSON"),
        ("metrics.json", lambda path: path.write_text("[]"), r"b/metrics.json: .*another version"),
        (
            "metrics.json",
            lambda path: change_json(path, stage=...),
            r"b/metrics.json: stage: field required.*again",
        ),
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


def test_a_setting_that_only_one_file_knows_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a") / "per_query.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if ",gallery,none," not in line))
    with pytest.raises(HandCLIPError, match=r"per_query.csv: has no gallery, flip none, although metrics.json"):
        compare_runs([tmp_path])


def test_one_person_is_too_few(tmp_path: Path) -> None:
    write_run(tmp_path / "a", people=1)
    with pytest.raises(HandCLIPError, match="at least two"):
        compare_runs([tmp_path])


def test_a_run_named_twice_and_no_run_at_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "eval_logs" / "a")
    with pytest.raises(HandCLIPError, match=r"the same run is named twice, by .*eval_logs and by .*a"):
        compare_runs([tmp_path / "eval_logs", run])
    (tmp_path / "empty").mkdir()
    with pytest.raises(HandCLIPError, match="empty: holds no evaluation"):
        compare_runs([tmp_path / "empty"])
    with pytest.raises(HandCLIPError, match="nowhere: no such file or folder"):
        compare_runs([tmp_path / "nowhere"])


def test_writing_the_same_comparison_again_changes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", skill=0.7)
    files = write_matrix(compare_runs([tmp_path / "runs"]), tmp_path / "out")
    names = {"comparison.md", "comparison.csv", "comparison.tex", "comparison.json", "differences.csv"}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()} == names
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_matrix(compare_runs([tmp_path / "runs"]), tmp_path / "out")] == before


def test_letters_that_cannot_be_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, skill in (("one", 0.1), ("two", 0.9)):
        write_run(tmp_path / name, skill=skill)
    monkeypatch.setattr("handclip.report.comparison.compact_letters", lambda significant: None)
    one = block(compare_runs([tmp_path]))
    assert [dict(row.letters) for row in one.rows] == [{}, {}]
    assert one.rows[1].best == METRICS


def test_labels_are_words(tmp_path: Path) -> None:
    write_run(tmp_path / "one", rerank={"k1": 20, "k2": 6, "lambda": 0.3})
    label = compare_runs([tmp_path]).blocks[0].protocol.label
    assert re.search(r"· re-ranking: k1 20, k2 6, lambda 0.3 ·", label)

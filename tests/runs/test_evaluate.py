import errno
import hashlib
import json
import os
import shutil
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_study import (
    HANDS,
    baseline_config,
    load_manifest,
    metrics_without_time,
    read_table,
    several_gallery_images,
    tiny_config,
)

from handclip.checksums import read_checksums, write_checksums
from handclip.datasets.pixels import PixelReader
from handclip.datasets.prepare import prepare
from handclip.datasets.transforms import ImageTransform
from handclip.errors import CheckpointError, DataError, HandCLIPError, Interrupted, InUseError
from handclip.files import read_json_object, write_json
from handclip.interruption import interruptible
from handclip.locks import holding
from handclip.models.builder import model_from_checkpoint
from handclip.models.checkpoint import Checkpoint
from handclip.models.embedding_model import EmbeddingModel
from handclip.report.evaluation_log import evaluation_text
from handclip.retrieval import feature_table
from handclip.retrieval.features import extract_features
from handclip.retrieval.summary import METRICS
from handclip.runs import evaluate as evaluation_module
from handclip.runs import evaluated_model
from handclip.runs.artifacts import read_explanations, validation_pairs
from handclip.runs.data import people_known_from_other_aspects
from handclip.runs.earlier_evaluation import earlier_metrics
from handclip.runs.evaluate import Evaluation, evaluate, evaluation_folder
from handclip.runs.evaluation_spec import find_evaluation_spec
from handclip.runs.provenance import read_provenance
from handclip.runs.result import TrainingResult
from handclip.runs.study_evaluations import evaluations_there
from handclip.runs.train import train
from handclip.synthetic import generate


def stage1_config(manifests: Path, stage1: TrainingResult, **changes: Any) -> Any:
    return tiny_config(manifests, experiment="stage1", checkpoint=str(stage1.checkpoint), **changes)


@pytest.fixture(scope="module")
def evaluated(manifests: Path, stage1: TrainingResult, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The stage-1 model on its own aspect; read it, do not change it."""
    place = tmp_path_factory.mktemp("evaluated")
    return evaluate(stage1_config(manifests, stage1, eval_dir=str(place)))


def test_metrics_json_has_the_promised_keys(evaluated: Evaluation, manifests: Path, stage1: TrainingResult) -> None:
    metrics = json.loads((evaluated.folder / "metrics.json").read_text())
    assert metrics == evaluated.metrics
    assert (metrics["dataset"], metrics["aspect"], metrics["model"]) == ("11k", "dorsal_r", "vit_small")
    assert metrics["checkpoint"] == str(stage1.checkpoint)
    assert metrics["manifest_sha256"] == load_manifest(manifests).sha256
    assert metrics["seconds"] > 0
    settings = [(entry["gallery_protocol"], entry["flip"]) for entry in metrics["results"]]
    assert settings == [("gallery", "none"), ("gallery", "sum"), ("gallery_all", "none"), ("gallery_all", "sum")]
    for entry in metrics["results"]:
        assert (entry["num_splits"], len(entry["splits"]), entry["unmatched_queries"]) == (3, 3, 0)
        for values in (entry["mean"], entry["std"], *entry["splits"]):
            assert list(values) == ["rank1", "rank5", "rank10", "map", "map_trapezoid"]
            assert all(0 <= value <= 1 for value in values.values())
    assert "per_aspect" not in metrics


def test_d45_metrics_are_ordered(evaluated: Evaluation) -> None:
    for entry in evaluated.metrics["results"]:
        for values in entry["splits"]:
            assert values["rank1"] <= values["rank5"] <= values["rank10"]
            assert values["rank1"] <= values["map"]
            # One relevant image a query.
            assert values["map_trapezoid"] == pytest.approx((values["rank1"] + values["map"]) / 2)


def test_d03_the_choices_stand_beside_the_numbers(evaluated: Evaluation) -> None:
    text = evaluation_text(evaluated.metrics, {})
    for line in (
        "Gallery protocol: gallery; flip: none; AP: plain and trapezoid",
        "Gallery protocol: gallery_all; flip: image + mirrored image; AP: plain and trapezoid",
        "  Split  3/3: ",
        "  Average: ",
    ):
        assert line in text


def test_mean_and_spread_follow_from_the_draws(evaluated: Evaluation) -> None:
    rows = read_table(evaluated.folder / "per_split.csv")
    assert len(rows) == 4 * 3
    for entry in evaluated.metrics["results"]:
        own = [
            row for row in rows if (row["gallery_protocol"], row["flip"]) == (entry["gallery_protocol"], entry["flip"])
        ]
        for name in METRICS:
            values = [float(row[name]) for row in own]
            assert entry["mean"][name] == pytest.approx(np.mean(values), abs=1e-12)
            assert entry["std"][name] == pytest.approx(np.std(values), abs=1e-12)


def test_d52_rank_k_follows_from_the_ranks_of_the_queries(evaluated: Evaluation, manifests: Path) -> None:
    rows = read_table(evaluated.folder / "per_query.csv")
    manifest = load_manifest(manifests)
    for entry in evaluated.metrics["results"]:
        for number, values in enumerate(entry["splits"]):
            key = (entry["gallery_protocol"], entry["flip"], str(number))
            own = [row for row in rows if (row["gallery_protocol"], row["flip"], row["split"]) == key]
            assert [row["image"] for row in own] == [manifest.images[i].path for i in manifest.draws[number].query]
            ranks = np.array([int(row["rank"]) for row in own])
            for k in (1, 5, 10):
                assert values[f"rank{k}"] == pytest.approx(np.mean(ranks <= k))
            for metric, column in (("map", "ap"), ("map_trapezoid", "ap_trapezoid")):
                assert values[metric] == pytest.approx(np.mean([float(row[column]) for row in own]), abs=1e-15)
            assert [int(row["identity"]) for row in own] == [
                manifest.images[i].identity for i in manifest.draws[number].query
            ]
            assert all(row["name"] == f"{int(row['identity']):07}" for row in own), "as HandInfo.csv has it"


def test_how_the_model_was_made_stands_beside_the_numbers(
    evaluated: Evaluation, manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    metrics = evaluated.metrics
    assert (metrics["experiment"], metrics["variant"], metrics["stage"]) == ("stage1", "finetuned", "1")
    assert (metrics["losses"], metrics["seed"], metrics["input_size"]) == (["cross_entropy"], 0, [32, 32])
    assert (metrics["rerank"], metrics["cross_domain"]) == (None, False)
    assert metrics["trained_on"] == {
        "dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": load_manifest(manifests).sha256,
    }  # fmt: skip
    assert 0 < metrics["gflops_per_image"] < 1
    options = {
        "pretrained": "none", "input_size": 32, "epochs": 2, "batch_size": 8, "images_per_identity": 2, "lr": 0.001,
        "backbone_lr_scale": 1.0, "precision": "float32",
    }  # fmt: skip
    assert metrics["options"] == options

    baseline = evaluate(baseline_config(manifests, seed=3)).metrics
    assert (baseline["variant"], baseline["stage"], baseline["losses"], baseline["seed"]) == ("baseline", "0", [], 3)
    assert (baseline["trained_on"], baseline["cross_domain"]) == (None, False)
    assert baseline["options"] == {"pretrained": "none", "input_size": 32}
    assert baseline["gflops_per_image"] == metrics["gflops_per_image"]

    second = tiny_config(
        manifests, experiment="stage2", resume_from=str(stage1.checkpoint), epochs=1,
        losses=[{"type": "cross_entropy"}, {"type": "triplet"}],
    )  # fmt: skip
    train(second)
    metrics = evaluate(second).metrics
    assert (metrics["stage"], metrics["losses"]) == ("2", ["cross_entropy", "triplet"])
    assert metrics["options"] == {**options, "epochs": 1, "resume_from": stage1.checkpoint.name}


def test_reranking_is_named_beside_every_number(manifests: Path, here: Path) -> None:
    manifest = several_gallery_images(manifests, here / "several.json")
    plain = evaluate(baseline_config(manifest, gallery_protocols=["gallery"]))
    config = baseline_config(manifest, gallery_protocols=["gallery"], rerank={"k1": 4, "k2": 2, "lambda": 0.2})
    result = evaluate(config)
    assert result.folder.name == f"{plain.folder.name}_rerank-k1-4-k2-2-lambda-0.2"
    parameters = {"k1": 4, "k2": 2, "lambda": 0.2}
    assert result.metrics["rerank"] == parameters
    assert [entry["rerank"] for entry in result.metrics["results"]] == [parameters] * 2
    assert plain.metrics["rerank"] is None
    text = evaluation_text(result.metrics, {})
    name = "k-reciprocal, k1 4, k2 2, lambda 0.2"
    for line in (f"flip: none; AP: plain and trapezoid; re-ranked ({name})", f"Averages; re-ranked ({name})"):
        assert line in text
    assert "re-ranked" not in evaluation_text(plain.metrics, {})

    rows, ranks = read_table(result.folder / "per_query.csv"), read_table(plain.folder / "per_query.csv")
    assert [row["rank"] for row in rows] != [row["rank"] for row in ranks]
    for entry in result.metrics["results"]:
        for number, values in enumerate(entry["splits"]):
            own = [row for row in rows if (row["flip"], row["split"]) == (entry["flip"], str(number))]
            assert values["map"] == pytest.approx(np.mean([float(row["ap"]) for row in own]), abs=1e-15)
            assert values["rank1"] == pytest.approx(np.mean([row["rank"] == "1" for row in own]))
    assert evaluate(config, reuse=True).metrics == result.metrics


def test_the_original_distance_alone_is_no_reranking(manifests: Path, here: Path) -> None:
    manifest = several_gallery_images(manifests, here / "several.json")
    plain = evaluate(baseline_config(manifest, gallery_protocols=["gallery"]))
    alone = evaluate(baseline_config(manifest, gallery_protocols=["gallery"], rerank={"lambda": 1}))
    for entry, other in zip(plain.metrics["results"], alone.metrics["results"], strict=True):
        assert entry["splits"] == other["splits"]


def test_reranking_is_refused_where_it_cannot_help(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_module, "embed_images", None)  # before any image is embedded
    with pytest.raises(
        DataError, match=r"rerank: 11k dorsal_r, gallery: each identity of the gallery has one image, so that"
    ):
        evaluate(baseline_config(manifests, rerank={}))
    with pytest.raises(DataError, match="rerank: 11k dorsal_r, gallery_all: each identity"):
        evaluate(baseline_config(manifests, rerank={}, gallery_protocols=["gallery_all"]))


def test_what_it_cost_stands_in_a_file_of_its_own(
    evaluated: Evaluation, manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    cost = json.loads((evaluated.folder / "cost.json").read_text())
    assert list(cost["evaluation"]) == ["seconds", "images_per_second", "device", "processor", "cores"]
    assert cost["evaluation"]["seconds"] == evaluated.metrics["seconds"]
    assert cost["evaluation"]["images_per_second"] > 0
    training = cost["training"]
    assert training.pop("file") == str(stage1.folder / "result.json")
    assert training == {
        name: getattr(stage1, name)
        for name in (
            "seconds", "images_per_second", "epochs", "best_epoch", "peak_memory_mib", "peak_gpu_memory_mib", "device",
            "processor", "cores", "precision",
        )
    }  # fmt: skip
    assert (training["device"], training["precision"], training["peak_gpu_memory_mib"]) == ("cpu", "float32", None)
    assert training["peak_memory_mib"] > 50

    assert json.loads((evaluate(baseline_config(manifests)).folder / "cost.json").read_text())["training"] is None
    # A checkpoint that has travelled without the records of its run.
    checkpoint = Checkpoint.load(stage1.checkpoint)
    elsewhere = replace(checkpoint, config={**checkpoint.config, "output_dir": "gone"})
    elsewhere.save(here / "travelled.pth")
    alone = evaluate(tiny_config(manifests, checkpoint="travelled.pth"))
    assert json.loads((alone.folder / "cost.json").read_text())["training"] is None


def test_the_records_of_training_are_found_where_the_run_has_moved(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "before").mkdir()
    monkeypatch.chdir(here / "before")
    trained = train(tiny_config(manifests, epochs=1, output_dir=str(here / "before/train_logs")))
    monkeypatch.chdir(here)
    (here / "before").rename(here / "after")
    places = {"output_dir": "after/train_logs", "save_dir": "after/saved_models", "eval_dir": "after/eval_logs"}
    cost = json.loads((evaluate(tiny_config(manifests, epochs=1, **places)).folder / "cost.json").read_text())
    assert cost["training"]["file"] == f"after/train_logs/{trained.run}/result.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is damaged or is not JSON"),
        ([], "it holds no JSON object"),
        ({"run": "another"}, "is not of the training that made this checkpoint"),
        ({"epochs": 9, "best_epoch": 8}, "is not of the training that made this checkpoint"),
    ],
)
def test_records_that_are_not_those_of_the_checkpoint_are_no_cost(
    change: Any, message: str, manifests: Path, here: Path, stage1: TrainingResult, caplog: pytest.LogCaptureFixture
) -> None:
    folder = here / "train_logs" / stage1.run
    folder.mkdir(parents=True)
    result = json.loads((stage1.folder / "result.json").read_text())
    changed = {**result, **change} if isinstance(change, dict) else change
    (folder / "result.json").write_text("{" if change is None else json.dumps(changed))
    evaluation = evaluate(stage1_config(manifests, stage1, flip_settings=["none"]))
    assert json.loads((evaluation.folder / "cost.json").read_text())["training"] is None
    assert "What training cost is not known" in caplog.text and message in caplog.text


def test_a_changed_record_of_training_is_no_cost(manifests: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(manifests, epochs=1)
    path = train(config).folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 99999}))
    assert json.loads((evaluate(config).folder / "cost.json").read_text())["training"] is None
    assert f"What training cost is not known: {path}: is damaged or was changed" in caplog.text


def test_the_record_of_the_machine_says_when_the_evaluation_began(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_module, "describe_environment", lambda *_: {"images": len(embedded)})
    embed, embedded = evaluation_module.embed_images, []
    monkeypatch.setattr(evaluation_module, "embed_images", lambda *a: embedded.append(a) or embed(*a))  # type: ignore[func-returns-value]
    folder = evaluate(baseline_config(manifests, num_splits=1, explained_images=0)).folder
    assert embedded
    assert json.loads((folder / "environment.json").read_text())["images"] == 0


def test_d41_metrics_equal_a_float64_brute_force(
    evaluated: Evaluation, manifests: Path, stage1: TrainingResult
) -> None:
    model = model_from_checkpoint(Checkpoint.load(stage1.checkpoint), "test").eval()
    transform = ImageTransform(model.encoder.preprocessing)
    manifest = load_manifest(manifests)

    def feature(index: int, flip: str) -> np.ndarray:
        with Image.open(manifest.path_of(index)) as image:
            pixels = transform(image.convert("RGB"), None)[None]
        with torch.no_grad():
            value = model.embed(pixels)[0].double()
            if flip == "sum":
                value = value + model.embed(pixels.flip(-1))[0].double()
        return np.asarray(value / value.norm())

    for entry in evaluated.metrics["results"]:
        features: dict[int, np.ndarray] = {}
        for number, values in enumerate(entry["splits"]):
            draw = manifest.draws[number]
            gallery = getattr(draw, entry["gallery_protocol"])
            for index in {*draw.query, *gallery} - features.keys():
                features[index] = feature(index, entry["flip"])
            ranks = []
            for query in draw.query:
                own = manifest.images[query].identity
                score = {g: float(features[query] @ features[g]) for g in gallery}
                [right] = [g for g in gallery if manifest.images[g].identity == own]
                ranks.append(1 + sum(score[g] >= score[right] for g in gallery if g != right))
            for k in (1, 5, 10):
                assert values[f"rank{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]), abs=1e-6)
            assert values["map"] == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=1e-6)


@pytest.mark.parametrize(("flips", "passes"), [(["none"], 1), (["sum"], 2), (["none", "sum"], 2)])
def test_each_distinct_image_is_encoded_once(
    flips: list[str], passes: int, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    embedded = 0

    def spy_read(self: PixelReader, path: Path, sha256: str) -> torch.Tensor:
        read[path.name] += 1
        return read_pixels(self, path, sha256)

    def spy_embed(self: EmbeddingModel, images: torch.Tensor) -> torch.Tensor:
        nonlocal embedded
        embedded += len(images)
        assert not self.training
        assert images.dtype == torch.float32
        return embed(self, images)

    embed = EmbeddingModel.embed
    read_pixels = PixelReader.read
    monkeypatch.setattr(PixelReader, "read", spy_read)
    monkeypatch.setattr(EmbeddingModel, "embed", spy_embed)
    monkeypatch.setattr(evaluated_model, "count_flops", lambda model: 0)
    # Explaining an image is another pass through the model.
    result = evaluate(baseline_config(manifests, flip_settings=flips, explained_images=0))

    manifest = load_manifest(manifests)
    used = {index for draw in manifest.draws[:3] for index in (*draw.query, *draw.gallery_all)}
    validation = {index for side in validation_pairs(manifest) for index in side}
    assert not used & validation
    assert read == {manifest.path_of(index).name: 1 for index in used | validation}
    assert embedded == passes * len(used | validation)
    assert result.metrics["distinct_images"] == len(used)
    assert [entry["flip"] for entry in result.metrics["results"]] == flips * 2


def test_a_pixel_cache_that_cannot_be_written_is_said_once(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    monkeypatch.setattr(evaluated_model, "count_flops", lambda model: 0)
    evaluate(baseline_config(manifests, explained_images=0))
    assert sum("The pixel cache" in message for message in caplog.messages) == 1


def test_flip_settings_differ_and_do_not_depend_on_each_other(
    evaluated: Evaluation, manifests: Path, stage1: TrainingResult, here: Path
) -> None:
    alone = evaluate(stage1_config(manifests, stage1, flip_settings=["none"]))
    assert alone.result("gallery_all", "none") == evaluated.result("gallery_all", "none")
    assert evaluated.result("gallery_all", "none")["splits"] != evaluated.result("gallery_all", "sum")["splits"]
    with pytest.raises(KeyError, match="flip sum"):
        alone.result("gallery", "sum")


def test_d34_features_do_not_depend_on_labels(manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Path], np.ndarray, list[int]]] = []

    def spy(model: Any, images: Any, **options: Any) -> Any:
        plain, mirrored = extract_features(model, images, **options)
        seen.append(([image.path for image in images], plain.copy(), [image.label for image in images]))
        return plain, mirrored

    monkeypatch.setattr(feature_table, "extract_features", spy)
    manifest = load_manifest(manifests)
    order = np.random.default_rng(0).permutation(manifest.test)
    images = list(manifest.images)
    for index, other in zip(manifest.test, order, strict=True):
        images[index] = replace(manifest.images[index], identity=manifest.images[other].identity)
    replace(manifest, images=tuple(images)).save(here / "permuted.json")

    right = evaluate(baseline_config(manifests))
    permuted = evaluate(baseline_config(manifests, manifest=str(here / "permuted.json"), eval_dir="permuted"))
    # Each evaluation embeds the images of the draws, then the validation images.
    for one, other in ((seen[0], seen[2]), (seen[1], seen[3])):
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1])
        assert {*one[2], *other[2]} == {-1}
    assert right.metrics["results"] != permuted.metrics["results"]
    # A permuted gallery lacks some identities; their queries are counted, not scored.
    unmatched = sum(row["rank"] == "0" for row in read_table(permuted.folder / "per_query.csv"))
    assert unmatched == sum(entry["unmatched_queries"] for entry in permuted.metrics["results"]) > 0


def test_d46_evaluating_again_writes_the_same_file(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    config = stage1_config(manifests, stage1)
    folder = evaluate(config).folder
    kept = ("features.npz", "explanations.npz", "attributes.csv", "manifest_dorsal_r.json")
    names = ("metrics.json", "per_split.csv", "per_query.csv", *kept)
    others = ("cost.json", "config.yml", "environment.json", "provenance.json", "SHA256SUMS")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, *others])
    first = metrics_without_time(folder / "metrics.json"), *((folder / name).read_bytes() for name in names[1:])
    evaluate(config.model_copy(update={"num_workers": 1}))
    assert first == (
        metrics_without_time(folder / "metrics.json"),
        *((folder / name).read_bytes() for name in names[1:]),
    )


def test_another_preprocessing_of_the_same_weights_does_not_replace_an_evaluation(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    evaluate(stage1_config(manifests, stage1))
    [path] = here.rglob("metrics.json")
    metrics = read_json_object(path)
    checkpoint = Checkpoint.load(stage1.checkpoint)
    assert metrics["preprocessing"] == checkpoint.preprocessing
    other = {**checkpoint.preprocessing, "mean": [0.5, 0.5, 0.5]}
    replace(checkpoint, preprocessing=other).save(here / "other.pth")
    config = stage1_config(manifests, stage1).model_copy(update={"checkpoint": here / "other.pth"})
    with pytest.raises(
        HandCLIPError, match=r"holds an evaluation with mean: \[0\.48145466, .*, not \[0\.5, 0\.5, 0\.5\]"
    ):
        evaluate(config)
    # Older versions did not say it.
    del metrics["preprocessing"]
    write_json(path, metrics)
    write_checksums(path.parent, read_checksums(path.parent) or {})
    evaluate(stage1_config(manifests, stage1), reuse=True)
    assert "preprocessing" not in read_json_object(path)


def test_d46_other_weights_or_settings_do_not_replace_an_evaluation(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    evaluate(stage1_config(manifests, stage1))
    [path] = here.rglob("metrics.json")
    before = path.read_bytes()
    # Under the same name, other weights.
    checkpoint = Checkpoint.load(stage1.checkpoint)
    state = {key: value + 0.01 if value.is_floating_point() else value for key, value in checkpoint.model_state.items()}
    replace(checkpoint, model_state=state).save(here / "other.pth")
    for change, key in (
        ({"checkpoint": here / "other.pth"}, "weights_sha256"),
        ({"num_splits": 2}, "num_splits"),
        ({"flip_settings": ("none",)}, "flip_settings"),
    ):
        config = stage1_config(manifests, stage1).model_copy(update=change)
        with pytest.raises(HandCLIPError, match=rf"holds an evaluation with {key}: .*--overwrite"):
            evaluate(config)
        assert path.read_bytes() == before
    evaluate(config, overwrite=True)
    assert path.read_bytes() != before


def test_the_same_weights_are_the_same_model_wherever_they_lie(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    first = evaluate(stage1_config(manifests, stage1))
    (here / "moved.pth").write_bytes(stage1.checkpoint.read_bytes())
    moved = stage1_config(manifests, stage1).model_copy(update={"checkpoint": here / "moved.pth"})
    assert evaluate(moved, reuse=True) == first
    again = evaluate(moved)
    assert again.metrics["checkpoint"] == str(here / "moved.pth")
    different = {key for key in first.metrics if again.metrics[key] != first.metrics[key]}
    assert different <= {"checkpoint", "seconds"}


def test_all_aspects_are_the_mean_of_each(manifests: Path, here: Path) -> None:
    together = evaluate(baseline_config(manifests, aspect="all")).metrics
    assert list(together["per_aspect"]) == ["dorsal_r", "dorsal_l", "palmar_r", "palmar_l"]
    for aspect, part in together["per_aspect"].items():
        alone = evaluate(baseline_config(manifests, aspect=aspect)).metrics
        assert part["results"] == alone["results"]
        assert part["manifest_sha256"] == alone["manifest_sha256"] == load_manifest(manifests, aspect).sha256
    for number, entry in enumerate(together["results"]):
        parts = [part["results"][number] for part in together["per_aspect"].values()]
        for name in METRICS:
            assert entry["mean"][name] == pytest.approx(np.mean([part["mean"][name] for part in parts]))
            means = [np.mean([part["splits"][draw][name] for part in parts]) for draw in range(3)]
            assert entry["std"][name] == pytest.approx(np.std(means))
        assert entry["queries"] == sum(part["queries"] for part in parts)


def test_training_all_aspects_evaluates_each(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, aspect="all", epochs=1)
    result = train(config)
    assert len(Checkpoint.load(result.checkpoint).identities) == 4 * HANDS.identities // 2
    metrics = evaluate(config).metrics
    assert metrics["checkpoint"] == f"saved_models/{result.run}.pth"
    assert len(metrics["per_aspect"]) == 4


def people_folder(root: Path, identities: int = 8, images: int = 3) -> Path:
    random = np.random.default_rng(0)
    for identity in range(identities):
        folder = root / f"человек {identity}"
        folder.mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"фото {number}.png")
    return root


def test_a_data_set_without_distractors_has_one_gallery(here: Path) -> None:
    people = people_folder(here / "people")
    config = baseline_config(here, dataset="folder", data_root=str(people), manifest=None, aspect="hand")
    result = evaluate(config)
    assert result.gallery_protocols == ("gallery",)
    assert result.metrics["aspect"] == "hand"
    only = config.model_copy(update={"gallery_protocols": ("gallery_all",), "eval_dir": here / "other"})
    with pytest.raises(DataError, match="gallery_protocols: gallery_all: folder has only gallery"):
        evaluate(only)


def test_a_draw_too_many_is_refused(manifests: Path, here: Path) -> None:
    with pytest.raises(DataError, match="num_splits: 11: the dorsal_r manifest has 10 draws"):
        evaluate(baseline_config(manifests, num_splits=11))


def test_a_data_set_without_queries_cannot_be_evaluated(here: Path) -> None:
    generate(here / "single", replace(HANDS, images_per_aspect=1))
    prepare("11k", here / "single", here / "manifests")
    # Ids 1 and 1104 have a second photograph, with a ring, which the protocol leaves out.
    with pytest.raises(DataError, match="11k dorsal_r cannot be evaluated"):
        evaluate(baseline_config(here / "manifests"))
    with pytest.raises(DataError, match="at least two identities"):
        train(tiny_config(here / "manifests"))


def test_a_model_trained_on_test_identities_is_refused(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    manifest = load_manifest(manifests)
    swapped = replace(manifest, train=manifest.test[::2], val=manifest.test[1::2], test=manifest.train_all, draws=())
    swapped.save(here / "m.json")
    for function in (evaluate, train):
        config = tiny_config(
            here / "m.json", manifest=str(here / "m.json"), checkpoint=str(stage1.checkpoint),
            resume_from=str(stage1.checkpoint),
        )  # fmt: skip
        with pytest.raises(DataError, match="was trained on 12 images that this manifest tests on"):
            function(config)


def test_features_that_are_not_finite_are_refused(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    checkpoint = Checkpoint.load(stage1.checkpoint)
    name = next(key for key in checkpoint.model_state if key.endswith("proj"))
    state = {**checkpoint.model_state, name: torch.full_like(checkpoint.model_state[name], 3e38)}  # sums overflow
    replace(checkpoint, model_state=state).save(here / "spoilt.pth")
    with pytest.raises(HandCLIPError, match=r"features are not finite .*Hand_"):
        evaluate(tiny_config(manifests, checkpoint=str(here / "spoilt.pth")))
    assert not list(here.glob("eval_logs/*/*.npz"))


def test_a_model_that_is_missing_or_another_is_refused(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    with pytest.raises(HandCLIPError, match=r"not trained yet, saved_models/.* is not there: give `handclip train`"):
        evaluate(tiny_config(manifests))
    with pytest.raises(CheckpointError, match="holds model: vit_small, but the config says model: rn_small"):
        evaluate(stage1_config(manifests, stage1, model="rn_small"))
    with pytest.raises(CheckpointError, match="was trained on 32x32 pixels"):
        evaluate(stage1_config(manifests, stage1, input_size=64))


def test_d51_hd_is_trained_and_evaluated_without_an_aspect_of_its_own(here: Path) -> None:
    random = np.random.default_rng(0)
    people = {"1-501": [1, 2, 3, 448, 449, 450], "502-712": [502, 712]}
    for folder, identities in people.items():
        (here / "datasets/HD/Original Images" / folder).mkdir(parents=True)
        for identity in identities:
            for number in (1, 2, 3):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(here / "datasets/HD/Original Images" / folder / f"{identity}_{number}.jpg")
    config = tiny_config(here, dataset="hd", manifest=None, epochs=1)
    train(config)
    result = evaluate(config)
    assert (result.metrics["dataset"], result.metrics["aspect"]) == ("hd", "dorsal")
    assert result.gallery_protocols == ("gallery",)
    # D-04: labels are the data set's own numbers, so that queries find their gallery images.
    entry = result.result("gallery", "none")
    assert (entry["unmatched_queries"], entry["gallery_images"]) == (0, [3 + 2 * 3])
    assert entry["mean"]["rank10"] == 1.0


def test_an_error_in_a_worker_process_is_one_sentence(hands: Path, here: Path) -> None:
    """DataLoader wraps the error of a worker in a whole traceback."""
    shutil.copytree(hands, here / "hands")
    manifest = prepare("11k", here / "hands", here / "manifests").manifests["dorsal_r"]
    image = manifest.path_of(manifest.test[0])
    data = image.read_bytes()
    image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=r"has changed since the manifest was made") as error:
        evaluate(baseline_config(here / "manifests", num_workers=1, eval_batch_size=4))
    assert "Traceback" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_feature_that_is_compared_is_the_config_s_choice(manifests: Path, here: Path) -> None:
    trained = train(tiny_config(manifests, neck="bnneck", epochs=1))
    checkpoint = Checkpoint.load(trained.checkpoint)
    images = torch.randn(4, 3, 32, 32)
    features = {}
    for choice in ("after_neck", "before_neck"):
        model = model_from_checkpoint(checkpoint, "", choice).eval()
        with torch.no_grad():
            [embedding] = model(images).values()
            features[choice] = model.embed(images)
        expected = embedding.neck_features if choice == "after_neck" else embedding.features
        assert torch.equal(features[choice], expected)
        config = tiny_config(manifests, neck="bnneck", epochs=1, test_feature=choice, eval_dir=choice)
        assert evaluate(config).metrics["settings"]["test_feature"] == choice
    assert not torch.equal(features["after_neck"], features["before_neck"])
    with pytest.raises(CheckpointError, match="holds neck: bnneck, but the config says neck: none"):
        evaluate(tiny_config(manifests, epochs=1, checkpoint=str(trained.checkpoint), eval_dir="c"))


def test_people_known_from_another_aspect_are_counted(manifests: Path) -> None:
    manifest = load_manifest(manifests, "dorsal_r")
    person = manifest.identity_names[manifest.images[manifest.test[0]].identity]
    trained_on = [f"palmar_l/{person}", "palmar_l/0000001", f"dorsal_r/{person}"]
    assert people_known_from_other_aspects(trained_on, {"dorsal_r": manifest}) == {"dorsal_r": 1}


def test_an_evaluation_that_was_done_is_reused_when_asked(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(baseline_config(manifests))
    (first.folder / ".together.01234567.part").mkdir()  # killed in the moment between its last file and its end
    (first.folder / ".provenance.json.01234567.part").touch()
    monkeypatch.setattr(evaluation_module, "embed_images", None)
    assert evaluate(baseline_config(manifests), reuse=True) == first
    assert not list(first.folder.glob("*.part"))


@pytest.mark.parametrize(("before", "now"), [(1, 0), (0, 1)])
def test_photographs_that_are_kept_are_as_many_as_asked_for(
    before: int, now: int, manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    small = baseline_config(manifests, flip_settings=["none"], num_splits=1, explained_images=before)
    folder = evaluate(small).folder
    asked = small.model_copy(update={"explained_images": now})
    again = evaluate(asked, reuse=True)
    assert not again.was_there
    assert len(read_explanations(folder)) == now
    said = f"{folder} was made with explained_images: {before}, not {now}, so it is evaluated again."
    assert caplog.messages.count(said) == 1
    harmless = asked.model_copy(update={"eval_batch_size": 7, "pixel_cache_gib": 0.0})
    assert evaluate(harmless, reuse=True).was_there


def test_an_evaluation_that_is_there_is_shown_from_where_nothing_can_be_written(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests, flip_settings=["none"], num_splits=1, explained_images=0)
    first = evaluate(config)
    monkeypatch.setattr("handclip.files.os.access", lambda *_: False)
    assert evaluate(config, reuse=True) == first
    for options in ({}, {"overwrite": True}, {"overwrite": True, "reuse": True}):
        with pytest.raises(HandCLIPError, match=r"cannot write eval_logs/\S+: eval_logs/\S+ is read-only"):
            evaluate(config, **options)
    (first.folder / "per_query.csv").unlink()
    with pytest.raises(HandCLIPError, match="is read-only"):
        evaluate(config, reuse=True)


@pytest.mark.parametrize(
    "name",
    [
        *("per_query.csv", "per_split.csv", "cost.json", "metrics.json", "features.npz", "attributes.csv"),
        *("explanations.npz", "manifest_dorsal_r.json", "config.yml", "environment.json", "SHA256SUMS"),
    ],
)
def test_an_evaluation_that_is_not_whole_is_done_again(
    name: str, manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    config = baseline_config(manifests, flip_settings=["none"])
    first = evaluate(config)
    (first.folder / name).unlink()
    again = evaluate(config, reuse=True)
    assert (f"lacks {name}, so it is evaluated again" in caplog.text) == (name != "metrics.json")
    assert read_checksums(first.folder) == read_checksums_anew(first.folder)
    assert (first.folder / name).is_file()
    assert {**again.metrics, "seconds": 0} == {**first.metrics, "seconds": 0}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "provenance.json"}


def facts_of(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in (read_provenance(folder) or {}).items() if name != "sessions"}


@pytest.mark.parametrize("fits", [0, 5, 11])
def test_an_evaluation_that_is_to_be_replaced_stays_until_the_new_one_is_whole(
    fits: int, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full after some of the twelve files, the last of which is the new provenance."""
    small = {"num_splits": 1, "explained_images": 0}
    other = baseline_config(manifests, flip_settings=["sum"], **small)
    folder = evaluate(baseline_config(manifests, flip_settings=["none"], **small)).folder
    before, facts = contents(folder), facts_of(folder)
    written: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.suffix == ".part" and path.is_file():
            if len(written) == fits:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path.name)
        sync(descriptor)

    with monkeypatch.context() as disk, pytest.raises(HandCLIPError) as caught:
        disk.setattr("handclip.files.os.fsync", fsync)
        evaluate(other, overwrite=True)
    assert str(caught.value).startswith(f"cannot write {folder}/")
    assert str(caught.value).endswith(": No space left on device")
    assert len(written) == fits
    assert contents(folder) == before
    assert facts_of(folder) == facts
    assert (read_provenance(folder) or {})["sessions"][-1]["exit"].startswith("failed: cannot write")
    evaluate(other, overwrite=True)
    assert facts_of(folder)["config_sha256"] != facts["config_sha256"]
    assert read_checksums(folder) == read_checksums_anew(folder)
    assert [entry["exit"] for entry in (read_provenance(folder) or {})["sessions"]][::2] == ["finished", "finished"]


def test_an_interrupted_evaluation_leaves_one_by_an_older_version_as_it_was(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests, flip_settings=["none"], num_splits=1, explained_images=0)
    folder = evaluate(config).folder
    (folder / "provenance.json").unlink()
    monkeypatch.setattr(evaluation_module, "embed_images", interrupted)
    with pytest.raises(Interrupted):
        evaluate(config, overwrite=True)
    assert read_provenance(folder) is None


def interrupted(*_: Any) -> None:
    raise Interrupted(signal.SIGINT)


def test_a_signal_while_files_get_their_names_waits_until_all_have_them(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"num_splits": 1, "explained_images": 0}
    other = baseline_config(manifests, flip_settings=["sum"], **small)
    folder = evaluate(baseline_config(manifests, flip_settings=["none"], **small)).folder
    before = facts_of(folder)
    rename = Path.replace

    def replace_and_interrupt(self: Path, target: Path) -> Path:
        if Path(target) == folder / "cost.json":
            os.kill(os.getpid(), signal.SIGTERM)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_and_interrupt)
    with pytest.raises(Interrupted), interruptible():
        evaluate(other, overwrite=True)
    assert read_checksums(folder) == read_checksums_anew(folder)
    after = read_provenance(folder) or {}
    assert after["config_sha256"] != before["config_sha256"]
    assert after["sessions"][-1]["exit"] == "interrupted by SIGTERM"
    assert not list(here.rglob("*.part"))


def test_metrics_never_stand_beside_the_tables_of_another_evaluation(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate(baseline_config(manifests, flip_settings=["none"])).folder
    rename = Path.replace

    def replace_or_fail(self: Path, target: Path) -> Path:
        if Path(target) == folder / "per_query.csv":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    with pytest.raises(HandCLIPError, match=f"cannot write {folder}: Input/output error"):
        evaluate(baseline_config(manifests, flip_settings=["sum"]), overwrite=True)
    assert not (folder / "metrics.json").exists()
    assert not (folder / "SHA256SUMS").exists()


def read_checksums_anew(folder: Path) -> dict[str, str]:
    """The checksums of what is in a folder, but for its provenance."""
    files = [path for path in folder.iterdir() if path.name not in ("SHA256SUMS", "provenance.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = ("truncated", "empty", "bit-flipped")


def test_a_damaged_evaluation_is_named_and_not_used_again(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file, with every damage."""
    config = baseline_config(manifests, flip_settings=["none"], num_splits=1)
    folder = evaluate(config).folder
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    spec = find_evaluation_spec(config)
    assert earlier_metrics(spec, reuse=True)
    for name in sorted(kept.keys() - {"provenance.json"}):
        for how in DAMAGES:
            damaged(folder / name, how)
            caplog.clear()
            assert earlier_metrics(spec, reuse=True) is None
            assert f"{folder / name}: is damaged" in caplog.text, (name, how)
            assert "so it is evaluated again" in caplog.text
            (folder / name).write_bytes(kept[name])
    assert earlier_metrics(spec, reuse=True)


def test_a_damaged_evaluation_ends_as_it_was(manifests: Path, here: Path) -> None:
    config = baseline_config(manifests, flip_settings=["none"])
    first = evaluate(config)
    features = (first.folder / "features.npz").read_bytes()
    damaged(first.folder / "features.npz", "bit-flipped")
    again = evaluate(config, reuse=True)
    assert {**again.metrics, "seconds": 0} == {**first.metrics, "seconds": 0}
    assert (first.folder / "features.npz").read_bytes() == features
    assert read_checksums(first.folder) == read_checksums_anew(first.folder)


def test_damaged_metrics_do_not_keep_a_run_from_being_evaluated(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = baseline_config(manifests, flip_settings=["none"])
    folder = evaluate(config).folder
    damaged(folder / "metrics.json", "truncated")
    assert evaluate(config).folder == folder
    assert f"{folder / 'metrics.json'}: is damaged or was changed" in caplog.text
    # Neither does what an older version, or one that was cut short, has left of the same evaluation ...
    (folder / "SHA256SUMS").unlink()
    evaluate(config)
    # ... but another one that nothing is wrong with stays.
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(HandCLIPError, match="holds an evaluation with num_splits"):
        evaluate(config.model_copy(update={"num_splits": 2}))


def test_an_evaluation_that_was_killed_is_made_again_with_the_same_bytes(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each file gets its name: in between there is nothing to see."""
    config = baseline_config(manifests, flip_settings=["none"], num_splits=1, explained_images=1)
    whole = evaluate(config).folder
    timed = ("metrics.json", "cost.json", "environment.json", "provenance.json", "SHA256SUMS")
    expected = {path.name: path.read_bytes() for path in whole.iterdir() if path.name not in timed}
    metrics = metrics_without_time(whole / "metrics.json")
    monkeypatch.setattr(evaluation_module, "describe_environment", lambda *_: {})  # which takes half of the time
    rename = Path.replace
    killed = 0
    for moment in range(0, 21, 5):  # each in the folder that the one before it has left
        names: list[str] = []

        def replace_or_die(self: Path, target: Path, moment: int = moment, names: list[str] = names) -> Path:
            if Path(target).parent != whole or Path(target).name == "provenance.json":
                return rename(self, target)
            if len(names) * 2 == moment:
                raise Killed
            names.append(Path(target).name)
            rename(self, target)
            if len(names) * 2 - 1 == moment:
                raise Killed
            return target

        monkeypatch.setattr(Path, "replace", replace_or_die)
        with suppress(Killed):
            evaluate(config)
            continue
        killed += 1
        monkeypatch.setattr(Path, "replace", rename)
        assert not (whole / "SHA256SUMS").exists()
    assert killed == 5
    monkeypatch.setattr(Path, "replace", rename)
    evaluate(config, reuse=True)
    assert {name: (whole / name).read_bytes() for name in expected} == expected
    assert metrics_without_time(whole / "metrics.json") == metrics
    assert read_checksums(whole) == read_checksums_anew(whole)


class Killed(BaseException):
    """What nothing that deals with errors stops, as SIGKILL."""


def test_a_second_process_is_told_that_the_evaluation_is_under_way(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests, flip_settings=["none"], num_splits=1, explained_images=0)
    measure, told = evaluation_module._measure, []

    def measure_while_another_tries(*arguments: Any) -> Evaluation:
        with pytest.raises(InUseError, match=rf"eval_logs/{run}\S* is being written by process \d+") as refused:
            evaluate(config)
        told.append(refused)
        return measure(*arguments)

    run = "tiny_vit_small"
    monkeypatch.setattr(evaluation_module, "_measure", measure_while_another_tries)
    result = evaluate(config)
    assert len(told) == 1
    assert read_checksums(result.folder) == read_checksums_anew(result.folder)


def test_queries_and_ties_are_counted_beside_every_rate(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_alike(*arguments: Any, **options: Any) -> Any:
        plain, mirrored = extract_features(*arguments, **options)
        return np.ones_like(plain), mirrored

    monkeypatch.setattr(feature_table, "extract_features", all_alike)
    result = evaluate(baseline_config(manifests, flip_settings=["none"], explained_images=0))
    rows = read_table(result.folder / "per_split.csv")
    for entry in result.metrics["results"]:
        own = [row for row in rows if row["gallery_protocol"] == entry["gallery_protocol"]]
        assert entry["matched_queries"] == [int(row["queries"]) for row in own]
        assert entry["tied_queries"] == sum(entry["matched_queries"]) == sum(int(row["tied_queries"]) for row in own)
        assert entry["mean"]["rank1"] == 0
    text = evaluation_text(result.metrics)
    assert f"  of {own[0]['queries']} queries\n" in text
    tied = entry["tied_queries"]
    assert f"  Ties: in {tied} of {tied} queries a wrong image scores the same as the best right one" in text


def test_evaluating_a_run_that_has_not_ended_is_said(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(manifests, epochs=3)
    train(config, stop_after=1)
    evaluation = evaluate(config)
    assert "Training of this run has not ended" in caplog.text
    assert (evaluation.metrics["training_ended"], evaluation.metrics["trained_epochs"]) == (False, 1)
    caplog.clear()
    train(config, resume=True)
    path = evaluation.folder / "metrics.json"
    path.write_text(json.dumps({**evaluation.metrics, "weights_sha256": "0" * 64}))  # as if its best were another now
    write_checksums(evaluation.folder, read_checksums(evaluation.folder) or ())
    with pytest.raises(HandCLIPError, match="holds the evaluation of an earlier model of this run, made before its"):
        evaluate(config)
    ended = evaluate(config, overwrite=True)
    assert ended.metrics["training_ended"] is True
    assert "has not ended" not in caplog.text


def test_an_evaluation_of_an_earlier_model_of_a_run_that_has_ended_since_is_made_again(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a study does, which has no --overwrite."""
    caplog.set_level("INFO", "handclip")
    config = tiny_config(manifests, epochs=2)
    train(config, stop_after=1)
    before = evaluate(config)
    train(config, resume=True)
    path = before.folder / "metrics.json"
    path.write_text(json.dumps({**before.metrics, "weights_sha256": "0" * 64}))  # as if its best were another now
    write_checksums(before.folder, read_checksums(before.folder) or ())
    assert evaluations_there(config, []) == [None]
    after = evaluate(config, reuse=True)
    assert "was made before training had ended, so it is evaluated again" in caplog.text
    assert after.metrics["training_ended"] and not after.was_there
    assert evaluations_there(config, []) == [after.folder]


def test_an_evaluation_before_training_had_ended_is_not_used_again(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the best model has stayed the same."""
    caplog.set_level("INFO", "handclip")
    config = tiny_config(manifests, epochs=2, validation_interval=2)
    train(config)
    (result,) = here.glob("train_logs/*/result.json")
    result.rename(here / "aside.json")
    before = evaluate(config, reuse=True)
    assert evaluate(config, reuse=True).was_there
    (here / "aside.json").rename(result)
    after = evaluate(config, reuse=True)
    assert "was made before training had ended, so it is evaluated again" in caplog.text
    assert (before.metrics["training_ended"], after.metrics["training_ended"]) == (False, True)
    assert before.metrics["results"] == after.metrics["results"]
    assert evaluate(config, reuse=True).was_there


def test_another_runs_checkpoint_can_be_evaluated_while_the_configs_own_evaluation_is_written(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    small = {"flip_settings": ["none"], "num_splits": 1, "explained_images": 0}
    config = tiny_config(manifests, experiment="own", checkpoint=str(stage1.checkpoint), **small)
    with holding(evaluation_folder(config)):
        evaluation = evaluate(config)
    assert evaluation.run == stage1.run != evaluation_folder(config).name
    with holding(evaluation.folder), pytest.raises(InUseError, match=f"{stage1.run} is being written by process"):
        evaluate(config, overwrite=True)


@pytest.mark.parametrize("name", ["per_query.csv", "SHA256SUMS"])
def test_a_folder_in_place_of_a_file_is_named_before_anything_is_computed(
    name: str, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests)
    folder = evaluation_folder(config)
    (folder / name).mkdir(parents=True)
    monkeypatch.setattr(evaluation_module, "_measure", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(HandCLIPError, match=rf"^cannot write .*/{name}: there is a folder of that name\. Move it away"):
        evaluate(config)

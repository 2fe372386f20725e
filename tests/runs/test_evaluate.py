"""The numbers of an evaluation, what stands beside them, and what is refused."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_study import HANDS, baseline_config, load_manifest, read_table, several_gallery_images, tiny_config

from handclip.datasets.pixels import PixelReader
from handclip.datasets.prepare import prepare
from handclip.datasets.transforms import ImageTransform
from handclip.errors import CheckpointError, DataError, HandCLIPError
from handclip.models.builder import model_from_checkpoint
from handclip.models.checkpoint import Checkpoint
from handclip.models.embedding_model import EmbeddingModel
from handclip.report.evaluation_log import evaluation_text
from handclip.retrieval import evaluation as retrieval_module
from handclip.retrieval.features import Embedder, validation_pairs
from handclip.retrieval.summary import METRICS
from handclip.runs import evaluated_model
from handclip.runs.cost import training_cost
from handclip.runs.data import people_known_from_other_aspects
from handclip.runs.evaluate import Evaluation, evaluate
from handclip.runs.result import TrainingResult
from handclip.runs.train import train
from handclip.synthetic import generate


def stage1_config(manifests: Path, stage1: TrainingResult, **changes: Any) -> Any:
    return tiny_config(manifests, experiment="stage1", checkpoint=str(stage1.checkpoint), **changes)


@pytest.fixture(scope="module")
def evaluated(manifests: Path, stage1: TrainingResult, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The stage-1 model on its own aspect; read it, do not change it."""
    place = tmp_path_factory.mktemp("evaluated")
    return evaluate(stage1_config(manifests, stage1, eval_dir=str(place)))


def test_d45_metrics_have_the_promised_keys_and_order(
    evaluated: Evaluation, manifests: Path, stage1: TrainingResult
) -> None:
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
        for values in entry["splits"]:
            assert values["rank1"] <= values["rank5"] <= values["rank10"]
            assert values["rank1"] <= values["map"]
            # One relevant image a query.
            assert values["map_trapezoid"] == pytest.approx((values["rank1"] + values["map"]) / 2)
    assert "per_aspect" not in metrics


def test_d03_the_choices_stand_beside_the_numbers(evaluated: Evaluation) -> None:
    text = evaluation_text(evaluated.metrics, {})
    for line in (
        "Gallery protocol: gallery; flip: none; AP: plain and trapezoid",
        "Gallery protocol: gallery_all; flip: image + mirrored image; AP: plain and trapezoid",
        "  Split  3/3: ",
        "  Average: ",
    ):
        assert line in text


def test_d52_means_follow_from_the_draws_and_rates_from_the_ranks_of_their_queries(
    evaluated: Evaluation, manifests: Path
) -> None:
    draws, queries = (read_table(evaluated.folder / name) for name in ("per_split.csv", "per_query.csv"))
    manifest = load_manifest(manifests)
    assert len(draws) == 4 * 3
    for entry in evaluated.metrics["results"]:
        condition = {"gallery_protocol": entry["gallery_protocol"], "flip": entry["flip"]}.items()
        for name in METRICS:
            values = [float(row[name]) for row in draws if condition <= row.items()]
            assert entry["mean"][name] == pytest.approx(np.mean(values), abs=1e-12)
            assert entry["std"][name] == pytest.approx(np.std(values), abs=1e-12)
        for number, rates in enumerate(entry["splits"]):
            own = [row for row in queries if condition <= row.items() and row["split"] == str(number)]
            images = [manifest.images[index] for index in manifest.draws[number].query]
            assert [(row["image"], int(row["identity"])) for row in own] == [(one.path, one.identity) for one in images]
            assert all(row["name"] == f"{int(row['identity']):07}" for row in own), "as HandInfo.csv has it"
            for k in (1, 5, 10):
                assert rates[f"rank{k}"] == pytest.approx(np.mean([int(row["rank"]) <= k for row in own]))
            for metric, column in (("map", "ap"), ("map_trapezoid", "ap_trapezoid")):
                assert rates[metric] == pytest.approx(np.mean([float(row[column]) for row in own]), abs=1e-15)


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
    # The original distance alone is no re-ranking.
    alone = evaluate(baseline_config(manifest, gallery_protocols=["gallery"], rerank={"lambda": 1}))
    assert [one["splits"] for one in alone.metrics["results"]] == [one["splits"] for one in plain.metrics["results"]]


def test_reranking_is_refused_where_it_cannot_help(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_module, "embed_images", None)  # before any image is embedded
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
    # A checkpoint that has travelled without the records of its run, and then with them.
    checkpoint = Checkpoint.load(stage1.checkpoint)
    elsewhere = replace(checkpoint, config={**checkpoint.config, "output_dir": "gone"})
    elsewhere.save(here / "travelled.pth")
    alone = tiny_config(manifests, checkpoint="travelled.pth", output_dir="after")
    assert json.loads((evaluate(alone).folder / "cost.json").read_text())["training"] is None
    shutil.copytree(stage1.folder, here / "after" / stage1.run)
    cost = json.loads((evaluate(alone, overwrite=True).folder / "cost.json").read_text())
    assert cost["training"]["file"] == f"after/{stage1.run}/result.json"


@pytest.mark.parametrize(
    ("change", "listed", "message"),
    [
        ("{", False, "is damaged or is not JSON"),
        ("[]", False, "it holds no JSON object"),
        ({"run": "another"}, False, "is not of the training that made this checkpoint"),
        ({"epochs": 9, "best_epoch": 8}, False, "is not of the training that made this checkpoint"),
        ({"seconds": 99999}, True, "is damaged or was changed"),
    ],
)
def test_records_that_are_not_those_of_the_checkpoint_are_no_cost(
    change: Any, listed: bool, message: str, here: Path, stage1: TrainingResult, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(stage1.folder, here / stage1.run)
    if not listed:
        (folder / "SHA256SUMS").unlink()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(change if isinstance(change, str) else json.dumps({**result, **change}))
    assert training_cost(Checkpoint.load(stage1.checkpoint), [folder]) is None
    assert f"What training cost is not known: {folder / 'result.json'}" in caplog.text and message in caplog.text


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

    def spy(self: Embedder, images: Any, *options: Any) -> Any:
        by_flip = embed(self, images, *options)
        seen.append(([image.path for image in images], by_flip["none"], [image.label for image in images]))
        return by_flip

    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", spy)
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


@pytest.mark.promise("exact-similarities", "rates-say-of-what")
def test_queries_and_ties_are_counted_beside_every_rate(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda *given: {"none": np.ones_like(embed(*given)["none"])})
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
    with pytest.raises(DataError, match="num_splits: 11: the hand manifest has 10 draws"):
        evaluate(config.model_copy(update={"num_splits": 11, "eval_dir": here / "third"}))


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
    assert not list(here.glob("eval_logs/*/*.safetensors"))


def test_a_model_that_is_missing_is_asked_for(manifests: Path, here: Path) -> None:
    with pytest.raises(HandCLIPError, match=r"not trained yet, saved_models/.* is not there: give `handclip train`"):
        evaluate(tiny_config(manifests))


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
    results = []
    for choice in ("after_neck", "before_neck"):
        config = tiny_config(manifests, neck="bnneck", epochs=1, test_feature=choice, eval_dir=choice)
        metrics = evaluate(config).metrics
        assert metrics["settings"]["test_feature"] == choice
        results.append(metrics["results"])
    assert results[0] != results[1]
    with pytest.raises(CheckpointError, match="was trained with neck: bnneck, but the config says neck: none"):
        evaluate(tiny_config(manifests, epochs=1, checkpoint=str(trained.checkpoint), eval_dir="c"))


def test_people_known_from_another_aspect_are_counted(manifests: Path) -> None:
    manifest = load_manifest(manifests, "dorsal_r")
    person = manifest.identity_names[manifest.images[manifest.test[0]].identity]
    trained_on = [f"palmar_l/{person}", "palmar_l/0000001", f"dorsal_r/{person}"]
    assert people_known_from_other_aspects(trained_on, {"dorsal_r": manifest}) == {"dorsal_r": 1}

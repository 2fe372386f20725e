"""A model evaluated on data that it was not trained on."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from quick_figures import save_dots
from tiny_study import baseline_config, load_manifest, tiny_config, tiny_values, write_config

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_trained_config
from handclip.config.naming import run_name
from handclip.datasets.hd import prepare_hd
from handclip.datasets.preparation import Preparation
from handclip.errors import ConfigError
from handclip.models.checkpoint import Checkpoint
from handclip.report.evaluation_log import evaluation_text
from handclip.report.report import write_report
from handclip.runs.evaluate import evaluate, evaluation_folder
from handclip.runs.evaluated_model import checkpoint_path, choose_model
from handclip.runs.result import TrainingResult
from handclip.runs.train import train


def photograph(path: Path, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def hd(here: Path) -> Path:
    """HD in small, with distractors; two people have numbers that the tiny hands have too."""
    random = np.random.default_rng(0)
    for folder, people in {"1-501": [1, 2, 448, 449, 450], "502-712": [502, 712]}.items():
        for person in people:
            for number in (1, 2, 3):
                photograph(here / "datasets/HD/Original Images" / folder / f"{person}_{number}.jpg", random)
    return here / "datasets/HD"


def elsewhere(stage1: TrainingResult, manifests: Path, **changes: Any) -> ExperimentConfig:
    return tiny_config(manifests, experiment="stage1", checkpoint=str(stage1.checkpoint), **changes)


def test_another_aspect(manifests: Path, here: Path, stage1: TrainingResult, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    config = elsewhere(stage1, manifests, aspect="palmar_l")
    result = evaluate(config)
    sha256 = load_manifest(manifests, "palmar_l").sha256
    assert result.folder.name == result.run == f"{stage1.run}_on_11k_palmar_l_{sha256[:8]}"
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["aspect"], metrics["manifest_sha256"]) == ("11k", "palmar_l", sha256)
    assert metrics["trained_on"] == {
        "dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": load_manifest(manifests).sha256,
    }  # fmt: skip
    assert (metrics["cross_domain"], metrics["stage"], metrics["experiment"]) == (True, "1", "stage1")
    assert f"Evaluating {stage1.run}, trained on 11k dorsal_r, on 11k palmar_l" in caplog.text
    text = evaluation_text(metrics, {})
    assert "Cross-domain:     trained on 11k dorsal_r (manifest" in text
    assert ", evaluated on 11k palmar_l" in text
    assert json.loads((result.folder / "cost.json").read_text())["training"]["seconds"] == stage1.seconds
    assert evaluate(config, reuse=True).metrics == metrics


def test_a_folder_of_one_s_own(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    random = np.random.default_rng(1)
    for folder, person, number in itertools.product(("people", "others"), range(8), range(3)):
        photograph(here / folder / str(person) / f"{number}.png", random)
    config = elsewhere(stage1, manifests, dataset="folder", manifest=None, data_root="people")
    first = evaluate(config)
    assert first.run == f"{stage1.run}_on_folder_hand_{first.metrics['manifest_sha256'][:8]}"
    second = evaluate(config.model_copy(update={"data_root": Path("others")}))
    assert second.run != first.run and first.folder.is_dir()


def test_only_another_manifest_of_the_same_aspect_is_another_domain(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    manifest = replace(load_manifest(manifests), seed=99)
    manifest.save(here / "other.json")
    result = evaluate(elsewhere(stage1, manifests, manifest=str(here / "other.json")))
    assert result.run == f"{stage1.run}_on_11k_dorsal_r_{manifest.sha256[:8]}"
    assert result.metrics["cross_domain"]
    result = evaluate(elsewhere(stage1, manifests))
    assert (result.run, result.metrics["cross_domain"]) == (stage1.run, False)
    assert "Cross-domain" not in evaluation_text(result.metrics, {})


def test_a_named_checkpoint_is_evaluated_under_its_own_name(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    """Not under that of the experiment file that happens to name it."""
    other = tiny_config(manifests, experiment="other", seed=5, epochs=7, checkpoint=str(stage1.checkpoint))
    result = evaluate(other)
    assert result.run == result.folder.name == stage1.run
    assert (result.metrics["experiment"], result.metrics["seed"]) == ("stage1", 0)
    # The very manifest that it was trained on, named as a file: the same evaluation.
    named = tiny_config(
        manifests, experiment="stage1", manifest=str(manifests / "manifest_dorsal_r.json"),
        checkpoint=str(stage1.checkpoint),
    )  # fmt: skip
    assert run_name(named) != stage1.run
    assert evaluate(named, reuse=True) == result


def test_the_run_s_own_checkpoint_has_the_name_that_is_checked_before_training(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=1)
    trained = train(config)
    result = evaluate(config)
    assert result.folder == evaluation_folder(config)
    assert evaluate(config.model_copy(update={"checkpoint": trained.checkpoint}), reuse=True) == result


def test_people_are_known_within_a_data_set_only(manifests: Path, hd: Path, here: Path, stage1: TrainingResult) -> None:
    checkpoint = Checkpoint.load(stage1.checkpoint)
    person = sorted(prepare_hd(Preparation("hd", hd))["dorsal"].identity_names.values())[-1]
    palmar = load_manifest(manifests, "palmar_l")
    tested = palmar.identity_names[palmar.images[palmar.test[0]].identity]
    replace(checkpoint, identities=[f"dorsal_r/{person}", f"dorsal_r/{tested}"]).save(here / "known.pth")
    changes = {"experiment": "stage1", "checkpoint": "known.pth"}
    same = evaluate(tiny_config(manifests, aspect="palmar_l", **changes)).metrics
    assert same["test_people_known_from_other_aspects"] == 1
    # Drawn as another data set in the same layout, the same number is another person.
    other = replace(checkpoint, config={**checkpoint.config, "dataset": "synthetic"})
    replace(other, identities=[f"dorsal_r/{tested}"]).save(here / "known.pth")
    other_set = evaluate(tiny_config(manifests, aspect="palmar_l", eval_dir="other", **changes)).metrics
    assert (other_set["test_people_known_from_other_aspects"], other_set["cross_domain"]) == (0, True)
    assert evaluate(tiny_config(here, dataset="hd", manifest=None, **changes)).metrics[
        "test_people_known_from_other_aspects"
    ] == 0  # fmt: skip


def test_what_an_earlier_stage_was_trained_on_counts_too(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    first = Checkpoint.load(stage1.checkpoint)
    stage2 = train(tiny_config(manifests, aspect="palmar_l", epochs=1, resume_from=str(stage1.checkpoint)))
    seen = Checkpoint.load(stage2.checkpoint).training_images
    assert set(first.training_images) < set(seen)
    palmar = load_manifest(manifests, "palmar_l")
    assert {palmar.images[index].sha256 for index in palmar.train} == set(seen) - set(first.training_images)


def test_without_a_change_of_data_there_is_no_other_model(manifests: Path, here: Path) -> None:
    path = write_config(here / "tiny.yml", tiny_values(manifests))
    assert load_trained_config(path, ["epochs=3", "seed=1"]) is None
    trained = load_trained_config(path, ["aspect=palmar_l", "seed=1", "data_root=elsewhere"])
    assert trained == tiny_config(manifests, seed=1)
    # A file that is no experiment without the change has no model of its own.
    write_config(path, tiny_values(manifests, dataset="folder", manifest=None, aspect="hand"))
    assert load_trained_config(path, ["data_root=people"]) is None


def test_which_model_is_evaluated(manifests: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "handclip")
    trained, config = tiny_config(manifests), tiny_config(manifests, aspect="palmar_l")
    own, other = checkpoint_path(config), checkpoint_path(trained)
    with pytest.raises(ConfigError, match=r"neither .* nor ") as error:
        choose_model(config, trained)
    assert str(own) in str(error.value) and str(other) in str(error.value)

    other.parent.mkdir()
    other.touch()
    assert choose_model(config, trained) == config.model_copy(update={"checkpoint": other})
    assert choose_model(config, None) == config
    own.touch()
    assert choose_model(config, trained) == config
    assert f"add --set checkpoint={other}" in caplog.text
    other.unlink()
    assert choose_model(config, trained) == config

    named = config.model_copy(update={"checkpoint": Path("named.pth")})
    assert choose_model(named, trained) == named
    baseline = baseline_config(manifests, aspect="palmar_l")
    assert choose_model(baseline, baseline_config(manifests)) == baseline


def test_every_kind_of_evaluation_can_be_reported(
    manifests: Path, hd: Path, here: Path, stage1: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another data set, re-ranked, on another aspect: no section fails, whatever it has to leave out."""
    save_dots(monkeypatch)
    changes: list[dict[str, Any]] = [
        {"dataset": "hd", "manifest": None},
        {"dataset": "hd", "manifest": None, "rerank": {"k1": 3}},
        {"aspect": "palmar_l"},
    ]
    results = [evaluate(elsewhere(stage1, manifests, **change)) for change in changes]
    plain, reranked, _ = results
    assert (plain.metrics["aspect"], plain.metrics["cross_domain"]) == ("dorsal", True)
    assert plain.run == f"{stage1.run}_on_hd_dorsal"
    assert reranked.run == f"{stage1.run}_on_hd_dorsal_rerank-k1-3-k2-6-lambda-0.3"
    entry = plain.result("gallery", "none")
    assert (entry["gallery_images"], entry["unmatched_queries"]) == ([3 + 2 * 3], 0)
    folders = [result.folder for result in results]
    for number, chosen in enumerate([*([folder] for folder in folders), folders]):
        page = write_report(chosen, here / f"report{number}").page.read_text()
        assert "could not be made" not in page

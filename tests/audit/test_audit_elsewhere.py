"""What is elsewhere is not checked, what is gone is named, and edits are found in both cases."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from audited_study import SMALL, Copy, audited, edit, faults, found
from tiny_study import baseline_config, tiny_config

from handclip.audit import Finding, Outcome
from handclip.datasets.prepare import prepare
from handclip.files import cache_folder
from handclip.models.builder import build_model
from handclip.models.checkpoint import Checkpoint
from handclip.runs.evaluate import evaluate
from handclip.runs.train import train


@pytest.mark.promise("model-elsewhere")
def test_a_model_that_is_elsewhere_with_its_folder_is_no_fault(copy: Copy, original: Path) -> None:
    copy.forget_where_it_was(original)
    assert audited(copy.evaluation).holds and audited(copy.training).holds
    shutil.rmtree(copy.study / "saved_models")
    there = f"/of/another/machine/saved_models/{copy.checkpoint.name}"
    for folder in (copy.evaluation, copy.training):
        result = audited(folder)
        assert result.holds and result.checked
        sentence = f"{there} is not here, nor is its folder"
        assert found(result, "checkpoint") == Finding("checkpoint", Outcome.NOT_CHECKED, sentence)
    # An edit is found by what is here.
    metrics = copy.evaluation / "metrics.json"
    written = metrics.read_text()
    for key, value, what in (
        ("weights_sha256", "0" * 64, "metrics.json: run and weights_sha256"),
        ("run", "better", "metrics.json: run and weights_sha256"),
        ("aspect", "palmar_l", "metrics.json: identity"),
        ("checkpoint", None, "metrics.json: checkpoint"),
    ):
        metrics.write_text(written)
        edit(metrics, key, value)
        assert list(faults(audited(copy.evaluation))) == [what]


@pytest.mark.promise("model-elsewhere")
def test_a_model_that_is_gone_from_its_folder_is_named(copy: Copy, original: Path) -> None:
    copy.forget_where_it_was(original)
    copy.checkpoint.unlink()
    there = f"/of/another/machine/saved_models/{copy.checkpoint.name}"
    for folder in (copy.evaluation, copy.training):
        fault = faults(audited(folder))
        assert list(fault) == ["checkpoint"]
        assert fault["checkpoint"] == Finding("checkpoint", Outcome.GONE, f"{there} is not there")


@pytest.mark.promise("model-elsewhere")
@pytest.mark.parametrize("place", ["weights/own.pt", "own.pt"])
def test_own_weights_of_a_baseline_that_are_not_there_are_named(place: str, manifests: Path, here: Path) -> None:
    own = Path(place)
    own.parent.mkdir(exist_ok=True)
    tower = build_model(baseline_config(manifests, input_size=None)).encoder.tower.state_dict()  # type: ignore[union-attr]
    torch.save({f"visual.{name}": value for name, value in tower.items()}, own)
    folder = evaluate(baseline_config(manifests, pretrained=place, **SMALL)).folder
    assert audited(folder).holds
    own.unlink()
    if own.parent != Path():
        assert faults(audited(folder)) == {"weights": Finding("weights", Outcome.GONE, f"{own} is not there")}
        own.parent.rmdir()
    result = audited(folder)
    assert result.holds
    assert found(result, "weights") == Finding("weights", Outcome.NOT_CHECKED, f"{own} is not here, nor is its folder")
    edit(folder / "metrics.json", "cross_domain", True)
    assert list(faults(audited(folder))) == ["metrics.json: identity"]


@pytest.fixture
def got(manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A colleague's study, whose records name its files by paths relative to where it was made."""
    (here / "theirs").mkdir()
    monkeypatch.chdir(here / "theirs")
    config = tiny_config(manifests, epochs=1, **SMALL)
    train(config)
    evaluate(config)
    (here / "mine").mkdir()
    monkeypatch.chdir(here / "mine")
    (here / "theirs").rename(here / "mine" / "got")
    return Path("got")


@pytest.mark.promise("files-of-ones-own")
def test_files_of_the_same_name_in_ones_own_working_directory_are_not_taken_for_a_colleagues(got: Path) -> None:
    (evaluation,) = (got / "eval_logs").iterdir()
    (training,) = (path for path in (got / "train_logs").iterdir() if path.is_dir())
    assert audited(evaluation).holds and audited(training).holds
    # One's own run of that name is under way, and has another model.
    shutil.copytree(training, Path("train_logs") / training.name)
    (Path("train_logs") / training.name / "result.json").unlink()
    (theirs,) = (path for path in (got / "saved_models").glob("*.pth") if not path.stem.endswith("_last"))
    other = Checkpoint.load(theirs)
    other = replace(other, model_state={name: value + 1 for name, value in other.model_state.items()})
    Path("saved_models").mkdir()
    other.save(Path("saved_models") / theirs.name)
    assert audited(evaluation).holds and audited(training).holds
    shutil.rmtree(got / "saved_models")
    for folder in (evaluation, training):
        result = audited(folder)
        assert result.holds
        assert found(result, "checkpoint").outcome is Outcome.NOT_CHECKED


@pytest.mark.promise("files-of-ones-own")
def test_a_manifest_of_ones_own_is_not_taken_for_a_colleagues(
    hands: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "theirs").mkdir()
    monkeypatch.chdir(here / "theirs")
    prepare("11k", hands, Path("splits"))
    folder = train(tiny_config(Path("splits"), epochs=1)).folder
    assert audited(folder).holds
    monkeypatch.chdir(here)
    prepare("11k", hands, here / "splits", seed=7)
    assert audited(here / "theirs" / folder).holds
    shutil.rmtree(here / "theirs" / "splits")
    result = audited(here / "theirs" / folder)
    assert result.holds
    assert found(result, "manifests").outcome is Outcome.NOT_CHECKED


def test_manifests_of_first_use_are_found_in_the_cache(hands: Path, here: Path) -> None:
    shutil.copytree(hands, here / "datasets" / "11k")
    folder = train(tiny_config(here, manifest=None, epochs=1)).folder
    (kept,) = (cache_folder() / "manifests").glob("11k_*")
    assert f"Manifest of dorsal_r: {kept / 'manifest_dorsal_r.json'}, of " in (folder / "train.log").read_text()
    result = audited(folder)
    assert result.holds
    assert found(result, "result.json: manifest_sha256").outcome is Outcome.MATCHES
    # Others that were made since do not hide them.
    prepare("11k", here / "datasets" / "11k", here / "datasets" / "11k" / "manifests", seed=7)
    assert found(audited(folder), "result.json: manifest_sha256").outcome is Outcome.MATCHES
    shutil.rmtree(cache_folder() / "manifests")
    assert list(faults(audited(folder))) == ["result.json: manifest_sha256"]
    shutil.rmtree(here / "datasets" / "11k" / "manifests")
    result = audited(folder)
    assert result.holds
    sentence = "that of datasets/11k is not there; its evaluation keeps a copy of the manifest"
    assert found(result, "manifests") == Finding("manifests", Outcome.NOT_CHECKED, sentence)


@pytest.mark.promise("files-of-ones-own")
def test_whether_a_colleagues_training_had_ended_is_told_by_its_own_records(got: Path) -> None:
    (evaluation,) = (got / "eval_logs").iterdir()
    (result,) = (got / "train_logs").glob("*/result.json")
    result.unlink()
    assert list(faults(audited(evaluation))) == ["metrics.json: training_ended"]

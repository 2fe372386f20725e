"""What is learned, or searched among, under two names: refused before hours are spent on it, or counted and said."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_study import baseline_config, load_manifest, tiny_config

from handclip.audit import Outcome, audit
from handclip.checksums import read_checksums, write_checksums
from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.errors import DataError
from handclip.files import cache_folder
from handclip.models.checkpoint import Checkpoint
from handclip.report.comparison import compare_runs
from handclip.report.evaluation_log import evaluation_text
from handclip.report.matrix_text import legend
from handclip.runs.data import warn_of_known_names
from handclip.runs.evaluate import evaluate
from handclip.runs.result import TrainingResult
from handclip.runs.run_folder import RunFolder
from handclip.runs.train import train


@pytest.fixture
def copying(hands: Path, here: Path) -> Callable[..., Path]:
    """Put one photograph in place of another, in a copy of the hands, and prepare them; return the manifests."""

    def copied(*pairs: tuple[str, str], seed: int = 0) -> Path:
        root = here / "hands"
        shutil.copytree(hands, root)
        for source, path in pairs:
            shutil.copy(root / source, root / path)
        return prepare("11k", root, here / "copied", seed=seed).folder

    return copied


def of(manifest: Manifest, index: int) -> str:
    return manifest.images[index].path


@pytest.mark.promise("copies-in-training")
@pytest.mark.parametrize("split", ["train", "val"])
def test_training_on_a_photograph_that_is_tested_on_is_refused_at_its_start(
    split: str, manifests: Path, copying: Callable[..., Path], here: Path
) -> None:
    manifest = load_manifest(manifests)
    learned, tested = of(manifest, getattr(manifest, split)[0]), of(manifest, manifest.test[4])
    folder = copying((learned, tested))
    with pytest.raises(DataError) as caught:
        train(tiny_config(folder))
    assert str(caught.value).startswith(
        f"{here / 'hands'}: test has 1 image of which train and val hold the very same photograph "
        f"(such as {tested} and {learned}): whoever is recognised on them was learned by heart. If HandInfo.csv gives"
    )
    assert sorted(path.name for path in here.iterdir()) == ["copied", "hands"]
    # What the error says to do helps.
    (here / "hands" / tested).unlink()
    prepare("11k", here / "hands", here / "anew", allow_missing=True)
    assert train(tiny_config(here / "anew", epochs=1)).finished


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


@pytest.mark.promise("copies-evaluated")
def test_who_has_not_learned_a_photograph_is_tested_on_it_with_a_warning(
    manifests: Path, copying: Callable[..., Path], here: Path, stage1: TrainingResult, caplog: pytest.LogCaptureFixture
) -> None:
    """The model was trained on no image of val, as a baseline was on none at all."""
    manifest = load_manifest(manifests)
    learned, tested = of(manifest, manifest.val[0]), of(manifest, manifest.test[4])
    folder = copying((learned, tested))
    small = {"num_splits": 1, "explained_images": 0}
    for config in (
        baseline_config(folder, **small),
        tiny_config(folder, **small, checkpoint=str(stage1.checkpoint)),
    ):
        caplog.clear()
        result = evaluate(config)
        assert warnings(caplog) == [
            f"{here / 'hands'}: test has 1 image of which train and val hold the very same photograph (such as "
            f"{tested} and {learned}). The model that is evaluated was trained on none of them; `handclip train` "
            "refuses to train on this split"
        ]
        assert audit([result.folder])[0].holds


@pytest.mark.promise("copies-evaluated")
def test_a_model_that_has_learned_a_photograph_is_not_tested_on_a_copy(
    manifests: Path, copying: Callable[..., Path], stage1: TrainingResult
) -> None:
    manifest = load_manifest(manifests)
    folder = copying((of(manifest, manifest.train[0]), of(manifest, manifest.test[4])))
    with pytest.raises(DataError, match="was trained on 1 images that this manifest tests on"):
        evaluate(tiny_config(folder, checkpoint=str(stage1.checkpoint)))


@pytest.mark.promise("copies-in-training")
def test_what_is_prepared_on_first_use_tells_of_copies_once(
    manifests: Path, copying: Callable[..., Path], here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = load_manifest(manifests)
    copying((of(manifest, manifest.train[0]), of(manifest, manifest.test[4])))
    caplog.clear()
    unprepared = {"manifest": None, "data_root": str(here / "hands")}
    with pytest.raises(DataError, match="test has 1 image of which"):
        train(tiny_config(here, **unprepared))
    assert "very same photograph" not in caplog.text
    shutil.rmtree(cache_folder() / "manifests")
    evaluate(baseline_config(here, **unprepared, num_splits=1, explained_images=0))
    assert caplog.text.count("test has 1 image of which") == 1


@pytest.mark.promise("copies-in-training")
def test_training_on_one_aspect_what_another_is_tested_on_is_refused_too(
    manifests: Path, copying: Callable[..., Path]
) -> None:
    learned = of(load_manifest(manifests), load_manifest(manifests).train[0])
    tested = of(load_manifest(manifests, "palmar_l"), load_manifest(manifests, "palmar_l").test[0])
    folder = copying((learned, tested))
    with pytest.raises(DataError, match=rf"such as {tested} and {learned}\)"):
        train(tiny_config(folder, aspect="all"))


@pytest.mark.promise("copies-in-validation")
def test_a_best_epoch_that_is_chosen_on_copies_of_training_images_is_said(
    manifests: Path, copying: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = load_manifest(manifests)
    folder = copying(*((of(manifest, manifest.train[2 * n]), of(manifest, manifest.val[n])) for n in (0, 1)))
    config = tiny_config(folder, epochs=1)
    train(config)
    warning = "The training images hold the very same photograph as 2 of 6 validation images"
    assert warning in (RunFolder.of(config).folder / "train.log").read_text()
    # A stage that goes on from it is told the same, and not that it has another split.
    caplog.clear()
    train(tiny_config(folder, epochs=1, experiment="stage2", resume_from=str(RunFolder.of(config).best)))
    assert warning in caplog.text
    caplog.clear()
    train(tiny_config(folder, epochs=1, experiment="all", train_split="train_all"))
    assert "very same photograph" not in caplog.text


@pytest.mark.promise("copies-in-draws")
def test_queries_whose_gallery_holds_the_very_same_photograph_are_counted_and_said(
    manifests: Path, copying: Callable[..., Path]
) -> None:
    manifest = load_manifest(manifests)
    person = [i for i in manifest.test if manifest.images[i].identity == manifest.images[manifest.test[0]].identity]
    stranger = next(index for index in manifest.distractors)
    folder = copying(
        *((of(manifest, person[0]), of(manifest, index)) for index in person[1:]),
        (of(manifest, manifest.test[-1]), of(manifest, stranger)),
    )
    manifest = load_manifest(folder)
    result = evaluate(baseline_config(folder, explained_images=0))
    counts = {}
    for protocol in ("gallery", "gallery_all"):
        counts[protocol] = sum(
            any(manifest.path_of(query).read_bytes() == manifest.path_of(one).read_bytes() for one in found)
            for draw in manifest.draws[:3]
            for query, found in ((query, getattr(draw, protocol)) for query in draw.query)
        )
    assert counts["gallery_all"] >= counts["gallery"] == 3 * 2
    metrics = json.loads((result.folder / "metrics.json").read_text())
    for entry in metrics["results"]:
        assert entry["copied_queries"] == counts[entry["gallery_protocol"]]
    said = "Copies: in 6 of 36 queries the gallery holds the very same photograph"
    assert said in evaluation_text(metrics)
    assert f"Copies: in {counts['gallery_all']} of 36 queries gallery_all holds the very" in evaluation_text(metrics)
    block = compare_runs([result.folder]).blocks[0]
    assert any(
        "Queries of all draws of which the gallery holds the very same photograph" in one for one in legend(block)
    )

    assert audit([result.folder])[0].holds
    _edit(result.folder, lambda entry: entry.update(copied_queries=0))
    found = {one.what: one.found for one in audit([result.folder])[0].findings if one.outcome is Outcome.DIFFERS}
    assert "copied_queries: 0 is recorded, recomputed 6" in found["metrics.json: gallery, flip none"]


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    for entry in metrics["results"]:
        change(entry)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_checksums(folder, list(read_checksums(folder) or {}))


@pytest.fixture
def other_seed(hands: Path, tmp_path: Path) -> Path:
    """Manifests of the same hands with other validation images."""
    return prepare("11k", hands, tmp_path / "other_seed", seed=1).folder


@pytest.mark.promise("validation-seen-before")
def test_a_stage_is_not_validated_on_what_an_earlier_one_was_trained_on(
    manifests: Path, other_seed: Path, here: Path, stage1: TrainingResult
) -> None:
    first, second = load_manifest(manifests), load_manifest(other_seed)
    trained = {first.images[index].sha256 for index in first.train}
    learned = [second.path_of(index) for index in second.val if second.images[index].sha256 in trained]
    assert learned
    stage2 = tiny_config(other_seed, resume_from=str(stage1.checkpoint), epochs=1)
    with pytest.raises(DataError) as caught:
        train(stage2)
    assert str(caught.value).startswith(
        f"resume_from: {stage1.checkpoint}: was trained on {len(learned)} of the 6 images that this run is validated "
        f"on (such as {learned[0]}), so the best epoch would be chosen on what was learned by heart. Take an earlier "
        "stage that was trained with this manifest and train_split: train, or train this one with"
    )
    assert not (here / "train_logs").exists()
    assert train(stage2.model_copy(update={"train_split": "train_all"})).finished


@pytest.mark.promise("validation-seen-before")
def test_what_the_first_stage_was_trained_on_is_known_two_stages_later(
    manifests: Path, other_seed: Path, here: Path, stage1: TrainingResult
) -> None:
    """The stage in between has images of its own, so it alone would be no obstacle."""
    first, last = load_manifest(manifests), load_manifest(other_seed)
    trained = {first.images[index].sha256 for index in first.train}
    validated = {last.images[index].sha256 for index in last.val}
    own = tuple(index for index in first.train_all if first.images[index].sha256 not in validated)
    replace(first, train=own, val=()).save(here / "between.json")
    between = train(
        tiny_config(
            here / "between.json", experiment="between", resume_from=str(stage1.checkpoint), epochs=1,
            train_split="train_all",
        )
    )  # fmt: skip
    with pytest.raises(DataError, match=rf"was trained on {len(trained & validated)} of the 6 images that this run is"):
        train(tiny_config(other_seed, experiment="last", resume_from=str(between.checkpoint)))


def people(root: Path, names: list[str], luck: int) -> Path:
    random = np.random.default_rng(luck)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def names(manifest: Manifest, indices: tuple[int, ...]) -> set[str]:
    return {manifest.identity_names[identity] for identity in manifest.identities(indices)}


@pytest.mark.promise("same-names")
def test_test_identities_with_names_that_were_trained_on_are_counted(
    manifests: Path, here: Path, stage1: TrainingResult, caplog: pytest.LogCaptureFixture
) -> None:
    mine = prepare("folder", people(here / "mine", list("abcdefgh"), 0), here / "mine_m").manifests["hand"]
    other = prepare("folder", people(here / "other", list("abcdefgh"), 1), here / "other_m", seed=5).manifests["hand"]

    def config(which: str, **changes: Any) -> ExperimentConfig:
        of_folder = {"dataset": "folder", "aspect": "hand", "manifest": str(here / f"{which}_m")}
        places = {"data_root": str(here / which), "explained_images": 0, "num_splits": 1, "epochs": 1}
        return tiny_config(here, **of_folder, **places, **changes)

    trained = train(config("mine"))
    assert "was trained on the names" not in caplog.text
    known = sorted(names(mine, mine.train) & names(other, other.test))
    assert 0 < len(known) < 4
    warning = (
        f"{trained.run} was trained on the names of {len(known)} of 4 test identities (such as {known[0]}). "
        "If they are the same people, it has learned what it is tested on"
    )
    caplog.set_level(logging.WARNING, "handclip")
    evaluate(config("mine"))
    assert "was trained on the names" not in caplog.text
    evaluate(config("other", checkpoint=str(trained.checkpoint)))
    assert warning in caplog.text
    caplog.clear()
    train(config("other", experiment="stage2", resume_from=str(trained.checkpoint)))
    assert warning in caplog.text
    caplog.clear()
    # The same number is another person in another data set.
    model, hands = Checkpoint.load(trained.checkpoint), load_manifest(manifests)
    numbers = [f"hand/{name}" for name in names(hands, hands.test)]
    warn_of_known_names(replace(model, identities=numbers), {"dorsal_r": hands})
    elsewhere = Checkpoint.load(stage1.checkpoint)
    warn_of_known_names(replace(elsewhere, identities=[f"dorsal_r/{name}" for name in "abcdefgh"]), {"hand": other})
    assert "was trained on the names" not in caplog.text

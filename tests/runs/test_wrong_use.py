"""What does not belong together is refused, and the error says what."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_study import baseline_config, load_manifest, tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.errors import CheckpointError, ConfigError, DataError, HandCLIPError
from handclip.models.builder import model_from_checkpoint
from handclip.models.checkpoint import Checkpoint
from handclip.parallel.launching import launched
from handclip.runs.evaluate import evaluate
from handclip.runs.result import TrainingResult
from handclip.runs.train import train


def of_stage1(manifests: Path, checkpoint: Path, **changes: Any) -> ExperimentConfig:
    return tiny_config(
        manifests, experiment="stage1", checkpoint=str(checkpoint), num_splits=1, explained_images=0, **changes
    )


@pytest.mark.promise("wrong-use")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "rn_small"}, "was trained with model: vit_small, but the config says model: rn_small"),
        ({"input_size": 64}, r"was trained with input_size: \[32, 32\], but the config says input_size: 64"),
        ({"quick_gelu": True}, "was trained with quick_gelu: false, but the config says quick_gelu: true"),
        ({"embedding": "both"}, "was trained with embedding: projected, but the config says embedding: both"),
        ({"input_mean": [0.5, 0.5, 0.5]}, r"was trained with input_mean: \[0\.48145466, .*config says input_mean"),
        ({"input_std": [0.5, 0.5, 0.5]}, r"was trained with input_std: \[0\.26862954, .*config says input_std"),
        ({"interpolation": "bilinear"}, "was trained with interpolation: bicubic, but the config says interpol"),
        ({"resize_mode": "longest"}, "was trained with resize_mode: squash, but the config says resize_mode: longest"),
        ({"neck": "bnneck"}, "was trained with neck: none, but the config says neck: bnneck"),
    ],
)
@pytest.mark.parametrize("use", ["evaluate", "resume_from"])
def test_another_model_size_or_preprocessing_than_trained_is_refused(
    changes: dict[str, Any], sentence: str, use: str, manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    if use == "evaluate":
        with pytest.raises(CheckpointError, match=sentence):
            evaluate(of_stage1(manifests, stage1.checkpoint, **changes))
    elif "neck" not in changes:  # which a later stage may add
        with pytest.raises(CheckpointError, match=f"^resume_from: .*{sentence}"):
            train(tiny_config(manifests, resume_from=str(stage1.checkpoint), **changes))


@pytest.mark.promise("wrong-use")
@pytest.mark.parametrize("name", ["vit_small", "resnet_small"])
def test_the_preprocessing_is_that_of_the_checkpoint(
    name: str, manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    path = stage1.checkpoint
    if name != "vit_small":
        path = train(tiny_config(manifests, model=name, epochs=1, num_splits=1, explained_images=0)).checkpoint
    checkpoint = Checkpoint.load(path)
    changed = {"mean": [0.5, 0.5, 0.5], "std": [1.0, 0.5, 1.0], "interpolation": "bilinear", "resize_mode": "longest"}
    other = {**checkpoint.preprocessing, **changed}
    model = model_from_checkpoint(replace(checkpoint, preprocessing=other), "m.pth")
    assert model.encoder.preprocessing.to_dict() == other


def test_a_baseline_is_not_trained_nor_its_run_resumed(manifests: Path, here: Path) -> None:
    for resume in (False, True):
        with pytest.raises(ConfigError, match="baseline trains nothing; use `handclip evaluate`"):
            train(baseline_config(manifests), resume=resume)


def _train_on_a_test_person(manifest: Manifest) -> Manifest:
    # The person's other images are still tested on.
    moved = manifest.draws[0].query[0]
    test = tuple(index for index in manifest.test if index != moved)
    draws = tuple(
        replace(draw, query=tuple(index for index in draw.query if index != moved)) for draw in manifest.draws[:1]
    )
    return replace(manifest, train=tuple(sorted([*manifest.train, moved])), test=test, draws=draws)


def _validate_on_a_test_image(manifest: Manifest) -> Manifest:
    return replace(manifest, val=tuple(sorted([*manifest.val, manifest.test[0]])))


def _select_on_training_images(manifest: Manifest) -> Manifest:
    return replace(manifest, val=manifest.train[:3])


def _find_queries_themselves(manifest: Manifest) -> Manifest:
    first = manifest.draws[0]
    return replace(manifest, draws=(replace(first, gallery=tuple(sorted({*first.gallery, first.query[0]}))),))


def _search_among_training_images(manifest: Manifest) -> Manifest:
    first = manifest.draws[0]
    return replace(manifest, draws=(replace(first, gallery_all=(*first.gallery_all, manifest.train[0])),))


@pytest.mark.promise("leaks")
@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (_train_on_a_test_person, "train and test share 1 identities"),
        (_validate_on_a_test_image, "test shares 1 images"),
        (_select_on_training_images, "train and val share 3 images"),
        (_find_queries_themselves, "draw 0: query and gallery share 1 images"),
        (_search_among_training_images, "draw 0: the galleries hold 1 images .* of train and val"),
    ],
)
def test_a_manifest_that_mixes_what_must_be_apart_is_refused(
    edit: Callable[[Manifest], Manifest], sentence: str, manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    edit(load_manifest(manifests)).save(here / "edited.json")
    for use in (
        lambda: train(tiny_config(here / "edited.json")),
        lambda: evaluate(baseline_config(here / "edited.json")),
    ):
        with pytest.raises(DataError, match=f"breaks the protocol, and what is measured .*{sentence}"):
            use()
    assert sorted(path.name for path in here.iterdir()) == ["edited.json"]


@pytest.fixture
def other_seed(hands: Path, tmp_path: Path) -> Path:
    """Manifests of the same hands, split by another seed."""
    prepare("11k", hands, tmp_path / "other_seed", seed=1)
    return tmp_path / "other_seed"


@pytest.mark.promise("other-seed")
def test_a_run_does_not_go_on_with_a_manifest_of_another_seed(manifests: Path, other_seed: Path, here: Path) -> None:
    load_manifest(manifests).save(here / "manifest.json")
    config = tiny_config(here / "manifest.json")
    train(config, stop_after=1)
    load_manifest(other_seed).save(here / "manifest.json")
    before, now = load_manifest(manifests).sha256[:12], load_manifest(other_seed).sha256[:12]
    with pytest.raises(DataError, match=f"was started with manifest {before}, and cannot go on with {now}"):
        train(config, resume=True)


@pytest.mark.promise("other-seed")
def test_an_evaluation_is_not_replaced_by_one_on_a_manifest_of_another_seed(
    manifests: Path, other_seed: Path, here: Path
) -> None:
    load_manifest(manifests).save(here / "manifest.json")
    config = baseline_config(here / "manifest.json", num_splits=1, explained_images=0)
    evaluate(config)
    load_manifest(other_seed).save(here / "manifest.json")
    before, now = load_manifest(manifests).sha256, load_manifest(other_seed).sha256
    with pytest.raises(HandCLIPError, match=f"holds an evaluation with manifest_sha256: {before}, not {now}"):
        evaluate(config)


def test_an_evaluation_on_a_manifest_of_another_seed_has_a_name_of_its_own(
    manifests: Path, other_seed: Path, here: Path, stage1: TrainingResult
) -> None:
    result = evaluate(of_stage1(other_seed, stage1.checkpoint))
    assert result.run == f"{stage1.run}_on_11k_dorsal_r_{load_manifest(other_seed).sha256[:8]}"
    assert result.metrics["cross_domain"] is True


SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [*((SRUN, name) for name in SRUN), *((TORCHRUN, name) for name in TORCHRUN if name != "TORCHELASTIC_RUN_ID")],
)
@pytest.mark.parametrize(("value", "sentence"), [("two", "is 'two', which is no number"), (None, "is not set")])
def test_a_launcher_s_variable_that_is_no_number_is_named(
    variables: dict[str, str], name: str, value: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in (*SRUN, *TORCHRUN):
        monkeypatch.delenv(known, raising=False)
    for other, number in variables.items():
        monkeypatch.setenv(other, number)
    if value is None:
        if name == "SLURM_STEP_NUM_TASKS":  # which says that srun has started it
            return
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}: the environment variable {sentence}"):
        launched()

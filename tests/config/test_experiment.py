from pathlib import Path
from typing import Any

import pytest

from handclip.config.experiment import COMPUTED_KEYS, HAND_ASPECTS, RUNTIME_KEYS, EvaluationConfig, ExperimentConfig
from handclip.config.loading import parse_config
from handclip.errors import ConfigError

BASE = {"experiment": "a", "model": "vitb16", "dataset": "11k"}
TRIPLET = [{"type": "triplet"}]


def make(**values: Any) -> ExperimentConfig:
    return parse_config({**BASE, **values}, "test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aspect": "dorsal"}, "aspect: 11k has the aspects dorsal_r, dorsal_l, palmar_r, palmar_l and all. Did you"),
        ({"dataset": "11kk"}, "dataset: input should be '11k', 'hd', 'synthetic' or 'folder' (got '11kk'). Did you"),
        ({"dataset": "hd", "aspect": "hand"}, "aspect: hd has the aspect dorsal only"),
        ({"dataset": "hd", "aspect": "dorsl"}, "aspect: input should be"),
        ({"dataset": "folder"}, "data_root: a folder data set needs the path"),
        ({"variant": "baseline", "epochs": 3}, "epochs: has no effect with variant: baseline"),
        ({"variant": "baseline", "resume_from": "a.pth"}, "resume_from: has no effect with variant: baseline"),
        ({"losses": TRIPLET, "batch_size": 10}, "batch_size: 10 is not a multiple of images_per_identity (4)"),
        ({"losses": TRIPLET, "batch_size": 4}, "batch_size: 4 holds one identity only"),
        ({"sampler": "pk", "images_per_identity": 5}, "batch_size: 32 is not a multiple"),
        ({"losses": TRIPLET, "sampler": "random"}, "sampler: random gives triplet no positives"),
        ({"gamma": 0.5}, "gamma: is read only with schedule: step"),
        ({"milestones": [3], "schedule": "constant"}, "milestones: is read only with schedule: step"),
        ({"milestones": [3, 3], "schedule": "step"}, "milestones: must rise"),
        ({"epochs": 5, "warmup_epochs": 3}, "warmup_epochs: 3 is more than half of the 5 epochs"),
        ({"train_split": "train_all", "early_stopping_patience": 3}, "early_stopping_patience: train_split: train_all"),
        ({"test_feature": "before_neck"}, "test_feature: is read only with a neck: bnneck or hidden"),
        ({"neck": "bnneck", "losses": TRIPLET}, "neck: it feeds classifiers"),
        ({"model": "../vitb16"}, "model: should be the name of a model"),
        ({"experiment": "../../a"}, "experiment: should be letters"),
    ],
)
def test_a_contradiction_is_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**values)
    assert f"test: {message}" in str(caught.value)


def test_a_data_set_of_one_aspect_names_it() -> None:
    assert make(dataset="hd").aspect == "dorsal"
    assert make(dataset="HD", aspect="dorsal").aspect == "dorsal"
    assert make(dataset="folder", data_root="x").aspects == ("hand",)
    assert make(aspect="all").aspects == HAND_ASPECTS


def test_placeholders_are_filled_in_every_path() -> None:
    keys = ("data_root", "manifest", "resume_from", "checkpoint", "output_dir", "save_dir", "eval_dir")
    config = make(aspect="palmar_l", **{key: f"{key}/{{model}}/{{dataset}}_{{aspect}}.x" for key in keys})
    for key in keys:
        assert getattr(config, key) == Path(key) / "vitb16" / "11k_palmar_l.x"
    assert make(dataset="HD", manifest="{dataset}_{aspect}").manifest == Path("hd_dorsal")


def test_d22_a_loss_that_needs_positives_gets_them() -> None:
    for losses, expected in ((["cross_entropy"], False), (["triplet"], True), (["center"], False), (["supcon"], True)):
        assert make(losses=[{"type": loss} for loss in losses]).uses_pk_sampling is expected
    assert make(sampler="pk").uses_pk_sampling
    assert not make(sampler="random").uses_pk_sampling


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make().epochs = 3  # type: ignore[misc]


def test_each_key_says_what_is_computed_or_how_it_is_evaluated_or_where() -> None:
    everything = [*RUNTIME_KEYS, *COMPUTED_KEYS, *EvaluationConfig.model_fields]
    assert sorted(everything) == sorted(ExperimentConfig.model_fields)

from pathlib import Path
from typing import Any

import pytest

from handclip.config.experiment import COMPUTED_KEYS, HAND_ASPECTS, RUNTIME_KEYS, EvaluationConfig, ExperimentConfig
from handclip.config.loading import parse_config

BASE = {"experiment": "a", "model": "vitb16", "dataset": "11k"}
TRIPLET = [{"type": "triplet"}]


def make(**values: Any) -> ExperimentConfig:
    return parse_config({**BASE, **values}, "test")


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

"""Every experiment file that is shipped runs, in the order of the stages, on a model small enough for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handclip.config.loading import load_config
from handclip.config.naming import run_name

REPOSITORY = Path(__file__).parents[2]
SMALL = {"input_size": 32, "num_workers": 0, "device": "cpu", "num_splits": 2}
SHORT = {"epochs": 1, "batch_size": 8, "images_per_identity": 2, "warmup_epochs": 0, "precision": "float32"}
SMALLER = {"vitb16": "vit_small", "rn50": "rn_small"}

Handclip = Callable[..., Any]


def shipped(folder: str) -> list[Path]:
    return sorted((REPOSITORY / "configs" / folder).glob("*.yml"))


def settings(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("model", ["vitb16", "rn50"])
def test_d19_every_config_runs_from_stage_0_to_stage_2(
    model: str, handclip: Handclip, manifests: Path, here: Path
) -> None:
    small = {**SMALL, "model": SMALLER[model], "manifest": manifests}
    [baseline] = [path for path in shipped("eval_stage0_baseline") if model in path.name]
    assert handclip("evaluate", baseline, *settings(**small, pretrained="none")).code == 0

    [stage1] = [path for path in shipped("train_stage1_frozen_text") if model in path.name]
    answer = handclip("train", stage1, *settings(**small, **SHORT, pretrained="none"))
    assert answer.code == 0, answer.err
    [checkpoint] = [path for path in here.glob("saved_models/*.pth") if not path.stem.endswith("_last")]

    variants = [path for path in shipped("train_stage2_loss_variants") if model in path.name]
    assert [path.stem.split("dorsal_r_")[1] for path in variants] == [
        "ce", "ce_arcface", "ce_center", "ce_triplet", "ce_triplet_center",
    ]  # fmt: skip
    for path in variants:
        changes = settings(**small, **SHORT, resume_from=checkpoint)
        answer = handclip("train", path, *changes)
        assert answer.code == 0, answer.err
        assert handclip("evaluate", path, *changes).code == 0
    assert len(list((here / "eval_logs").iterdir())) == 1 + len(variants)


@pytest.mark.parametrize("aspect", ["dorsal_r", "palmar_l"])
@pytest.mark.parametrize("path", shipped("train_stage2_loss_variants"), ids=lambda path: path.stem)
def test_stage_2_starts_where_stage_1_of_the_same_aspect_is_saved(path: Path, aspect: str) -> None:
    config = load_config(path, [f"aspect={aspect}"])
    stage1 = load_config(
        REPOSITORY / "configs" / "train_stage1_frozen_text" / f"train_{config.model}_11k_dorsal_r.yml",
        [f"aspect={aspect}"],
    )
    assert config.resume_from == stage1.save_dir / f"{run_name(stage1)}.pth"

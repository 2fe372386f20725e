"""Every experiment file that is shipped runs, in the order of the stages, on a model small enough for a test."""

from pathlib import Path

import pytest
from command_line import Handclip, changes

from handclip.config.loading import load_config, parse_config
from handclip.config.naming import run_name
from handclip.models.builder import build_model

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"input_size": 32, "num_workers": 0, "device": "cpu", "num_splits": 2}
SHORT = {"epochs": 1, "batch_size": 8, "images_per_identity": 2, "warmup_epochs": 0, "precision": "float32"}
SMALLER = {"vitb16": "vit_small", "rn50": "rn_small", "mbanet": "mbanet_small", "resnet50": "resnet_small"}
CLIP, CNN = ["vitb16", "rn50"], ["mbanet", "resnet50"]
LOSSES = ["ce", "ce_arcface", "ce_center", "ce_triplet", "ce_triplet_center"]


def baseline_of(model: str) -> Path:
    return CONFIGS / "eval_stage0_baseline" / f"eval_{model}_11k_dorsal_r.yml"


def stage1_of(model: str) -> Path:
    folder = "train_stage1_frozen_text" if model in CLIP else "train_mbanet"
    return CONFIGS / folder / f"train_{model}_11k_dorsal_r.yml"


def stage2_of(model: str) -> list[Path]:
    folder = "train_stage2_loss_variants" if model in CLIP else "train_mbanet"
    return [CONFIGS / folder / f"train_{model}_11k_dorsal_r_{losses}.yml" for losses in LOSSES]


RECIPES = [
    *sorted((CONFIGS / "train_clip_handid").glob("*.yml")),
    CONFIGS / "train_mbanet" / "train_mbanet_11k_dorsal_r_own_recipe.yml",
]


def test_every_experiment_file_is_tried_here() -> None:
    tried = {*RECIPES}
    for model in SMALLER:
        tried |= {baseline_of(model), stage1_of(model), *stage2_of(model)}
    assert tried == {path for path in CONFIGS.rglob("*.yml") if path.parent.name != "studies"}


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALLER)
def test_d19_every_config_runs_from_stage_0_to_stage_2(
    model: str, handclip: Handclip, manifests: Path, here: Path
) -> None:
    small = {**SMALL, "model": SMALLER[model], "manifest": manifests}
    handclip.ok("evaluate", baseline_of(model), *changes(**small, pretrained="none"))

    handclip.ok("train", stage1_of(model), *changes(**small, **SHORT, pretrained="none"))
    [checkpoint] = [path for path in here.glob("saved_models/*.pth") if not path.stem.endswith("_last")]

    for path in stage2_of(model):
        options = changes(**small, **SHORT, resume_from=checkpoint)
        handclip.ok("train", path, *options)
        handclip.ok("evaluate", path, *options)
    assert len(list((here / "eval_logs").iterdir())) == 1 + len(LOSSES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_d19_the_recipes_of_others_run(path: Path, handclip: Handclip, manifests: Path, here: Path) -> None:
    model = SMALLER[load_config(path).model]
    options = changes(**SMALL, **SHORT, model=model, manifest=manifests, pretrained="none")
    handclip.ok("train", path, *options)
    handclip.ok("evaluate", path, *options)


@pytest.mark.parametrize("aspect", ["dorsal_r", "palmar_l"])
@pytest.mark.parametrize("model", SMALLER)
def test_stage_2_starts_where_stage_1_of_the_same_aspect_is_saved(model: str, aspect: str) -> None:
    stage1 = load_config(stage1_of(model), [f"aspect={aspect}"])
    for path in stage2_of(model):
        assert load_config(path, [f"aspect={aspect}"]).resume_from == stage1.save_dir / f"{run_name(stage1)}.pth"


@pytest.mark.parametrize("model", CNN)
def test_the_peers_train_on_clips_terms(model: str) -> None:
    """But for names, only the network, its weights and its neck may differ; the photographs' size may not."""
    own = {"experiment", "model", "pretrained", "input_size", "neck", "resume_from"}
    sizes = set()
    for peer, clip in zip(
        [stage1_of(model), *stage2_of(model)], [stage1_of("vitb16"), *stage2_of("vitb16")], strict=True
    ):
        ours, theirs = load_config(peer).to_dict(), load_config(clip).to_dict()
        assert {key for key in ours if ours[key] != theirs[key]} <= own
        # The one exception, which a comparison of these files has to name.
        assert (theirs["neck"], ours["neck"]) == ("none", {"mbanet": "hidden", "resnet50": "bnneck"}[model])
        sizes |= {(ours["model"], ours["input_size"]), (theirs["model"], theirs["input_size"])}
    pixels = {input_size_of(name, size) for name, size in sizes}
    assert pixels == {(224, 224)}


def input_size_of(model: str, input_size: int | None) -> tuple[int, int]:
    """Height and width of the images that a model of an experiment file sees."""
    values = {"experiment": "a", "model": model, "pretrained": "none", "dataset": "11k", "input_size": input_size}
    size = build_model(parse_config(values, "test")).encoder.preprocessing
    return size.height, size.width

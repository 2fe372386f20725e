from pathlib import Path
from typing import Any

import pytest
import torch

from handclip.config.loading import parse_config
from handclip.errors import CheckpointError, ConfigError
from handclip.models.builder import build_model, model_from_checkpoint
from handclip.models.checkpoint import Checkpoint, describe_model
from handclip.models.registry import FAMILIES, family_of, model_names

BASE = {"experiment": "a", "dataset": "11k", "pretrained": "none", "input_size": 64}
SMALL = ["vit_small", "rn_small", "mbanet_small", "resnet_small"]


def build(**values: Any) -> Any:
    return build_model(parse_config({**BASE, **values}, "test"))


def test_every_name_belongs_to_one_family() -> None:
    names = model_names()
    assert len(names) == len(set(names))
    assert {"vitb16", "rn50", "mbanet", "resnet50", "ViT-B-16", *SMALL} <= set(names)
    assert [family_of(name) for name in ("vitb16", "mbanet", "resnet50")] == list(FAMILIES)


@pytest.mark.parametrize(
    ("model", "pretrained", "is_published"),
    [
        ("vitb16", "openai", True),
        ("vitb16", "tv2_in1k", False),
        ("resnet50", "tv2_in1k", True),
        ("mbanet", "tv2_in1k", True),
        ("mbanet", "openai", False),
        ("resnet50", "weights/own.pth", False),
        ("vitb16", "weights/own.pt", False),
    ],
)
def test_published_weights_are_told_from_files(model: str, pretrained: str, is_published: bool) -> None:
    assert family_of(model).publishes(model, pretrained) == is_published


@pytest.mark.parametrize(
    ("name", "meant"), [("mbanet_smal", "mbanet_small"), ("resnet5", "resnet50"), ("vitb6", "vitb16"), ("MBANet", None)]
)
def test_an_unknown_name_is_compared_with_all(name: str, meant: str | None) -> None:
    with pytest.raises(ConfigError, match=rf"model: there is no model '{name}'\.") as caught:
        build(model=name)
    if meant:
        assert f"Did you mean '{meant}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model": "resnet_small", "quick_gelu": True},
            "quick_gelu: has no effect on resnet_small; only CLIP's models",
        ),
        (
            {"model": "mbanet_small", "embedding": "both"},
            "embedding: has no effect on mbanet_small; only CLIP's models",
        ),
        ({"model": "vit_small", "relative_position": "intended"}, "relative_position: has no effect on vit_small"),
        ({"model": "resnet_small", "relative_position": "intended"}, "only MBA-Nets read it"),
    ],
)
def test_d55_a_key_that_a_model_does_not_read_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**values)
    assert message in str(caught.value)


def checkpoint_of(model: Any, /, **values: Any) -> Checkpoint:
    return Checkpoint(
        run="run",
        epoch=1,
        config=parse_config({**BASE, **values}, "test").to_dict(),
        identities=["a", "b"],
        training_images=[],
        manifest_sha256="0" * 64,
        metrics={},
        model_state=model.state_dict(),
        criterion_state={},
        **describe_model(model),
    )


@pytest.mark.parametrize(
    "values",
    [
        *({"model": name} for name in SMALL),
        {"model": "mbanet_small", "relative_position": "intended", "input_size": (64, 32), "neck": "hidden"},
        {"model": "mbanet_small", "neck": "hidden", "test_feature": "after_neck"},
        {"model": "resnet_small", "neck": "bnneck"},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_d43_every_family_comes_back_from_its_checkpoint(tmp_path: Path, values: dict[str, Any]) -> None:
    model = build(**values)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    checkpoint_of(model, **values).save(tmp_path / "run.pth")
    rebuilt = model_from_checkpoint(Checkpoint.load(tmp_path / "run.pth"), "run.pth")
    size = model.encoder.preprocessing
    images = torch.randn(2, 3, size.height, size.width)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval().embed(images), model.eval().embed(images))
    assert describe_model(rebuilt) == describe_model(model)
    assert rebuilt.test_feature == model.test_feature


@pytest.mark.parametrize("model", ["mbanet_small", "resnet_small"])
def test_d20_stage_2_of_a_cnn_starts_with_the_features_of_stage_1(tmp_path: Path, model: str) -> None:
    values = {"model": model, "neck": "hidden"}
    stage1 = build(**values)
    checkpoint_of(stage1, **values).save(tmp_path / "stage1.pth")
    torch.manual_seed(9)
    stage2 = build_model(
        parse_config({**BASE, **values, "pretrained": "openai", "resume_from": str(tmp_path / "stage1.pth")}, "test")
    )
    for key, value in stage1.state_dict().items():
        assert torch.equal(stage2.state_dict()[key], value), key


def test_the_other_reading_is_another_model(tmp_path: Path) -> None:
    values = {"model": "mbanet_small", "relative_position": "intended"}
    checkpoint_of(build(**values), **values).save(tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match="was trained with relative_position: intended, but the config says"):
        build(model="mbanet_small", resume_from=str(tmp_path / "run.pth"))


def test_a_cnn_has_no_weights_of_openai() -> None:
    with pytest.raises(ConfigError, match="tv2_in1k"):
        build(model="resnet50", pretrained="openai")

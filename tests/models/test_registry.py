from typing import Any

import pytest
import torch

from handclip.config.loading import parse_config
from handclip.errors import ConfigError
from handclip.models.builder import build_model
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
            "quick_gelu: has no effect on resnet_small; only CLIP's",
        ),
        (
            {"model": "mbanet_small", "embedding": "both"},
            "embedding: has no effect on mbanet_small; only CLIP's",
        ),
        ({"model": "vit_small", "relative_position": "intended"}, "relative_position: has no effect on vit_small"),
        ({"model": "resnet_small", "relative_position": "intended"}, "only MBA-Nets read it"),
    ],
)
def test_d55_a_key_that_a_model_does_not_read_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**values)
    assert message in str(caught.value)


def test_the_seed_decides_random_weights() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(build(model="vit_small"))
    states = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])

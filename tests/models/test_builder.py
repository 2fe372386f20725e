from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from handclip.config.loading import parse_config
from handclip.errors import ConfigError
from handclip.models.builder import build_model
from handclip.models.embedding_model import EmbeddingModel

pytestmark = pytest.mark.usefixtures("tiny_models")

BASE = {"experiment": "a", "model": "vit_small", "dataset": "11k", "pretrained": "none"}


def build(**values: Any) -> EmbeddingModel:
    return build_model(parse_config({**BASE, **values}, "test"))


def test_weights_of_a_file_arrive_in_the_model(tmp_path: Path) -> None:
    clip = open_clip.create_model("tiny-vit").eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = build(model="tiny-vit", pretrained=str(tmp_path / "clip.pt")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(images), clip.encode_image(images), rtol=1e-5, atol=1e-5)
    assert model.encoder.facts["weights"] == str(tmp_path / "clip.pt")


def test_the_seed_decides_random_weights() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(build())
    states = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model": "vit_smal"}, ConfigError, "there is no model 'vit_smal'. Did you mean 'vit_small'?"),
        ({"pretrained": "openai"}, ConfigError, "pretrained: 'openai' is neither a file nor a set of weights"),
        ({"input_size": 100}, ConfigError, "input_size: vit_small needs a height that is a multiple of 16"),
        ({"freeze": "all_but_last_9"}, ConfigError, "freeze: all_but_last_9: the encoder has only 7 blocks"),
        ({"resume_from": "no/such.pth"}, ConfigError, r"resume_from: no/such\.pth: no such file"),
    ],
)
def test_what_cannot_be_built_is_explained(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**values)


def test_d23_a_new_model_holds_its_frozen_batch_norm_still() -> None:
    """A trainer keeps the mode it is given, so that the model must come in the right one."""
    model = build(model="rn_small", input_size=64, freeze="all_but_last_1")
    frozen = {
        name: module
        for name, module in model.encoder.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
    }
    before = {name: module.running_mean.clone() for name, module in frozen.items()}
    model(torch.randn(4, 3, 64, 64))
    assert frozen and model.training
    assert all(torch.equal(module.running_mean, before[name]) for name, module in frozen.items())
    assert model.encoder.tower.layer4.training  # type: ignore[union-attr]

"""Computing activations a second time in place of keeping them: equal gradients, and far less that is kept."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from handclip.errors import ConfigError
from handclip.models.clip_encoder import CLIPImageEncoder
from handclip.models.encoder import ImageEncoder
from handclip.models.mbanet import MBANetEncoder
from handclip.models.resnet import ResNetEncoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.usefixtures("tiny_models")


def gradients(encoder: ImageEncoder, images: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    encoder.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        embeddings = encoder(images)
    torch.stack([value.float().square().mean() for value in embeddings.values()]).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit_small", "tiny-vit-quickgelu", "tiny-timm-vit", "tiny-timm-cnn"])
def test_gradients_are_the_same(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder = CLIPImageEncoder(name)
    images = torch.randn(3, 3, encoder.preprocessing.height, encoder.preprocessing.width)
    plain = gradients(encoder, images, dtype)
    encoder.checkpoint_gradients()
    again = gradients(encoder, images, dtype)
    assert plain.keys() == again.keys() == dict(encoder.named_parameters()).keys()
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, msg=key)


def test_a_third_or_less_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    kept_bytes = importlib.import_module("training_memory").kept_bytes
    encoder = CLIPImageEncoder("vit_small")
    images = torch.randn(4, 3, 112, 112)
    before = kept_bytes(encoder, lambda: encoder(images))
    encoder.checkpoint_gradients()
    assert 0 < kept_bytes(encoder, lambda: encoder(images)) < before / 3


@pytest.mark.parametrize("encoder", [CLIPImageEncoder, ResNetEncoder, MBANetEncoder])
def test_batch_norm_is_a_reason_not_to(encoder: type[ImageEncoder]) -> None:
    name = {CLIPImageEncoder: "rn_small", ResNetEncoder: "resnet_small", MBANetEncoder: "mbanet_small"}[encoder]
    with pytest.raises(ConfigError, match=rf"^gradient_checkpointing: {name} has batch norm"):
        encoder(name).checkpoint_gradients()  # type: ignore[call-arg]


def test_a_tower_for_which_timm_has_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CLIPImageEncoder("tiny-timm-vit")

    def refuse(enable: bool = True) -> None:
        assert not enable, "gradient checkpointing not supported"

    monkeypatch.setattr(encoder.tower.trunk, "set_grad_checkpointing", refuse)
    with pytest.raises(ConfigError, match="gradient_checkpointing: timm does not offer it for tiny-timm-vit"):
        encoder.checkpoint_gradients()

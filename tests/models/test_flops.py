"""Floating-point operations against closed forms; a multiplication and an addition are two."""

import pytest
import torch
from torch import Tensor, nn

from handclip.config.loading import parse_config
from handclip.datasets.transforms import Preprocessing
from handclip.models.builder import build_model
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.encoder import ImageEncoder
from handclip.models.flops import count_flops


def tiny(model: str, size: int = 64) -> EmbeddingModel:
    values = {"experiment": "e", "model": model, "pretrained": "none", "dataset": "11k", "input_size": size}
    return build_model(parse_config(values, "test"))


def vit_flops(width: int, layers: int, patch: int, embed_dim: int, size: int) -> int:
    """Patch embedding; per block query, key, value, output, two products of attention, an MLP of four times; head."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return 2 * (patches * 3 * patch**2 * width + layers * block + width * embed_dim)


@pytest.mark.parametrize("size", [64, 128])
def test_a_vit(tiny_models: None, size: int) -> None:
    assert count_flops(tiny("tiny-vit", size)) == vit_flops(64, 3, 16, 32, size)


def test_vitb16_costs_what_is_known_of_it() -> None:
    model = tiny("vitb16", 224)
    assert count_flops(model) == vit_flops(768, 12, 16, 512, 224)
    assert count_flops(model) / 1e9 == pytest.approx(35.13, abs=0.01)


class ConvNet(ImageEncoder):
    """The first layers of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(height=40, width=24)
        self.embedding_dims = {"projected": 8}
        self.facts = {"quick_gelu": None, "weights": "none"}
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(16, 32, 1, bias=False)
        self.head = nn.Linear(32, 8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.stem(images)).relu()
        return {"projected": self.head((self.body(features) + self.skip(features)).mean((2, 3)))}

    def blocks(self) -> list[list[nn.Module | nn.Parameter]]:
        return [[self.stem]]


def test_a_convolutional_network() -> None:
    places = 20 * 12
    expected = 2 * places * (16 * 3 * 7**2 + 32 * 16 * 3**2 + 32 * 16) + 2 * 32 * 8
    assert count_flops(EmbeddingModel(ConvNet())) == expected


@pytest.mark.parametrize(("test_feature", "neck"), [("before_neck", 0), ("after_neck", 2 * 8 * 8)])
def test_a_neck_costs_only_where_its_output_is_compared(test_feature: str, neck: int) -> None:
    bare, model = EmbeddingModel(ConvNet()), EmbeddingModel(ConvNet(), neck="hidden", test_feature=test_feature)
    assert count_flops(model) == count_flops(bare) + neck


def test_counting_leaves_no_trace() -> None:
    model = EmbeddingModel(ConvNet()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count_flops(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path

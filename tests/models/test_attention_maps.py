from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from handclip.errors import HandCLIPError
from handclip.models.attention_maps import attention_maps, attention_weights, grad_cam, rollout
from handclip.models.clip_encoder import CLIPImageEncoder
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.encoder import ImageEncoder
from handclip.models.mbanet import MBANetEncoder
from handclip.models.resnet import ResNetEncoder

SIZE = (64, 32)


def build(name: str) -> EmbeddingModel:
    torch.manual_seed(0)
    encoder: ImageEncoder
    if name == "mbanet_small":
        encoder = MBANetEncoder(name, relative_position="intended", input_size=SIZE)
        for module in (encoder.sam_att3, encoder.sam_att4, encoder.cam_att3, encoder.cam_att4):
            nn.init.constant_(module.gamma, 0.5)
    elif name == "resnet_small":
        encoder = ResNetEncoder(name, input_size=SIZE)
    else:
        encoder = CLIPImageEncoder(name, input_size=None if "timm" in name else SIZE)
    return EmbeddingModel(encoder).eval()


def images(model: EmbeddingModel, count: int = 3) -> Tensor:
    size = model.encoder.preprocessing
    return torch.randn(count, 3, size.height, size.width, generator=torch.Generator().manual_seed(1))


def scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2), keepdim=True)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(arrays(np.float64, (3, 2, 5, 5), elements=st.floats(-8, 8)))
def test_rollout_rows_sum_to_one(logits: np.ndarray) -> None:
    found = rollout([attention.float() for attention in torch.from_numpy(logits).softmax(dim=-1)])
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 5))
    assert (found >= 0).all()


def test_rollout_of_two_blocks_by_hand() -> None:
    first = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    second = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    # (second + I) / 2 times (first + I) / 2
    by_hand = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]) @ torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    torch.testing.assert_close(rollout([first, second]), by_hand)
    skewed = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])
    by_hand = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]) @ torch.tensor([[[0.95, 0.05], [0.3, 0.7]]])
    torch.testing.assert_close(rollout([skewed, second]), by_hand)


@torch.no_grad()
def weights_that_torch_returns(model: EmbeddingModel, pixels: Tensor) -> list[Tensor]:
    tower: Any = model.encoder.tower
    tokens, weights = tower._embeds(pixels), []
    for block in tower.transformer.resblocks:
        normed = block.ln_1(tokens)
        weights.append(block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)[1])
        tokens = block(tokens)
    return weights


def test_attention_is_what_torch_itself_returns() -> None:
    model = build("vit_small")
    found = attention_weights(model, images(model))
    expected = weights_that_torch_returns(model, images(model))
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_transformer_is_explained_by_the_class_tokens_row() -> None:
    model = build("vit_small")
    maps = attention_maps(model, images(model))
    assert list(maps) == ["attention rollout"]
    expected = rollout(weights_that_torch_returns(model, images(model)))[:, 0, 1:]
    torch.testing.assert_close(maps["attention rollout"], scaled(expected.view(3, 4, 2)))


def test_grad_cam_by_hand() -> None:
    feature_map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 3.0]]]])
    gradient = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[-2.0, 0.0], [-2.0, 0.0]]]])
    # Weights are 0.5 and -1: 0.5 - 1, 1 - 0, 1.5 - 0, 2 - 3, and ReLU.
    torch.testing.assert_close(grad_cam(feature_map, gradient), torch.tensor([[[0.0, 1.0], [1.5, 0.0]]]))


def test_grad_cam_of_a_toy_net() -> None:
    """f = W mean(F): the target's gradient is W^T t / 4 at each of the four positions."""
    feature_map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 3.0]]]], requires_grad=True)
    weight, direction = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.6, 0.8])
    target = weight @ feature_map.mean(dim=(2, 3))[0] @ direction
    [gradient] = torch.autograd.grad(target, feature_map)
    alpha = weight.T @ direction / 4
    by_hand = (alpha[0] * feature_map[:, 0] + alpha[1] * feature_map[:, 1]).clamp(min=0)
    torch.testing.assert_close(grad_cam(feature_map, gradient), by_hand)


@torch.no_grad()
def test_averaged_maps_weigh_channels_by_the_feature_itself() -> None:
    """The feature is the mean of the map, so that the gradient is its direction, the same at every position."""
    model = build("resnet_small")
    trunk: Any = model.encoder.trunk
    feature_map = trunk.layer4(trunk.to_layer3(images(model)))
    expected = (feature_map.mean(dim=(2, 3), keepdim=True) * feature_map).sum(dim=1).relu()
    assert expected.shape == (3, 4, 2)
    torch.testing.assert_close(attention_maps(model, images(model)), {"Grad-CAM": scaled(expected)})


@torch.no_grad()
def test_mbanet_joins_its_three_branches() -> None:
    model = build("mbanet_small")
    encoder = model.encoder
    assert isinstance(encoder, MBANetEncoder)
    shared = encoder.backbone.to_layer3(images(model))
    layer4 = encoder.backbone.layer4
    branches = [
        layer4(shared),
        encoder.sam_att4(layer4(encoder.sam_att3(shared))),
        encoder.cam_att4(layer4(encoder.cam_att3(shared))),
    ]
    expected = sum((branch.mean(dim=(2, 3), keepdim=True) * branch).sum(dim=1) for branch in branches)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(attention_maps(model, images(model))["Grad-CAM"], scaled(expected.relu()))


@torch.no_grad()
def test_spatial_attention_is_what_queries_attend_to_on_average() -> None:
    model = build("mbanet_small")
    encoder = model.encoder
    assert isinstance(encoder, MBANetEncoder)
    nn.init.constant_(encoder.sam_att4.gamma, -0.25)
    features = encoder.backbone.layer4(encoder.sam_att3(encoder.backbone.to_layer3(images(model, 1))))
    query, key = encoder.sam_att4.query_conv(features)[0], encoder.sam_att4.key_conv(features)[0]
    expected = torch.zeros(4, 2)
    for y in range(4):
        for x in range(2):
            energies = (query[:, y, x, None, None] * key).sum(dim=0)
            expected += energies.exp() / energies.exp().sum()
    maps = attention_maps(model, images(model, 1))
    assert list(maps) == ["Grad-CAM", "spatial attention (gamma -0.250)"]
    torch.testing.assert_close(maps["spatial attention (gamma -0.250)"], scaled(expected[None]), rtol=1e-4, atol=1e-5)


def grad_cam_by_autograd(feature_map: Tensor, feature: Tensor) -> Tensor:
    target = torch.stack([one @ (one / one.norm()).detach() for one in feature]).sum()
    [gradient] = torch.autograd.grad(target, feature_map)
    maps = torch.einsum("bc,bchw->bhw", gradient.mean(dim=(2, 3)), feature_map).clamp(min=0).detach()
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)


def test_grad_cam_through_the_attention_pool_of_rn50() -> None:
    model = build("rn_small")
    tower: Any = model.encoder.tower
    nn.init.zeros_(tower.attnpool.q_proj.weight)  # then the pool is an average, and weights are not all negative
    feature_map = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(images(model))))))
    expected = grad_cam_by_autograd(feature_map, tower.attnpool(feature_map))
    assert expected.amax() == 1
    torch.testing.assert_close(attention_maps(model, images(model)), {"Grad-CAM": expected}, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tiny_models")
def test_a_timm_tower_with_a_last_map_has_grad_cam() -> None:
    model = build("tiny-timm-cnn")
    tower: Any = model.encoder.tower
    trunk = tower.trunk
    feature_map = trunk.stages(trunk.stem(images(model)))
    expected = grad_cam_by_autograd(feature_map, trunk.head(trunk.norm_pre(feature_map)))
    torch.testing.assert_close(attention_maps(model, images(model)), {"Grad-CAM": expected}, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tiny_models")
def test_a_tower_that_neither_method_fits_is_named() -> None:
    model = build("tiny-timm-vit")
    with pytest.raises(HandCLIPError, match="where tiny-timm-vit looks cannot be shown"):
        attention_maps(model, images(model))


def test_a_transformer_that_averages_its_patches_has_grad_cam() -> None:
    model = build("vit_small")
    tower: Any = model.encoder.tower
    tower.pool_type = "avg"
    tokens = tower.transformer(tower._embeds(images(model))).detach().requires_grad_()
    feature = tower._pool(tokens)[0] @ tower.proj
    target = torch.stack([one @ (one / one.norm()).detach() for one in feature]).sum()
    [gradient] = torch.autograd.grad(target, tokens)
    patches = torch.einsum("bc,bnc->bn", gradient[:, 1:].mean(dim=1), tokens[:, 1:]).clamp(min=0).detach()
    torch.testing.assert_close(attention_maps(model, images(model)), {"Grad-CAM": scaled(patches.view(3, 4, 2))})


@pytest.mark.parametrize("name", ["vit_small", "rn_small", "resnet_small", "mbanet_small"])
def test_maps_are_scaled_finite_and_of_each_image_alone(name: str) -> None:
    model = build(name)
    together = attention_maps(model, images(model))
    for method, maps in together.items():
        assert maps.dtype == torch.float32
        assert not maps.requires_grad
        assert ((maps >= 0) & (maps <= 1)).all()
        assert all(one.max() == 1 or not one.any() for one in maps)
        for number in range(3):
            alone = attention_maps(model, images(model)[number : number + 1])[method]
            torch.testing.assert_close(maps[number : number + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_map_without_a_positive_value_stays_zero() -> None:
    model = build("resnet_small")
    trunk: Any = model.encoder.trunk
    block = trunk.layer4[0]
    for norm in (block.bn3, block.downsample[-1]):
        nn.init.zeros_(norm.weight)
    assert not attention_maps(model, images(model))["Grad-CAM"].any()


@pytest.mark.parametrize("name", ["vit_small", "rn_small", "resnet_small", "mbanet_small"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = build(name)
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    with torch.no_grad():
        before = model.embed(images(model))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = attention_maps(model, images(model))

    model.train()
    block: Any = model.encoder.blocks()[1][0]
    block.eval()
    modes = [module.training for module in model.modules()]
    requires = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = attention_maps(model, images(model))
        assert not torch.is_grad_enabled()

    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == requires
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().embed(images(model)), before, rtol=0, atol=0)


def test_hooks_go_where_the_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("resnet_small")

    def fail(*_: object) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "embed", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attention_maps(model, images(model))
    assert not any(module._forward_hooks for module in model.modules())

"""Weights in the layouts that people have: wrapped, compiled, nested, averaged, named by transformers."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from handclip.errors import CheckpointError
from handclip.models.clip_encoder import CLIPImageEncoder
from handclip.models.clip_weights import load_clip_weights
from handclip.models.resnet import ResNetEncoder
from handclip.models.resnet_weights import load_resnet_weights
from handclip.models.weights import read_state_dict

pytestmark = pytest.mark.usefixtures("tiny_models")

State = dict[str, Tensor]


def clip_state(name: str = "tiny-vit", seed: int = 0) -> State:
    torch.manual_seed(seed)
    state: State = open_clip.create_model(name).state_dict()
    return state


def tower(state: Mapping[str, Tensor]) -> State:
    return {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}


def loaded(content: Any, path: Path, name: str = "tiny-vit") -> State:
    """Save content, read it as a user would, and return the encoder's weights."""
    torch.save(content, path)
    weights = load_clip_weights(name, str(path))
    encoder = CLIPImageEncoder(name, weights)
    return encoder.tower.state_dict()


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


NAMES: dict[str, Callable[[str], str]] = {
    "DataParallel": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled, then wrapped": lambda key: f"module._orig_mod.{key}",
    "wrapped, then compiled": lambda key: f"_orig_mod.module.{key}",
    "twice": lambda key: f"module.module._orig_mod.module.{key}",
    "only the tower compiled": lambda key: key.replace("visual.", "visual._orig_mod."),
    "Lightning": lambda key: f"model.{key}",
    "Lightning, compiled": lambda key: f"model._orig_mod.{key}",
    "within another model": lambda key: f"net.backbone.module.{key}",
}
NESTS = [
    "state_dict", "model", "model_state_dict", "net", "network", "module", "weights", "params", "clip", "encoder",
    "ema", "model_ema", "state_dict_ema", "teacher",
]  # fmt: skip


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("model", ["tiny-vit", "tiny-rn", "tiny-timm-vit"])
def test_wrappers_leave_the_names_alone(tmp_path: Path, model: str, names: str, bare: bool) -> None:
    state = clip_state(model)
    given = tower(state) if bare else state
    content = {NAMES[names](key): value for key, value in given.items()}
    assert_same(loaded(content, tmp_path / "a.pt", model), tower(state))


@pytest.mark.parametrize("names", [lambda key: key, NAMES["wrapped, then compiled"]])
@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("bare", [False, True])
def test_a_model_in_a_dictionary_beside_other_things(
    tmp_path: Path, bare: bool, nest: str, names: Callable[[str], str]
) -> None:
    state = clip_state()
    given = {names(key): value for key, value in (tower(state) if bare else state).items()}
    content = {"epoch": 3, nest: given, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "lr": 0.1}}
    assert_same(loaded(content, tmp_path / "a.pt"), tower(state))


def test_what_is_left_out_beside_the_model_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="handclip"):
        loaded({"net": clip_state(), "head": {"weight": torch.zeros(2)}}, tmp_path / "a.pt")
    assert "left out 1 tensors beside the model in net, such as head.weight" in caplog.text


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("student", "teacher"),
        ("model", "ema_model"),
        ("net", "swa_model"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_of_two_copies_the_running_average_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: str, average: str, flat: bool
) -> None:
    one, other = clip_state(seed=1), clip_state(seed=2)
    copies = {raw: one, average: other}
    content: Any = {f"{name}.{key}": v for name, copy in copies.items() for key, v in copy.items()} if flat else copies
    with caplog.at_level(logging.INFO, logger="handclip"):
        assert_same(loaded(content, tmp_path / "a.pt"), tower(other))
    assert f"a.pt: of 2 copies of the model ({', '.join(sorted(copies))}), {average} is taken" in caplog.text


def test_an_average_beside_weights_at_the_top(tmp_path: Path) -> None:
    one, other = clip_state(seed=1), clip_state(seed=2)
    assert_same(loaded({**one, "ema": other}, tmp_path / "a.pt"), tower(other))


def test_two_models_of_which_none_is_an_average_are_refused(tmp_path: Path) -> None:
    one, other = clip_state(seed=1), clip_state(seed=2)
    with pytest.raises(CheckpointError, match=r"a\.pt: holds 2 models \(first, second\)\. Save alone the one to use"):
        loaded({"first": one, "second": other}, tmp_path / "a.pt")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    state = clip_state()
    with pytest.raises(CheckpointError, match=r"a\.pt: holds visual\.proj twice, with and without module or _orig_mod"):
        loaded({**state, "module.visual.proj": state["visual.proj"] + 1}, tmp_path / "a.pt")


def test_a_dictionary_that_holds_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": clip_state()}
    content["state_dict"]["itself"] = content
    content["again"] = content["state_dict"]
    torch.save(content, tmp_path / "a.pt")
    assert len(read_state_dict(tmp_path / "a.pt")) == len(content["state_dict"]) - 1


# The transformers library's names


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """The names that transformers' `CLIPModel` has for a ViT of open_clip's, written down from its source."""
    visual = tower(state)
    named = {
        "vision_model.embeddings.class_embedding": visual["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": visual["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": visual["positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(len(visual["positional_embedding"]))[None],
        "visual_projection.weight": visual["proj"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
        "text_projection.weight": torch.zeros(4, 4),
        "text_model.embeddings.token_embedding.weight": torch.zeros(4, 4),
    }
    for kind in ("weight", "bias"):
        named[f"vision_model.pre_layrnorm.{kind}"] = visual[f"ln_pre.{kind}"]
        named[f"vision_model.post_layernorm.{kind}"] = visual[f"ln_post.{kind}"]
        for number in range(3):
            ours, theirs = f"transformer.resblocks.{number}", f"vision_model.encoder.layers.{number}"
            query, key, value = visual[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            named[f"{theirs}.self_attn.v_proj.{kind}"] = value
            named[f"{theirs}.self_attn.q_proj.{kind}"] = query
            named[f"{theirs}.self_attn.k_proj.{kind}"] = key
            named[f"{theirs}.self_attn.out_proj.{kind}"] = visual[f"{ours}.attn.out_proj.{kind}"]
            named[f"{theirs}.layer_norm1.{kind}"] = visual[f"{ours}.ln_1.{kind}"]
            named[f"{theirs}.layer_norm2.{kind}"] = visual[f"{ours}.ln_2.{kind}"]
            named[f"{theirs}.mlp.fc1.{kind}"] = visual[f"{ours}.mlp.c_fc.{kind}"]
            named[f"{theirs}.mlp.fc2.{kind}"] = visual[f"{ours}.mlp.c_proj.{kind}"]
    return named


class TheirTower(nn.Module):
    """The forward pass of transformers' `CLIPVisionModelWithProjection`, step by step, from its tensors by name."""

    def __init__(self, state: Mapping[str, Tensor], heads: int) -> None:
        super().__init__()
        self.state, self.heads = state, heads

    def linear(self, x: Tensor, name: str) -> Tensor:
        return nn.functional.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def forward(self, images: Tensor) -> Tensor:
        embeddings = "vision_model.embeddings"
        patches = self.state[f"{embeddings}.patch_embedding.weight"]
        x = nn.functional.conv2d(images, patches, stride=patches.shape[-1]).flatten(2).transpose(1, 2)
        first = self.state[f"{embeddings}.class_embedding"].expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.state[f"{embeddings}.position_embedding.weight"]
        x = self.norm(x, "vision_model.pre_layrnorm")
        for number in range(3):
            layer = f"vision_model.encoder.layers.{number}"
            normed = self.norm(x, f"{layer}.layer_norm1")
            query, key, value = (
                self.linear(normed, f"{layer}.self_attn.{part}_proj").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in "qkv"
            )
            attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
            x = x + self.linear((attention @ value).transpose(1, 2).flatten(2), f"{layer}.self_attn.out_proj")
            inner = nn.functional.gelu(self.linear(self.norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1"))
            x = x + self.linear(inner, f"{layer}.mlp.fc2")
        return self.linear(self.norm(x[:, 0], "vision_model.post_layernorm"), "visual_projection")


@pytest.mark.parametrize("prefix", ["", "module.", "model.clip."])
def test_transformers_layout_gives_the_same_features(tmp_path: Path, prefix: str) -> None:
    clip = open_clip.create_model("tiny-vit").eval()
    named = to_transformers(clip.state_dict())
    torch.save({f"{prefix}{key}": value for key, value in named.items()}, tmp_path / "pytorch_model.bin")
    weights = load_clip_weights("tiny-vit", str(tmp_path / "pytorch_model.bin"))
    encoder = CLIPImageEncoder("tiny-vit", weights).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features = encoder(images)["projected"]
        torch.testing.assert_close(features, clip.encode_image(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features, TheirTower(named, heads=2)(images), rtol=1e-4, atol=1e-5)


def test_transformers_vision_model_alone(tmp_path: Path) -> None:
    state = clip_state()
    named = {key: value for key, value in to_transformers(state).items() if key.startswith("vis")}
    assert_same(loaded(named, tmp_path / "a.bin"), tower(state))
    del named["visual_projection.weight"]
    with pytest.raises(CheckpointError, match=r"lacks visual_projection\.weight, .* CLIPVisionModelWithProjection"):
        loaded(named, tmp_path / "a.bin")


def test_what_differs_from_transformers_layout_is_named(tmp_path: Path) -> None:
    named = to_transformers(clip_state())
    without = {key: value for key, value in named.items() if not key.endswith("1.self_attn.k_proj.bias")}
    with pytest.raises(CheckpointError, match=r"lacks vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        loaded(without, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"1 not in this model \(such as vision_model\.head\.probe\)"):
        loaded({**named, "vision_model.head.probe": torch.zeros(2)}, tmp_path / "a.bin")
    siglip = {key: value for key, value in named.items() if "class_embedding" not in key}
    with pytest.raises(CheckpointError, match="is no CLIP: it has no class embedding, as SigLIP has none"):
        loaded(siglip, tmp_path / "a.bin")


# CNNs


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("nest", [None, "state_dict", "net"])
def test_a_resnet_in_the_same_layouts(tmp_path: Path, names: str, nest: str | None) -> None:
    state = {**ResNetEncoder("resnet_small").trunk.state_dict(), "fc.weight": torch.zeros(4, 512)}
    content: Any = {NAMES[names](key): value for key, value in state.items() if torch.is_tensor(value)}
    torch.save({nest: content} if nest else content, tmp_path / "a.pth")
    for model, prefix in (("resnet_small", ""), ("mbanet_small", "backbone.")):
        found = load_resnet_weights(model, str(tmp_path / "a.pth")).state_dict
        assert found is not None
        assert {f"{prefix}{key}" for key in state if not key.startswith("fc.")} == found.keys()


def test_the_average_of_a_resnet_is_taken(tmp_path: Path) -> None:
    one, other = (ResNetEncoder("resnet_small").trunk.state_dict() for _ in range(2))
    torch.save({"state_dict": one, "state_dict_ema": other}, tmp_path / "a.pth")
    found = load_resnet_weights("resnet_small", str(tmp_path / "a.pth")).state_dict
    assert found is not None
    assert torch.equal(found["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])


def test_a_file_without_a_resnet_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.zeros(2), "text.proj": torch.zeros(2)}, tmp_path / "a.pth")
    for model in ("resnet50", "mbanet"):
        with pytest.raises(CheckpointError, match=r"holds no ResNet .*2 tensors are others, such as visual\.proj"):
            load_resnet_weights(model, str(tmp_path / "a.pth"))

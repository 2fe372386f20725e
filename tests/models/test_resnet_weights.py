"""Weights of CNNs: by file in three layouts, by tag, or none."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from handclip.config.loading import parse_config
from handclip.errors import CheckpointError, ConfigError
from handclip.models import resnet_weights
from handclip.models.builder import build_model
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.mbanet import MBANetEncoder
from handclip.models.resnet_weights import load_resnet_weights, mbanet_state

BASE = {"experiment": "a", "dataset": "11k", "input_size": 64}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(**values: Any) -> EmbeddingModel:
    return build_model(parse_config({**BASE, **values}, "test"))


def resnet50(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = torchvision.models.resnet50(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model.state_dict()


def projection(channels: int, out: int) -> dict[str, Tensor]:
    return {
        "0.weight": torch.randn(out, channels, 1, 1),
        "0.bias": torch.randn(out),
        **{f"1.{name}": value for name, value in norm(out).items()},
    }


def norm(channels: int) -> dict[str, Tensor]:
    return {
        "weight": torch.rand(channels),
        "bias": torch.rand(channels),
        "running_mean": torch.rand(channels),
        "running_var": torch.rand(channels) + 0.5,
        "num_batches_tracked": torch.tensor(7),
    }


def authors_state(trunk: Mapping[str, Tensor], widths: tuple[int, int], side: int, parts: int = 0) -> dict[str, Tensor]:
    """A state dict with the names that the authors' code gives, for a trunk and the channels of layer3 and layer4."""
    backbone = {f"backbone.{key}": value for key, value in trunk.items() if not key.startswith("fc.")}
    state = dict(backbone)
    for key, value in backbone.items():
        stage, _, rest = key.removeprefix("backbone.").partition(".")
        if stage in ("layer2", "layer3", "layer4"):
            for branch in "sc":
                state[f"{stage}{branch}.{rest}"] = value
                state[f"backbone.{stage}{branch}.{rest}"] = value
    for stage, channels in zip((3, 4), widths, strict=True):
        narrow = channels // 8
        module: dict[str, Tensor] = {"gamma": torch.tensor([0.3]), "rel_rows": torch.randn(2 * side - 1, narrow)}
        module["rel_columns"] = torch.randn(2 * side - 1, narrow)
        for name, out in (("query_conv", narrow), ("key_conv", narrow), ("value_conv", channels)):
            module.update({f"{name}.{key}": value for key, value in projection(channels, out).items()})
        for name in ("bnormr", "bnormc"):
            module.update({f"{name}.{key}": value for key, value in norm(channels).items()})
        state.update({f"sam_att{stage}.{key}": value for key, value in module.items()})
        state[f"cam_att{stage}.gamma"] = torch.tensor([0.2])
    for head in ("reduction_g", "reduction_s", "reduction_c", *(f"reduction_p{part}" for part in range(parts))):
        state[f"{head}.add_block.0.weight"] = torch.randn(4, widths[1])
        state.update({f"{head}.add_block.1.{key}": value for key, value in norm(4).items()})
        state[f"{head}.classifier.0.weight"] = torch.randn(3, 4)
    return state


def small_authors_state(seed: int = 1, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    trunk = MBANetEncoder("mbanet_small", input_size=(64, 64)).backbone.state_dict()
    return authors_state(trunk, (512, 512), side=4, **changes)


def save(state: Mapping[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


# A ResNet's own layout


@pytest.mark.parametrize("file", ["resnet50.pth", "resnet50.safetensors"])
def test_a_file_of_torchvisions_or_timms_arrives_in_both_models(tmp_path: Path, file: str) -> None:
    state = resnet50()
    path = save(state, tmp_path / file)
    for model, prefix in (("resnet50", "trunk."), ("mbanet", "backbone.")):
        built = build(model=model, pretrained=str(path)).encoder
        assert built.facts["weights"] == str(path)
        own = built.state_dict()
        for key, value in state.items():
            assert key.startswith("fc.") or torch.equal(own[prefix + key], value), key
        assert not any("fc." in key for key in own)


def test_the_attention_beside_a_resnets_weights_is_new(tmp_path: Path) -> None:
    path = save(resnet50(), tmp_path / "resnet50.pth")
    model = build(model="mbanet", pretrained=str(path)).eval()
    with torch.no_grad():
        embeddings = model.encoder(IMAGES)
        expected = build(model="resnet50", pretrained=str(path)).eval().encoder(IMAGES)["pooled"]
    for name in ("global", "spatial", "channel"):
        torch.testing.assert_close(embeddings[name], expected)


def test_half_precision_and_lost_counters_do_no_harm(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in resnet50().items() if "num_batches" not in k}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    own = build(model="resnet50", pretrained=str(tmp_path / "a.pth")).encoder.state_dict()
    assert own["trunk.conv1.weight"].dtype == torch.float32
    assert torch.equal(own["trunk.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"].float())


@pytest.mark.parametrize("model", ["resnet50", "mbanet"])
def test_d42_weights_of_another_network_are_an_error(tmp_path: Path, model: str) -> None:
    path = save(torchvision.models.resnet18(num_classes=2).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError) as caught:
        build(model=model, pretrained=str(path))
    text = str(caught.value)
    assert "resnet18.pth: these weights belong to another model" in text
    assert "missing (such as " in text and "of another shape (" in text


@pytest.mark.parametrize("model", ["resnet50", "mbanet"])
def test_d42_one_lost_or_surplus_entry_is_an_error(tmp_path: Path, model: str) -> None:
    state = resnet50()
    del state["layer2.0.bn1.weight"]
    state["extra.weight"] = torch.zeros(1)
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        build(model=model, pretrained=str(path))
    assert "1 missing (such as " in str(caught.value) and "layer2.0.bn1.weight)" in str(caught.value)
    assert "1 not in this model (such as " in str(caught.value) and "extra.weight)" in str(caught.value)


# The layout of MBA-Net's authors


def test_the_authors_layout_at_full_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(2)
    state = authors_state(resnet50(), (1024, 2048), side=21, parts=1)
    path = save(state, tmp_path / "net_best.pth")
    with caplog.at_level(logging.INFO, logger="handclip"):
        own = build(model="mbanet", pretrained=str(path), input_size=324).encoder.state_dict()
    for key, value in own.items():
        assert torch.equal(value, state[key]), key
    for alias in ("layer2s", "backbone.layer4c"):
        trunk = f"backbone.{alias.removeprefix('backbone.')[:-1]}"
        assert torch.equal(own[f"{trunk}.0.conv1.weight"], state[f"{alias}.0.conv1.weight"])
    assert "left out the heads reduction_c, reduction_g, reduction_p0, reduction_s" in caplog.text


@pytest.mark.parametrize("aliased", [True, False])
@pytest.mark.parametrize("file", ["small.pth", "small.safetensors"])
def test_the_authors_layout_with_and_without_its_aliases(tmp_path: Path, file: str, aliased: bool) -> None:
    state = {
        key: value
        for key, value in small_authors_state().items()
        if aliased or key.removeprefix("backbone.").partition(".")[0][-1] not in "sc"
    }
    model = build(model="mbanet_small", pretrained=str(save(state, tmp_path / file))).eval()
    own = model.encoder.state_dict()
    assert own.keys() <= state.keys()
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    with torch.no_grad():
        embeddings = model.encoder(IMAGES)
    assert not torch.allclose(embeddings["global"], embeddings["spatial"])


@pytest.mark.parametrize("alias", ["layer3s.0.conv2.weight", "backbone.layer4c.0.bn1.running_mean"])
def test_branches_that_do_not_share_their_weights_are_named(tmp_path: Path, alias: str) -> None:
    state = small_authors_state()
    state[alias] = state[alias] + 1
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"should share layer2 to layer4, but 1 entries differ") as caught:
        build(model="mbanet_small", pretrained=str(path))
    stage, _, rest = alias.removeprefix("backbone.").partition(".")
    assert f"(such as {alias} from backbone.{stage[:-1]}.{rest})" in str(caught.value)


def drop(state: dict[str, Tensor]) -> None:
    del state["sam_att3.query_conv.0.bias"], state["cam_att4.gamma"]


def add(state: dict[str, Tensor]) -> None:
    state["sam_att5.gamma"] = torch.zeros(1)


def resize(state: dict[str, Tensor]) -> None:
    state["sam_att4.rel_rows"] = torch.zeros(41, 64)


def lose_trunk(state: dict[str, Tensor]) -> None:
    del state["backbone.layer4.0.conv1.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "2 missing (such as cam_att4.gamma, sam_att3.query_conv.0.bias)"),
        (add, "1 not in this model (such as sam_att5.gamma)"),
        (resize, "1 of another shape (sam_att4.rel_rows: (41, 64), the model has (7, 64))"),
        (lose_trunk, "1 missing (such as backbone.layer4.0.conv1.weight)"),
    ],
)
def test_what_differs_from_the_authors_layout_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = small_authors_state()
    change(state)
    with pytest.raises(CheckpointError) as caught:
        build(model="mbanet_small", pretrained=str(save(state, tmp_path / "a.pth")))
    assert message in str(caught.value)


def test_heads_are_named_only_where_there_are_any(caplog: pytest.LogCaptureFixture) -> None:
    state = {key: value for key, value in small_authors_state().items() if not key.startswith("reduction_")}
    with caplog.at_level(logging.INFO, logger="handclip"):
        mbanet_state(state, "a")
    assert "heads" not in caplog.text


# By tag, or none


def test_a_tag_is_fetched_from_timms_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = resnet50()
    path = save(state, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(resnet_weights, "hf_hub_download", lambda *given: asked.append(given) or str(path))
    model = build(model="resnet50", pretrained="tv2_in1k")
    assert asked == [("timm/resnet50.tv2_in1k", "model.safetensors")]
    assert model.encoder.facts["weights"] == "timm tv2_in1k"
    assert model.encoder.preprocessing.interpolation == "bicubic"
    assert torch.equal(model.encoder.state_dict()["trunk.conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("model", ["resnet50", "mbanet"])
def test_offline_names_the_file_and_what_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_resnet_weights(model, "tv2_in1k")
    text = str(caught.value)
    assert f"the weights 'tv2_in1k' of {model} are not cached here" in text
    assert "model.safetensors of https://huggingface.co/timm/resnet50.tv2_in1k" in text
    assert "https://download.pytorch.org/models/resnet50-11ad3fa6.pth" in text
    assert text.endswith("pretrained: path/to/the/file")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("resnet50", "openai", r"CLIP's weights do not fit it; tv2_in1k are torchvision's of ImageNet"),
        ("mbanet", "openai", r"weights of mbanet\. CLIP's weights do not fit it; tv2_in1k"),
        ("resnet50", "tv2_in1", r"Did you mean 'tv2_in1k'"),
        ("mbanet_small", "tv2_in1k", r"neither a file nor a set of weights of mbanet_small\. Known: none\."),
        ("resnet_small", "openai", r"neither a file nor a set of weights of resnet_small\. Known: none\."),
    ],
)
def test_other_weights_are_a_config_error(model: str, pretrained: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_resnet_weights(model, pretrained)


def test_none_starts_from_random_weights() -> None:
    weights = load_resnet_weights("mbanet", "none")
    assert (weights.state_dict, weights.source) == (None, "none (random)")

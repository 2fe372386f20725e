import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from handclip.errors import CheckpointError, ConfigError
from handclip.models.clip_encoder import ALIASES, CLIPImageEncoder
from handclip.models.clip_weights import load_clip_weights, visual_part
from handclip.models.encoder import EncoderWeights
from handclip.models.weights import read_state_dict

pytestmark = [
    pytest.mark.usefixtures("tiny_models"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

MARKERS = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(8), "vocab_size": torch.tensor(50)}


def make_clip(name: str, seed: int = 0) -> nn.Module:
    """A whole CLIP, text tower and all, whose batch norms have seen some images."""
    torch.manual_seed(seed)
    model = open_clip.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()  # type: ignore[no-any-return]


def require_features_of(clip: nn.Module, encoder: CLIPImageEncoder) -> None:
    """Check that an encoder computes what open_clip does with the same weights."""
    images = torch.randn(2, 3, encoder.preprocessing.height, encoder.preprocessing.width)
    with torch.no_grad():
        expected = clip.encode_image(images)  # type: ignore[operator]
        torch.testing.assert_close(encoder.eval()(images)["projected"], expected, rtol=1e-5, atol=1e-5)


def save_torch(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save(dict(state), path)


def save_half(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save({key: v.half() if v.is_floating_point() else v for key, v in state.items()}, path)


def save_legacy(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save(dict(state), path, _use_new_zipfile_serialization=False)


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def save_torchscript(state: Mapping[str, Tensor], path: Path) -> None:
    """A TorchScript archive of half precision, which is what OpenAI published."""
    root = nn.Module()
    for key, value in state.items():
        *modules, name = key.split(".")
        owner = root
        for module in modules:
            if not hasattr(owner, module):
                owner.add_module(module, nn.Module())
            owner = getattr(owner, module)
        value = value.half() if value.is_floating_point() else value
        if value.is_floating_point():
            owner.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            owner.register_buffer(name, value)
    torch.jit.script(root).save(str(path))


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor], Path], None]] = {
    "plain.pt": save_torch,
    "half.pth": save_half,
    "legacy.pt": save_legacy,
    "hub.safetensors": save_safetensors,
    "archive.pt": save_torchscript,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-quickgelu", "tiny-rn", "tiny-timm-vit"])
def test_a_file_gives_open_clips_own_features(tmp_path: Path, name: str, layout: str) -> None:
    clip = make_clip(name)
    if LAYOUTS[layout] in (save_half, save_torchscript):
        clip = clip.half().float()
    path = tmp_path / layout
    LAYOUTS[layout](clip.state_dict(), path)
    weights = load_clip_weights(name, str(path))
    require_features_of(clip, CLIPImageEncoder(name, weights))
    assert weights.quick_gelu == name.endswith("-quickgelu")
    assert weights.source == str(path)


@pytest.mark.parametrize(
    ("alias", "name", "layout"), [("vitb16", "ViT-B-16-quickgelu", "archive.pt"), ("rn50", "RN50", "plain.pt")]
)
def test_openais_models_at_full_size(tmp_path: Path, alias: str, name: str, layout: str) -> None:
    clip, path = make_clip(name), tmp_path / "clip.pt"
    if LAYOUTS[layout] is save_torchscript:
        clip = clip.half().float()
    LAYOUTS[layout]({**clip.state_dict(), **MARKERS}, path)
    weights = load_clip_weights(alias, str(path))
    path.unlink()  # hundreds of megabytes
    assert weights.quick_gelu is True
    encoder = CLIPImageEncoder(alias, weights)
    require_features_of(clip, encoder)
    visual = sum(parameter.numel() for parameter in clip.visual.parameters())  # type: ignore[union-attr]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == visual
    assert not any(part in key for key in encoder.state_dict() for part in ("token_embedding", "text", "ln_final"))


@pytest.mark.parametrize(
    ("model", "marked", "asked", "expected"),
    [
        # OpenAI's marks decide, whatever the model is called.
        ("tiny-vit", True, "auto", True),
        ("tiny-vit-quickgelu", True, "auto", True),
        ("tiny-alias", True, "auto", True),
        ("tiny-vit", True, True, True),
        ("tiny-vit", True, False, "error"),
        ("tiny-alias", True, False, "error"),
        # Without them the name decides: the short names stand for OpenAI's models.
        ("tiny-vit", False, "auto", False),
        ("tiny-vit-quickgelu", False, "auto", True),
        ("tiny-alias", False, "auto", True),
        # Unless the config says it.
        ("tiny-vit", False, True, True),
        ("tiny-alias", False, False, False),
    ],
)
def test_quick_gelu_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, marked: bool, asked: Any, expected: Any
) -> None:
    monkeypatch.setitem(ALIASES, "tiny-alias", "tiny-vit")
    clip = make_clip("tiny-vit-quickgelu" if expected is True else "tiny-vit")
    path = tmp_path / "clip.pt"
    torch.save({**clip.state_dict(), **(MARKERS if marked else {})}, path)
    if expected == "error":
        with pytest.raises(ConfigError, match=r"quick_gelu: false: .* was trained with quick_gelu: true"):
            load_clip_weights(model, str(path), asked)
        return
    weights = load_clip_weights(model, str(path), asked)
    assert weights.quick_gelu is expected
    encoder = CLIPImageEncoder(model, weights)
    assert encoder.facts["quick_gelu"] is expected
    require_features_of(clip, encoder)


@pytest.mark.parametrize(
    ("model", "tag", "asked", "expected"),
    [
        ("vitb16", "openai", "auto", True),
        ("ViT-B-16", "openai", "auto", True),
        ("ViT-B-16-quickgelu", "openai", "auto", True),
        ("vitb16", "laion2b_s34b_b88k", "auto", False),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", "auto", False),
        ("vitb16", "laion2b_s34b_b88k", False, False),
        ("vitb16", "laion2b_s34b_b88k", True, "error"),
        ("vitb16", "openai", False, "error"),
        ("rn50", "openai", "auto", True),
    ],
)
def test_quick_gelu_of_a_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, tag: str, asked: Any, expected: Any
) -> None:
    path = tmp_path / "downloaded.safetensors"
    save_safetensors(make_clip("tiny-vit").state_dict(), path)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda entry: str(path))
    if expected == "error":
        with pytest.raises(ConfigError, match="was trained with quick_gelu"):
            load_clip_weights(model, tag, asked)
        return
    weights = load_clip_weights(model, tag, asked)
    assert weights.quick_gelu is expected
    assert weights.source == f"open_clip {tag}"
    assert weights.preprocessing["mean"] == open_clip.get_pretrained_cfg("ViT-B-16", "openai")["mean"]
    assert weights.preprocessing["interpolation"] == "bicubic"


def test_a_tag_brings_its_own_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "downloaded.pt"
    clip = make_clip("tiny-vit")
    torch.save(clip.state_dict(), path)
    entry = {"hf_hub": "a/b/", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0), "interpolation": "bilinear"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: entry if tag == "own" else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda given: str(path) if given == entry else "")
    weights = load_clip_weights("tiny-vit", "own")
    encoder = CLIPImageEncoder("tiny-vit", weights)
    assert encoder.preprocessing.to_dict() == {
        "height": 64,
        "width": 64,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 1.0],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }


def test_none_starts_from_random_weights() -> None:
    for model, quick_gelu in [("vitb16", True), ("ViT-B-16", False), ("vit_small", False), ("rn50", True)]:
        weights = load_clip_weights(model, "none")
        assert (weights.state_dict, weights.quick_gelu) == (None, quick_gelu)
    assert load_clip_weights("vitb16", "none", False).quick_gelu is False


# What goes wrong


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"hf_hub": "org/name/"}, "Fetch open_clip_model.safetensors of https://huggingface.co/org/name on a machine"),
        ({"hf_hub": "org/name/model.bin"}, "Fetch model.bin of https://huggingface.co/org/name on a machine"),
        ({"url": "https://a.b/c.pt"}, "Fetch https://a.b/c.pt on a machine"),
    ],
)
def test_no_network_says_which_file(monkeypatch: pytest.MonkeyPatch, entry: dict[str, str], wanted: str) -> None:
    def refuse(given: Any) -> str:
        raise ConnectionError

    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: entry)
    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(CheckpointError) as caught:
        load_clip_weights("tiny-vit", "tag")
    assert wanted in str(caught.value)
    assert str(caught.value).endswith("  pretrained: path/to/the/file\n  pretrained_tag: tag")


def test_offline_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was tried")

    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", refuse)  # between two tries
    with pytest.raises(CheckpointError, match=r"timm/resnet50_clip\.openai"):
        load_clip_weights("rn50", "openai")


def test_a_tag_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a file nor a set of weights of vitb16\. Did you mean 'openai'\?"):
        load_clip_weights("vitb16", "opnai")
    with pytest.raises(ConfigError, match="Known: none"):
        load_clip_weights("vit_small", "openai")
    with pytest.raises(ConfigError, match="neither a file"):  # a folder
        load_clip_weights("vitb16", str(tmp_path))


@pytest.mark.parametrize(
    ("given", "wanted"), [("tiny-rn", "tiny-vit"), ("tiny-vit", "tiny-rn"), ("tiny-vit", "vit_small")]
)
def test_weights_of_another_architecture(tmp_path: Path, given: str, wanted: str) -> None:
    path = tmp_path / "clip.pt"
    torch.save(make_clip(given).state_dict(), path)
    weights = load_clip_weights(wanted, str(path))
    with pytest.raises(CheckpointError, match=r"belong to another model: \d+ of \d+ entries match"):
        CLIPImageEncoder(wanted, weights)


def test_d42_one_missing_entry_is_an_error() -> None:
    state = visual_part(make_clip("tiny-vit").state_dict(), "test")
    del state["ln_post.weight"]
    with pytest.raises(CheckpointError, match=r"test: .*1 missing \(such as ln_post\.weight\)"):
        CLIPImageEncoder("tiny-vit", EncoderWeights(state, "test"))


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"fc.weight": torch.zeros(2)}, "Its 1 tensors are others, such as fc.weight"),
        ({"net": {f"layer{n}": torch.zeros(1) for n in range(5)}}, "5 tensors .* net.layer0, net.layer1, net.layer2$"),
    ],
)
def test_d42_no_matching_entry_is_an_error(tmp_path: Path, state: dict[str, Any], found: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=rf"other\.pt: holds no CLIP image encoder \(visual.*{found}"):
        load_clip_weights("tiny-vit", str(path))


@pytest.mark.parametrize("value", [[1, 2], {}, 3, torch.zeros(2), {"state_dict": {}}, {"a": "b"}])
def test_a_torch_file_without_a_state_dict(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "other.pt"
    torch.save(value, path)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state_dict(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such file"):
        read_state_dict(tmp_path / "a.safetensors")

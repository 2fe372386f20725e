"""How the input of weights from a file is normalised: by the config, by a tag, or by what stands beside the file."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import yaml
from test_layouts_of_weights import clip_state, to_transformers

from handclip.config.experiment import INPUT_KEYS
from handclip.config.loading import parse_config
from handclip.datasets.transforms import CLIP_MEAN, CLIP_STD, Preprocessing
from handclip.errors import CheckpointError, ConfigError
from handclip.models import resnet_weights
from handclip.models.builder import build_model
from handclip.models.clip_weights import load_clip_weights
from handclip.models.resnet import IMAGENET, ResNetEncoder

pytestmark = pytest.mark.usefixtures("tiny_models")

HALF = (0.5, 0.5, 0.5)
OPENAI = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic"}
SIGLIP = {"mean": HALF, "std": HALF, "interpolation": "bicubic"}
PE = {"mean": HALF, "std": HALF, "interpolation": "bilinear"}
MARKERS = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(8), "vocab_size": torch.tensor(50)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(clip_state(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Tags of tiny-vit, to be filled."""
    tags: dict[str, dict[str, Any]] = {}
    find = open_clip.get_pretrained_cfg

    def entry(model: str, tag: str) -> dict[str, Any]:
        return tags.get(tag, {}) if model == "tiny-vit" else find(model, tag)

    monkeypatch.setattr(open_clip, "get_pretrained_cfg", entry)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: list(tags))
    return tags


def preprocessing(path: Path, **values: Any) -> Preprocessing:
    """What the model that a config describes is given."""
    base = {"experiment": "a", "model": "tiny-vit", "dataset": "11k", "pretrained": str(path)}
    return build_model(parse_config({**base, **values}, "test")).encoder.preprocessing


def used(path: Path, **values: Any) -> dict[str, Any]:
    found = preprocessing(path, **values)
    return {name: getattr(found, name) for name in OPENAI}


# Which files are refused


def test_every_tag_that_is_not_openais_has_its_files_refused_until_it_is_named() -> None:
    """All of open_clip's weights, by the names that they are published under."""
    other = 0
    for model, tag in open_clip.list_pretrained():
        entry = open_clip.get_pretrained_cfg(model, tag)
        if {name: entry[name] for name in OPENAI} == OPENAI:
            continue
        other += 1
        with pytest.raises(ConfigError) as caught:
            resolve(model, {})
        assert f"  pretrained_tag: {tag}" in str(caught.value) or f" {tag}" in str(caught.value)
        assert resolve(model, {}, tag) == {name: entry[name] for name in OPENAI}
    assert other >= 52


def resolve(model: str, given: Mapping[str, Any], tag: str | None = None) -> dict[str, Any]:
    """What is known of a file of which nothing is known but what is given here."""
    from handclip.models.input_description import agreed, of_tag, require_known

    known = agreed([of_tag(model, tag)] if tag else [], given, Path("a.pt")).values
    require_known(model, Path("a.pt"), [*known, *given])
    return {**known, **given}


@pytest.mark.parametrize("model", ["vitb16", "ViT-B-16", "vitb32", "rn50", "vit_small", "ViT-H-14", "EVA02-B-16"])
def test_a_file_of_a_model_whose_tags_all_agree_with_openai_is_taken(model: str) -> None:
    assert resolve(model, {}) == {}


def test_the_refusal_says_what_to_write() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("vitl14", {})
    text = str(caught.value)
    assert "a.pt does not say how its input is normalised" in text
    half = "input_mean: [0.5, 0.5, 0.5], input_std: [0.5, 0.5, 0.5], interpolation: bicubic"
    assert f"\n  pretrained_tag: laion2b_s32b_b82k  # {half}\n" in text
    openai = "input_mean: [0.48145466, 0.4578275, 0.40821073], input_std: [0.26862954, 0.26130258, 0.27577711]"
    assert f"\n  pretrained_tag: openai  # {openai}, interpolation: bicubic; as laion400m_e31, " in text
    assert "open_clip_config.json" in text
    for line in text.splitlines():
        if line.startswith("  "):  # each can be copied into a config as it is
            values = yaml.safe_load(line)
            assert values.keys() == {"pretrained_tag"} and resolve("vitl14", {}, values["pretrained_tag"])


@pytest.mark.parametrize(
    ("model", "given", "enough"),
    [
        ("ViT-L-14", {"mean": HALF, "std": HALF}, True),  # all its tags are bicubic
        ("ViT-L-14", {"mean": HALF}, False),
        ("PE-Core-B-16", {"mean": HALF, "std": HALF}, False),
        ("PE-Core-B-16", PE, True),
        ("MobileCLIP2-S3", {"interpolation": "bilinear"}, True),
        ("MobileCLIP2-S3", {}, False),
    ],
)
def test_values_that_the_config_names_are_enough(model: str, given: dict[str, Any], enough: bool) -> None:
    if enough:
        assert resolve(model, given) == given
    else:
        lacking = {"mean": "input_mean", "std": "input_std", "interpolation": "interpolation"}.items()
        names = ", ".join(key for name, key in lacking if name not in given)
        what = f"its {names}" if given else "how its input is normalised"
        with pytest.raises(ConfigError, match=rf"(?s)does not say {what},.*or what is lacking itself \({names}\),"):
            resolve(model, given)


# What a model is given


def test_from_a_file_as_by_tag(path: Path, published: dict[str, dict[str, Any]]) -> None:
    published["siglip"] = dict(SIGLIP)
    published["quick"] = {**OPENAI, "quick_gelu": True}
    with pytest.raises(ConfigError, match=r"clip\.pt does not say how"):
        used(path)
    assert used(path, pretrained_tag="siglip") == SIGLIP
    assert used(path, pretrained_tag="quick") == OPENAI
    assert load_clip_weights("tiny-vit", str(path), tag="siglip").quick_gelu is False
    assert load_clip_weights("tiny-vit", str(path), tag="quick").quick_gelu is True
    with pytest.raises(ConfigError, match=r"quick_gelu: true: .* was trained with quick_gelu: false"):
        load_clip_weights("tiny-vit", str(path), True, tag="siglip")
    keys = {"input_mean": [0.5, 0.5, 0.5], "input_std": [0.5, 0.5, 0.5]}
    assert used(path, **keys) == SIGLIP
    assert used(path, **keys, interpolation="bilinear") == PE


def test_openais_own_archive_is_known(tmp_path: Path, published: dict[str, dict[str, Any]]) -> None:
    published["siglip"] = dict(SIGLIP)
    torch.save({**clip_state(), **MARKERS}, tmp_path / "archive.pt")
    assert used(tmp_path / "archive.pt") == OPENAI
    with pytest.raises(ConfigError, match=r"open_clip siglip says mean: \[0\.5, 0\.5, 0\.5\], but OpenAI's form says"):
        used(tmp_path / "archive.pt", pretrained_tag="siglip")


def test_what_is_known_can_be_overruled_by_the_config(
    path: Path, published: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    published["siglip"] = dict(SIGLIP)
    assert used(path, pretrained_tag="siglip", interpolation="bilinear") == PE
    assert "interpolation: bilinear is used, though" in caplog.text and "was trained with bicubic" in caplog.text
    said = {"mean": [0.1, 0.1, 0.1], "std": "broken", "interpolation": "bicubic"}
    write(path.parent, "open_clip_config.json", {"preprocess_cfg": said})
    assert used(path, input_mean=[0.5, 0.5, 0.5], input_std=[0.5, 0.5, 0.5]) == SIGLIP
    assert "input_mean: [0.5, 0.5, 0.5] is used, though" in caplog.text
    assert "trained with [0.1, 0.1, 0.1]" in caplog.text


def test_where_nothing_is_known_openais_values_are_used(path: Path) -> None:
    assert used(path) == OPENAI
    assert used(path, pretrained="none", input_mean=[0.5, 0.5, 0.5]) == {**OPENAI, "mean": HALF}
    assert preprocessing(path).resize_mode == "squash"
    assert preprocessing(path, resize_mode="longest").resize_mode == "longest"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretrained_tag": "siglib"}, r"pretrained_tag: open_clip has no weights 'siglib' .*Did you mean 'siglip'\?"),
        ({"pretrained": "none", "pretrained_tag": "siglip"}, "pretrained_tag: is read only where `pretrained` is a we"),
        ({"pretrained": "siglip", "pretrained_tag": "siglip"}, "pretrained_tag: is read only where"),
        ({"model": "resnet_small", "pretrained_tag": "siglip"}, "pretrained_tag: has no effect on resnet_small"),
    ],
)
def test_a_tag_that_says_nothing_is_refused(
    path: Path, published: dict[str, dict[str, Any]], values: dict[str, Any], message: str
) -> None:
    published["siglip"] = dict(SIGLIP)
    with pytest.raises(ConfigError, match=message):
        used(path, **values)


# Beside the file


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


MODEL_CFG = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}, PE),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, SIGLIP),
        ({"mean": None, "size": 64}, OPENAI),
    ],
)
def test_open_clips_description_beside_the_file(
    path: Path,
    published: dict[str, dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    said: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    published["meta"] = dict(PE)
    write(path.parent, "open_clip_config.json", {"model_cfg": MODEL_CFG, "preprocess_cfg": said})
    with caplog.at_level(logging.INFO, logger="handclip"):
        assert used(path) == expected
    assert f"{path}: {path.parent / 'open_clip_config.json'} says interpolation: " in caplog.text
    assert preprocessing(path).resize_mode == "squash"


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_description_tells_the_activation(path: Path, quick_gelu: bool, caplog: pytest.LogCaptureFixture) -> None:
    content = {"model_cfg": {**MODEL_CFG, **({"quick_gelu": True} if quick_gelu else {})}, "preprocess_cfg": {}}
    write(path.parent, "open_clip_config.json", content)
    assert load_clip_weights("tiny-vit", str(path)).quick_gelu is quick_gelu
    assert "which activation" not in caplog.text
    with pytest.raises(ConfigError, match="was trained with quick_gelu"):
        load_clip_weights("tiny-vit", str(path), not quick_gelu)


@pytest.mark.parametrize(
    ("changed", "other"),
    [({"embed_dim": 64}, "embed_dim: 64, not 32"), ({"vision_cfg": {"layers": 12}}, "layers: 12, not 3")],
)
def test_the_description_of_another_model_is_left_alone(
    path: Path,
    published: dict[str, dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, Any],
    other: str,
) -> None:
    write(path.parent, "open_clip_config.json", {"model_cfg": {**MODEL_CFG, **changed}, "preprocess_cfg": PE})
    with caplog.at_level(logging.INFO, logger="handclip"):
        assert used(path) == OPENAI
    assert f"describes another model than tiny-vit ({other})" in caplog.text
    published["meta"] = dict(PE)
    with pytest.raises(ConfigError, match="does not say how its input is normalised"):
        used(path)


def test_a_description_that_contradicts_the_tag_is_refused(path: Path, published: dict[str, dict[str, Any]]) -> None:
    published["siglip"] = dict(SIGLIP)
    write(path.parent, "open_clip_config.json", {"preprocess_cfg": dict(PE)})
    with pytest.raises(ConfigError, match=r"open_clip siglip says interpolation: bicubic, but .*json says bilinear"):
        used(path, pretrained_tag="siglip")
    assert used(path, pretrained_tag="siglip", interpolation="bilinear") == PE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"open_clip_config\.json: is damaged or is not JSON"),
        ("[]", "holds no JSON object"),
        ('{"preprocess_cfg": {"mean": [0.5, 0.5]}}', r"open_clip_config\.json: mean: \[0\.5, 0\.5\] cannot be used"),
        ('{"preprocess_cfg": {"std": [0, 0.5, 0.5]}}', r"std: \[0, 0\.5, 0\.5\] cannot be used: .* Say input_std in"),
        ('{"preprocess_cfg": {"mean": [123.7, 116.3, 103.5]}}', "mean: .* cannot be used"),
        ('{"preprocess_cfg": {"interpolation": "random"}}', "interpolation: 'random' cannot be used"),
        ('{"model_cfg": {"vision_cfg": 3}, "preprocess_cfg": {"mean": "half"}}', "mean: 'half' cannot be used"),
    ],
)
def test_a_damaged_description_is_refused(path: Path, content: str, message: str) -> None:
    (path.parent / "open_clip_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        used(path)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", None])
def test_the_transformers_librarys_description(path: Path, published: dict[str, dict[str, Any]], act: Any) -> None:
    published["siglip"] = dict(SIGLIP)
    torch.save(to_transformers(clip_state()), path)
    with pytest.raises(ConfigError, match="does not say how its input is normalised"):
        used(path)
    said: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}
    write(path.parent, "preprocessor_config.json", said)
    assert used(path) == PE
    write(path.parent, "preprocessor_config.json", {**said, "resample": 3})
    assert used(path) == SIGLIP
    inner = {} if act is None else {"hidden_act": act}
    write(path.parent, "config.json", {"model_type": "clip", "vision_config": inner})
    assert load_clip_weights("tiny-vit", str(path)).quick_gelu is (act != "gelu")
    write(path.parent, "preprocessor_config.json", {**said, "resample": [1]})
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: interpolation: \[1\] cannot be used"):
        used(path)


def test_its_description_is_not_that_of_a_file_in_another_layout(path: Path) -> None:
    write(path.parent, "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]})
    write(path.parent, "config.json", {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}})
    assert used(path) == OPENAI


# CNNs


def test_all_published_resnets_are_trained_with_imagenets_colours() -> None:
    """Else a file of theirs would need to be named, as CLIP's have to be."""
    tags = timm.list_pretrained("resnet50.*")
    assert tags
    for tag in tags:
        entry: Any = timm.get_pretrained_cfg(tag)
        assert (entry.mean, entry.std) == (IMAGENET["mean"], IMAGENET["std"])


@pytest.mark.parametrize("model", ["resnet_small", "mbanet_small"])
def test_a_cnn_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, model: str) -> None:
    path = tmp_path / "cnn.pth"
    torch.save(ResNetEncoder("resnet_small").trunk.state_dict(), path)
    imagenet = {**IMAGENET, "interpolation": "bicubic"}
    assert used(path, model=model) == imagenet
    write(
        tmp_path, "config.json", {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "interpolation": "x"}}
    )
    assert used(path, model=model) == {"mean": HALF, "std": (1, 1, 1), "interpolation": "bicubic"}
    assert not caplog.text
    keys = {"input_mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    expected = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "interpolation": "bilinear"}
    assert used(path, model=model, **keys) == expected
    assert "input_mean: [0.1, 0.2, 0.3] is used, though" in caplog.text
    assert used(path, model=model, pretrained="none", **keys) == {**expected, "std": IMAGENET["std"]}


def test_a_cnn_by_tag_has_the_tags_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(ResNetEncoder("resnet50").trunk.state_dict(), tmp_path / "a.pth")
    monkeypatch.setattr(resnet_weights, "fetch", lambda *_, **__: tmp_path / "a.pth")
    entry = timm.get_pretrained_cfg("resnet50.tv2_in1k")
    monkeypatch.setattr(entry, "mean", HALF)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: entry)
    weights = resnet_weights.load_resnet_weights("resnet50", "tv2_in1k")
    assert weights.preprocessing == {"mean": HALF, "std": IMAGENET["std"]}


# The keys


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_mean": [0.5, 0.5]}, "input_mean: should be three numbers from 0 to 1, of red, green and blue"),
        ({"input_mean": 0.5}, "input_mean: should be three numbers"),
        ({"input_mean": [123.7, 116.3, 103.5]}, "input_mean: should be three numbers from 0 to 1"),
        ({"input_std": [0.5, 0, 0.5]}, "input_std: should be three numbers above 0 and up to 1"),
        ({"interpolation": "bicubik"}, r"interpolation: .*Did you mean 'bicubic'\?"),
        ({"resize_mode": "crop"}, "resize_mode: .*'squash', 'shortest' or 'longest'"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"experiment": "a", "model": "vitb16", "dataset": "11k", **values}, "test")


def test_each_key_has_a_place_in_the_preprocessing() -> None:
    assert INPUT_KEYS.keys() == set(Preprocessing.__dataclass_fields__) - {"height", "width"}

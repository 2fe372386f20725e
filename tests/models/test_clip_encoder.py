import open_clip
import pytest
import torch
from torch import nn

from handclip.datasets.transforms import CLIP_MEAN, CLIP_STD
from handclip.errors import ConfigError
from handclip.models.clip_encoder import (
    ALIASES,
    CLIPImageEncoder,
    architecture,
    clip_model_names,
    open_clip_name,
)
from handclip.models.encoder import RANDOM, EncoderWeights

pytestmark = pytest.mark.usefixtures("tiny_models")

DIMS = {
    "vitb16": {"before_projection": 768, "projected": 512},
    "rn50": {"before_projection": 2048, "projected": 1024},
    "vit_small": {"before_projection": 192, "projected": 256},
    "rn_small": {"before_projection": 1024, "projected": 256},
    "tiny-timm-vit": {"before_projection": 64, "projected": 32},
}


def build(name: str, weights: EncoderWeights = RANDOM, **options: object) -> CLIPImageEncoder:
    torch.manual_seed(0)
    return CLIPImageEncoder(name, weights, **options)  # type: ignore[arg-type]


def images_for(encoder: CLIPImageEncoder, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, encoder.preprocessing.height, encoder.preprocessing.width)


@pytest.mark.parametrize("name", DIMS)
@pytest.mark.parametrize("embedding", ["projected", "before_projection", "both"])
def test_embeddings_have_the_dimensions_they_announce(name: str, embedding: str) -> None:
    encoder = build(name, embedding=embedding, input_size=None if "timm" in name else (64, 32))
    expected = DIMS[name] if embedding == "both" else {embedding: DIMS[name][embedding]}
    assert encoder.embedding_dims == expected
    embeddings = encoder(images_for(encoder))
    assert {key: tuple(value.shape) for key, value in embeddings.items()} == {k: (2, d) for k, d in expected.items()}
    assert list(embeddings) == list(expected)


@pytest.mark.parametrize("name", ["vit_small", "rn_small", "tiny-vit-quickgelu", "tiny-timm-vit"])
@pytest.mark.parametrize("embedding", ["projected", "before_projection", "both"])
def test_no_parameter_is_without_a_gradient(name: str, embedding: str) -> None:
    encoder = build(name, embedding=embedding)
    sum(value.square().sum() for value in encoder(images_for(encoder)).values()).backward()  # type: ignore[union-attr]
    without = [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["vit_small", "rn_small", "tiny-timm-vit"])
def test_the_embeddings_belong_together(name: str) -> None:
    """`both` holds what each choice gives alone, and before_projection is what the projection is applied to."""
    both = build(name, embedding="both").eval()
    images = images_for(both)
    with torch.no_grad():
        joint = both(images)
        for embedding in ("projected", "before_projection"):
            single = build(name, embedding=embedding)
            single.load_state_dict(both.state_dict(), strict=False)
            torch.testing.assert_close(single.eval()(images)[embedding], joint[embedding])
        if name == "vit_small":
            torch.testing.assert_close(joint["before_projection"] @ both.tower.proj, joint["projected"])


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "tiny-timm-vit", "tiny-timm-cnn"])
def test_features_are_open_clips_own(name: str) -> None:
    model = open_clip.create_model(name).eval()
    encoder = build(name, EncoderWeights(model.visual.state_dict())).eval()
    assert encoder.tower.state_dict().keys() == model.visual.state_dict().keys()  # and nothing of the text tower
    images = images_for(encoder, 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images)["projected"], model.encode_image(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
@pytest.mark.parametrize("size", [(64, 32), (32, 96), (128, 128), (32, 32)])
def test_d05_any_input_size(name: str, size: tuple[int, int]) -> None:
    state = open_clip.create_model(name).visual.state_dict()
    encoder = build(name, EncoderWeights(state), input_size=size).eval()
    assert (encoder.preprocessing.height, encoder.preprocessing.width) == size
    with torch.no_grad():
        assert torch.isfinite(encoder(torch.randn(2, 3, *size))["projected"]).all()
    # What is saved at one size is loaded at the same size without being resampled again (D-06).
    again = build(name, input_size=size).eval()
    again.load_state_dict(encoder.state_dict())
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(again(images)["projected"], encoder(images)["projected"])


@pytest.mark.parametrize(("name", "owner"), [("tiny-vit", "tower"), ("tiny-rn", "tower.attnpool")])
def test_d06_the_native_size_leaves_the_weights_alone(name: str, owner: str) -> None:
    state = open_clip.create_model(name).visual.state_dict()
    encoder = build(name, EncoderWeights(state), input_size=(64, 64))
    key = f"{owner}.positional_embedding".removeprefix("tower.")
    assert torch.equal(encoder.tower.state_dict()[key], state[key])


@pytest.mark.parametrize(("name", "columns"), [("tiny-vit", 4), ("tiny-rn", 2)])
def test_d06_position_embeddings_are_resized_in_two_dimensions(name: str, columns: int) -> None:
    """A ramp from left to right stays one when the height changes."""
    state = open_clip.create_model(name).visual.state_dict()
    key = next(key for key in state if key.endswith("positional_embedding"))
    ramp = torch.arange(columns, dtype=torch.float32).repeat(columns)
    state[key] = torch.cat([torch.zeros(1), ramp])[:, None].expand_as(state[key]).clone()
    encoder = build(name, EncoderWeights(state), input_size=(128, 64))
    resized = encoder.tower.state_dict()[key][1:, 0].reshape(2 * columns, columns)
    torch.testing.assert_close(resized, torch.arange(columns, dtype=torch.float32).expand(2 * columns, columns))


@pytest.mark.parametrize("name", ["vitb16", "rn50"])
def test_d05_the_originals_size_works_for_both_backbones(name: str) -> None:
    encoder = build(name, input_size=(224, 128)).eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 224, 128))["projected"].shape == (1, DIMS[name]["projected"])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_small", (112, 100), "width that is a multiple of 16 pixels, not 100"),
        ("vit_small", (8, 112), "height that is a multiple of 16 pixels, not 8"),
        ("rn_small", (112, 128), "height that is a multiple of 32 pixels, not 112"),
        ("rn_small", (128, 16), "width that is a multiple of 32 pixels, not 16"),
    ],
)
def test_a_size_that_does_not_fit_is_explained(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"input_size: {name} needs a {message}"):
        build(name, input_size=size)


def test_timm_towers_take_other_sizes_too() -> None:
    for name in ("tiny-timm-vit", "tiny-timm-cnn"):
        encoder = build(name, input_size=(96, 64))
        assert encoder(torch.randn(2, 3, 96, 64))["projected"].shape == (2, 32)
    with pytest.raises(ConfigError, match="input_size: tiny-timm-vit"):
        build("tiny-timm-vit", input_size=(100, 64))


def test_a_projection_inside_the_trunk_leaves_one_choice() -> None:
    for embedding in ("before_projection", "both"):
        with pytest.raises(ConfigError, match=f"embedding: {embedding}: tiny-timm-cnn has no feature before"):
            build("tiny-timm-cnn", embedding=embedding)


def test_quick_gelu_is_in_every_block_or_in_none() -> None:
    for quick_gelu in (True, False):
        encoder = build("vit_small", EncoderWeights(quick_gelu=quick_gelu))
        kinds = [type(module).__name__ for module in encoder.modules() if "GELU" in type(module).__name__]
        assert kinds == ["QuickGELU" if quick_gelu else "GELU"] * 6
        assert encoder.facts["quick_gelu"] is quick_gelu
    assert build("rn_small", EncoderWeights(quick_gelu=True)).facts["quick_gelu"] is None
    with pytest.raises(ConfigError, match="quick_gelu: true: tiny-timm-vit"):
        build("tiny-timm-vit", EncoderWeights(quick_gelu=True))


def test_names() -> None:
    assert open_clip_name("vitb16") == "ViT-B-16" and open_clip_name("rn_small") == "rn_small"
    assert {"vitb16", "vitb32", "vitl14", "rn50", "rn101", "vit_small", "rn_small"} <= set(clip_model_names())
    assert {"ViT-B-16", "ViT-B-16-quickgelu"} <= set(clip_model_names())
    assert all(architecture(name)["embed_dim"] for name in ALIASES)
    with pytest.raises(ConfigError, match=r"model: there is no model 'vitb61'\. Did you mean 'vitb16'\?"):
        build("vitb61")


def test_the_small_models_are_as_large_as_they_say_and_take_openais_input() -> None:
    for name, millions in (("vit_small", 2.9), ("rn_small", 5.4)):
        encoder = build(name)
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
        said = encoder.preprocessing
        assert (said.mean, said.std, said.interpolation) == (CLIP_MEAN, CLIP_STD, "bicubic")


def test_random_residual_towers_start_with_every_layer_awake() -> None:
    last_norms = [m.bn3 for m in build("rn_small").modules() if isinstance(getattr(m, "bn3", None), nn.BatchNorm2d)]
    assert all(norm.weight.detach().abs().sum() > 0 for norm in last_norms)

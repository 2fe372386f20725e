import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from handclip.errors import ConfigError
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.encoder import freeze_encoder
from handclip.models.mbanet import MBANetEncoder

MEMORY = Path(__file__).parents[2] / "benchmarks" / "mbanet_memory.py"
READINGS = ["published", "intended"]
BIASES = {
    f"{module}.{projection}_conv.0.bias": "the batch norm behind it takes the mean of each channel out again"
    for module in ("sam_att3", "sam_att4")
    for projection in ("query", "key", "value")
}
"""Parameters without an effect on the output, and why."""


def small(reading: str = "published", side: int = 64, seed: int = 0) -> MBANetEncoder:
    torch.manual_seed(seed)
    return MBANetEncoder("mbanet_small", relative_position=reading, input_size=(side, side))


def move_gammas(encoder: MBANetEncoder, to: float = 0.5) -> None:
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, to)


def images(count: int = 4, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def bottleneck_by_hand(inputs: int, width: int, first: bool) -> int:
    convolutions = inputs * width + 9 * width * width + width * 4 * width
    norms = 2 * (width + width + 4 * width)
    return convolutions + norms + (inputs * 4 * width + 2 * 4 * width if first else 0)


def spatial_attention_by_hand(channels: int, side: int) -> int:
    narrow = channels // 8
    query_or_key = channels * narrow + narrow + 2 * narrow
    value = channels * channels + channels + 2 * channels
    tables = 2 * (2 * side - 1) * narrow
    return 2 * query_or_key + value + tables + 2 * (2 * channels) + 1


def test_the_parameters_of_the_full_size_counted_by_hand() -> None:
    trunk = 3 * 64 * 49 + 2 * 64
    inputs = 64
    for blocks, width in [(3, 64), (4, 128), (6, 256), (3, 512)]:
        for block in range(blocks):
            trunk += bottleneck_by_hand(inputs, width, first=block == 0)
            inputs = 4 * width
    assert trunk == 23_508_032
    attention = spatial_attention_by_hand(1024, 21) + spatial_attention_by_hand(2048, 21) + 2
    encoder = MBANetEncoder("mbanet")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == trunk + attention
    assert sum(parameter.numel() for parameter in encoder.new_parameters()) == attention
    assert encoder.embedding_dims == {"global": 2048, "spatial": 2048, "channel": 2048}
    assert (encoder.preprocessing.height, encoder.preprocessing.width) == (324, 324)


def test_the_maps_of_the_full_size() -> None:
    encoder = MBANetEncoder("mbanet")
    sizes = {}
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(encoder.backbone, name).register_forward_hook(
            lambda module, given, out, name=name: sizes.update({name: tuple(out.shape[1:])})
        )
    with torch.no_grad():
        encoder.eval()(images(1, 324))
    assert sizes == {
        "maxpool": (64, 81, 81),
        "layer1": (256, 81, 81),
        "layer2": (512, 41, 41),
        "layer3": (1024, 21, 21),
        "layer4": (2048, 21, 21),
    }


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("training", [False, True])
def test_the_three_branches_agree_where_gamma_is_0_and_nowhere_else(reading: str, training: bool) -> None:
    encoder = small(reading).train(training)
    embeddings = encoder(images())
    assert list(embeddings) == ["global", "spatial", "channel"]
    assert embeddings["global"].shape == (4, 512)
    pairs = list(combinations(embeddings, 2))
    assert all(torch.equal(embeddings[one], embeddings[other]) for one, other in pairs)
    move_gammas(encoder)
    embeddings = encoder(images())
    assert not any(torch.allclose(embeddings[one], embeddings[other], rtol=0.01) for one, other in pairs)


def test_the_branches_share_one_layer4() -> None:
    encoder = small()
    calls = []
    encoder.backbone.layer4.register_forward_hook(lambda *_: calls.append("layer4"))
    encoder.backbone.layer3.register_forward_hook(lambda *_: calls.append("layer3"))
    encoder(images())
    assert calls == ["layer3", "layer4", "layer4", "layer4"]
    assert len({id(parameter) for parameter in encoder.parameters()}) == len(
        list(encoder.state_dict(keep_vars=True))
    ) - sum(1 for _ in encoder.buffers())


@pytest.mark.parametrize("reading", READINGS)
def test_the_gradient_reaches_every_parameter_once_gamma_moves(reading: str) -> None:
    encoder = small(reading).train()
    move_gammas(encoder)
    target = torch.randn(3, 4, 512, generator=torch.Generator().manual_seed(2))
    torch.stack(list(encoder(images()).values())).mul(target).sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert BIASES.keys() <= gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
        if name in BIASES:
            weight = gradients[name.replace("bias", "weight")]
            assert weight is not None and gradient.abs().max() < 1e-3 * weight.abs().max(), f"{name}: {BIASES[name]}"
        else:
            assert gradient.any(), f"the gradient of {name} is zero"


def test_at_first_only_gamma_learns_in_the_attention() -> None:
    encoder = small().train()
    torch.stack(list(encoder(images()).values())).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if name.startswith(("sam_att", "cam_att")):
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) is name.endswith("gamma"), name
        else:
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("reading", READINGS)
def test_under_autocast_it_is_finite_and_close(reading: str) -> None:
    encoder = small(reading).train()
    move_gammas(encoder)
    plain = encoder(images())
    with torch.autocast("cpu", torch.bfloat16):
        narrow = encoder(images())
    for name, embedding in narrow.items():
        assert torch.isfinite(embedding).all()
        similarity = nn.functional.cosine_similarity(embedding.float(), plain[name])
        assert similarity.min() > 0.99, name
    torch.stack(list(narrow.values())).float().square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("size", [(224, 128), (64, 128)])
def test_the_published_reading_needs_a_square(size: tuple[int, int]) -> None:
    with pytest.raises(
        ConfigError, match=r"input_size: \d+x128 gives a map .* relative_position: published needs a sq"
    ):
        MBANetEncoder("mbanet_small", input_size=size)
    encoder = MBANetEncoder("mbanet_small", input_size=size, relative_position="intended")
    move_gammas(encoder)
    assert all(torch.isfinite(e).all() for e in encoder(torch.randn(2, 3, *size)).values())
    assert encoder.sam_att3.rel_rows.shape[0] == 2 * max(-(-side // 16) for side in size) - 1


@pytest.mark.parametrize("side", [112, 100, 97, 324 // 3])
def test_any_square_size_fits_its_tables(side: int) -> None:
    encoder = small(side=side)
    assert encoder(images(2, side))["spatial"].shape == (2, 512)


@pytest.mark.parametrize(
    ("freeze", "prefixes"),
    [
        ("all_but_last_1", ("backbone.layer4.", "sam_att", "cam_att")),
        ("all_but_last_2", ("backbone.layer3.", "backbone.layer4.", "sam_att", "cam_att")),
        ("all_but_last_4", ("backbone.layer", "sam_att", "cam_att")),
        ("all_but_last_5", ("",)),
    ],
)
def test_the_last_blocks_train(freeze: str, prefixes: tuple[str, ...]) -> None:
    encoder = small()
    freeze_encoder(encoder, freeze)
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad is name.startswith(prefixes), name
    model = EmbeddingModel(encoder).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    model(images())
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(buffer, before[name]) is not name.startswith(prefixes), name


def test_the_full_size_trains_in_less_than_6_gigabytes() -> None:
    """A step of 2 images of 324 pixels, half a step of 4, with heads, loss and optimizer, in a process of its own."""
    done = subprocess.run([sys.executable, MEMORY, "--batch", "2"], capture_output=True, text=True, check=True)
    assert "batch 2, 324 px" in done.stdout
    peak = float(done.stdout.split("peak memory ")[1].split(" GiB")[0])
    assert 1 < peak < 3e9 / 2**30

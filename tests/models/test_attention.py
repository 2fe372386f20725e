"""MBA-Net's attention against loops written from the formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handclip.models.attention import ChannelAttention, SpatialAttention

READINGS = ["published", "intended"]


def spatial(channels: int = 16, size: tuple[int, int] = (3, 3), reading: str = "published") -> SpatialAttention:
    torch.manual_seed(0)
    module = SpatialAttention(channels, size, reading)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def normalise(maps: list[Tensor], norm: Any) -> list[Tensor]:
    """Batch norm in training mode: each channel over all images and positions."""
    stacked = torch.stack(maps)
    mean = stacked.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((stacked - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scale, shift = (value.detach().double().view(1, -1, 1, 1) for value in (norm.weight, norm.bias))
    return list((stacked - mean) / (variance + norm.eps).sqrt() * scale + shift)


def test_channel_attention_equals_loops() -> None:
    module = ChannelAttention()
    nn.init.constant_(module.gamma, 0.7)
    x = 0.3 * features(2, 5, 3, 2)
    got = module(x)
    for image, out in zip(x.double(), got, strict=True):
        channels = [channel.flatten().tolist() for channel in image]
        for i, own in enumerate(channels):
            energy = [sum(a * b for a, b in zip(own, other, strict=True)) for other in channels]
            weights = softmax([max(energy) - value for value in energy])
            for n in range(6):
                expected = 0.7 * sum(w * other[n] for w, other in zip(weights, channels, strict=True)) + own[n]
                assert out[i].flatten()[n].item() == pytest.approx(expected, abs=1e-5)


def loops(module: SpatialAttention, x: Tensor, reading: str) -> list[Tensor]:
    """The output for a batch in training mode, position by position in float64."""
    height, width = x.shape[2:]
    positions = [(h, w) for h in range(height) for w in range(width)]
    largest = max(height, width) - 1
    tables = [table.detach().double() for table in (module.rel_rows, module.rel_columns)]
    with torch.no_grad():
        projected = [conv(x).double() for conv in (module.query_conv, module.key_conv, module.value_conv)]
    attended, rows, columns = [], [], []
    for q, k, v in zip(*projected, strict=True):
        y, e_h, e_w = (torch.zeros_like(v) for _ in range(3))
        for h, w in positions:
            weights = softmax([float(q[:, h, w] @ k[:, i, j]) for i, j in positions])
            for weight, (i, j) in zip(weights, positions, strict=True):
                y[:, h, w] += weight * v[:, i, j]
            if reading == "intended":
                for i in range(height):
                    e_h[:, h, w] += float(q[:, h, w] @ tables[0][i - h + largest]) * v[:, i, w]
                for j in range(width):
                    e_w[:, h, w] += float(q[:, h, w] @ tables[1][j - w + largest]) * v[:, h, j]
            else:
                # The pair (x, i) of a query and a key position stands at the place of position (x, i) of the map.
                for query, key in positions:
                    for table, out in zip(tables, (e_h, e_w), strict=True):
                        out[:, h, w] += float(table[key - query + largest] @ q[:, h, w]) * v[:, query, key]
        attended.append(y)
        rows.append(e_h)
        columns.append(e_w)
    rows, columns = normalise(rows, module.bnormr), normalise(columns, module.bnormc)
    gamma = module.gamma.item()
    return [gamma * (y + r + c) + own for y, r, c, own in zip(attended, rows, columns, x.double(), strict=True)]


@pytest.mark.parametrize(
    ("reading", "size"), [("published", (3, 3)), ("intended", (3, 3)), ("intended", (2, 4)), ("intended", (4, 2))]
)
def test_spatial_attention_equals_loops(reading: str, size: tuple[int, int]) -> None:
    module = spatial(size=size, reading=reading)
    nn.init.constant_(module.gamma, 0.6)
    x = features(2, 16, *size)
    got = module(x)
    for out, expected in zip(got, loops(module, x, reading), strict=True):
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_readings_differ() -> None:
    outputs = []
    for reading in READINGS:
        module = spatial(reading=reading)
        nn.init.ones_(module.gamma)
        outputs.append(module(features(2, 16, 3, 3)))
    assert not torch.allclose(*outputs, atol=0.1)


@pytest.mark.parametrize("module", [ChannelAttention(), *(spatial(reading=r) for r in READINGS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_gamma_0_it_is_the_identity(module: nn.Module, dtype: torch.dtype) -> None:
    x = features(2, 16, 3, 3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        assert torch.equal(module(x), x)


def test_energies_are_float32_under_autocast() -> None:
    """In bfloat16 the energies of two channels that differ by 1 in 1000 would be equal, and so would their weights."""
    module = ChannelAttention()
    nn.init.ones_(module.gamma)
    x = torch.ones(1, 2, 10, 100)
    x[0, 1] = 1.001
    plain = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), plain)


@pytest.mark.parametrize("reading", READINGS)
def test_positions_are_weighed_in_float32_under_autocast(reading: str) -> None:
    module = spatial(size=(7, 7), reading=reading).eval()
    nn.init.ones_(module.gamma)
    # The projections may be in bfloat16; without them, autocast should change nothing.
    module.query_conv = module.key_conv = module.value_conv = nn.Identity()
    module.rel_rows, module.rel_columns = (nn.Parameter(features(13, 16)) for _ in range(2))
    x = features(2, 16, 7, 7)
    plain = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), plain)

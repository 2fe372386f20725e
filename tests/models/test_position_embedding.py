import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from handclip.models.position_embedding import resize_position_embedding


def ramp(rows: int, columns: int) -> Tensor:
    """Two channels that rise from 0 to 1: one from top to bottom, one from left to right. The token is (7, 8)."""
    vertical = ((torch.arange(rows) + 0.5) / rows)[:, None].expand(rows, columns)
    horizontal = ((torch.arange(columns) + 0.5) / columns)[None, :].expand(rows, columns)
    return torch.cat([torch.tensor([[7.0, 8.0]]), torch.stack([vertical, horizontal], dim=-1).reshape(-1, 2)])


def test_d06_the_same_grid_is_the_same_tensor() -> None:
    embedding = torch.randn(1 + 49, 4)
    assert resize_position_embedding(embedding, (7, 7), (7, 7)) is embedding


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (14, 8)), ((7, 7), (14, 14)), ((16, 16), (8, 16)), ((9, 6), (6, 9))]
)
def test_d06_a_ramp_stays_a_ramp_in_both_directions(old: tuple[int, int], new: tuple[int, int]) -> None:
    resized = resize_position_embedding(ramp(*old), old, new)
    expected = ramp(*new)
    assert resized.shape == expected.shape
    assert torch.equal(resized[0], expected[0])
    grid, wanted = (tensor[1:].reshape(*new, 2) for tensor in (resized, expected))
    # Bicubic weights keep a straight line away from the border, where it has no neighbours to lean on.
    torch.testing.assert_close(grid[2:-2, 2:-2], wanted[2:-2, 2:-2], rtol=0, atol=0.02)
    torch.testing.assert_close(grid, wanted, rtol=0, atol=0.1)
    # Each channel varies along its own axis only: nothing was scrambled.
    assert grid[..., 0].std(dim=1).max() < 1e-5
    assert grid[..., 1].std(dim=0).max() < 1e-5


@settings(derandomize=True, deadline=None, max_examples=50)
@given(old=st.tuples(st.integers(1, 9), st.integers(1, 9)), new=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_constant_embeddings_stay_and_the_token_is_untouched(old: tuple[int, int], new: tuple[int, int]) -> None:
    embedding = torch.cat([torch.full((1, 3), -5.0), torch.full((old[0] * old[1], 3), 2.0)]).half()
    resized = resize_position_embedding(embedding, old, new)
    assert resized.dtype == torch.float16
    assert resized.shape == (1 + new[0] * new[1], 3)
    assert torch.equal(resized[0], embedding[0])
    torch.testing.assert_close(resized[1:], torch.full_like(resized[1:], 2.0))

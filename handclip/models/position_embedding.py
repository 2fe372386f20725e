"""Position embeddings for another input size."""

import torch.nn.functional as F
from torch import Tensor, cat


def resize_position_embedding(embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample position embeddings in two dimensions.

    Args:
        embedding: shape (1 + rows * columns, D): one vector for the class (or pooled) token, then the grid row by row.
        old_grid: its (rows, columns).
        new_grid: the (rows, columns) wanted.

    Returns:
        Shape (1 + new rows * new columns, D); the very same tensor where the grid does not change.
    """
    if old_grid == new_grid:
        return embedding
    token, grid = embedding[:1], embedding[1:]
    image = grid.float().T.reshape(1, -1, *old_grid)
    resized = F.interpolate(image, new_grid, mode="bicubic", antialias=True, align_corners=False)
    return cat([token, resized.flatten(2)[0].T.to(embedding.dtype)])

"""MBA-Net's attention modules (Baisa et al. 2022, "Multi-Branch with Attention Network for Hand-Based Person
Recognition"): over channels, and over positions with a relative position encoding.

Both add what they find to their input, times gamma, which starts at 0: at first each is the identity. Their parameters
have the authors' names. Energies, softmax and sums are computed in float32 even under autocast: a sum over 441
positions of unbounded products is more than bfloat16's three digits bear.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class ChannelAttention(nn.Module):
    r"""Attention of each channel to the channels least like it, without parameters but gamma.

    With $X \in \mathbb{R}^{C \times N}$ the map's channels over its $N$ positions and $E = X X^T$:
    $A = \mathrm{softmax}_{rows}(\max_{row} E - E)$, and the output is $\gamma A X + X$.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and type."""
        with _float32(features):
            channels = features.float().flatten(2).unsqueeze(1)
            # The row's maximum is left out: softmax does not see a number added to a whole row. Fused, the C x C
            # weights need not be kept for the gradient, which halves the time and nearly all of the memory.
            attended = scaled_dot_product_attention(-channels, channels, channels, scale=1.0)
            return (features + self.gamma * attended.view_as(features)).to(features.dtype)


class SpatialAttention(nn.Module):
    r"""Attention of each position to all others, with a relative position encoding.

    $q, k \in \mathbb{R}^{C/8 \times N}$ and $v \in \mathbb{R}^{C \times N}$ come from 1x1 convolutions, each with batch
    norm and ReLU. $A = \mathrm{softmax}_{rows}(q^T k)$, $Y = v A^T$, and the output is
    $\gamma (Y + \mathrm{BN}(E_h) + \mathrm{BN}(E_w)) + X$. Tables $R_h, R_w$ hold a vector of $C/8$ numbers for each
    shift from $-(L-1)$ to $L-1$, where $L$ is the larger side of the map. There are two readings of the position terms:

    `published`, as the authors' code has it: row $p = xW + i$ of $P_h$ is $R_h[i - x]$, and $E_h = v (P_h q)$. Pairs
    (query $x$, key $i$) stand where positions should, so what it encodes is which diagonal of the map a position lies
    on. $E_w$ is the same with $R_w$.

    `intended`, as the paper describes it: $E_h[c,h,w] = \sum_i (q[h,w] \cdot R_h[i-h])\, v[c,i,w]$ along the column,
    and $E_w[c,h,w] = \sum_j (q[h,w] \cdot R_w[j-w])\, v[c,h,j]$ along the row. The authors' code holds another way to
    compute the terms, commented out, with the same $E_h$; its $E_w$ sums $v[c,i,w]$ down the column, with the
    weights $q[h,w] \cdot R_w[i-w]$ that belong to a row.
    """

    def __init__(self, channels: int, size: tuple[int, int], relative_position: str) -> None:
        """Make the module for a map of `channels` (a multiple of 8) and `size` (height, width).

        Args:
            channels: C.
            size: (height, width) of the map in positions; `published` needs a square.
            relative_position: `published` or `intended`.
        """
        super().__init__()
        self.position_terms = {"published": _published, "intended": _intended}[relative_position]
        shifts = 2 * max(size) - 1
        self.query_conv = _projection(channels, channels // 8)
        self.key_conv = _projection(channels, channels // 8)
        self.value_conv = _projection(channels, channels)
        self.rel_rows = nn.Parameter(torch.randn(shifts, channels // 8))
        self.rel_columns = nn.Parameter(torch.randn(shifts, channels // 8))
        self.bnormr = nn.BatchNorm2d(channels)
        self.bnormc = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and type."""
        query, key, value = self.query_conv(features), self.key_conv(features), self.value_conv(features)
        with _float32(features):
            query, key, value = query.float(), key.float(), value.float()
            weights = (query.flatten(2).mT @ key.flatten(2)).softmax(dim=-1)
            attended = (value.flatten(2) @ weights.mT).view_as(features)
            rows, columns = self.position_terms(query, value, self.rel_rows, self.rel_columns)
            found: Tensor = attended + self.bnormr(rows) + self.bnormc(columns)
            return (features + self.gamma * found).to(features.dtype)


def _published(query: Tensor, value: Tensor, rel_rows: Tensor, rel_columns: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (
        (value.flatten(2) @ (_by_shift(table, query.shape[-1]).flatten(0, 1) @ query.flatten(2))).view_as(value)
        for table in (rel_rows, rel_columns)
    )
    return rows, columns


def _intended(query: Tensor, value: Tensor, rel_rows: Tensor, rel_columns: Tensor) -> tuple[Tensor, Tensor]:
    height, width = query.shape[2:]
    along_column = torch.einsum("bdhw,hid->bwhi", query, _by_shift(rel_rows, height))
    along_row = torch.einsum("bdhw,wjd->bhwj", query, _by_shift(rel_columns, width))
    return (
        torch.einsum("bwhi,bciw->bchw", along_column, value),
        torch.einsum("bhwj,bchj->bchw", along_row, value),
    )


def _by_shift(table: Tensor, side: int) -> Tensor:
    """Return the vector of shift i - x for each pair (x, i) of a side's positions, shape (side, side, D)."""
    positions = torch.arange(side, device=table.device)
    return table[positions[None, :] - positions[:, None] + table.shape[0] // 2]


def _projection(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel_size=1), nn.BatchNorm2d(out), nn.ReLU())


def _float32(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)

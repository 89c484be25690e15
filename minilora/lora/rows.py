"""One Linear, and beside it the low-rank updates of many adapters, a group of rows each.

    y[g] += (x[g] A[g]ᵀ) B[g]        x (groups, tokens, in), A (groups, r, in), B (groups, r, out)

The base's product is shared by all rows; the updates are two batched products, whatever the number
of adapters. Scaling is folded into B, a group without an adapter has zeros, and a smaller rank is
filled up with zeros. Two wings use it: ``serving`` gives each row of a batch an adapter (a group is
a row), ``training/many.py`` trains several at once (a group is one adapter's part of the batch).

Punica (arXiv 2310.18547) and S-LoRA (arXiv 2311.03285) have GPU kernels of their own for it, which
read the factors where they lie. Here two ``bmm`` take factors that lie ready, row by row; the other
ways, and what they cost on a CPU, are in lesson 21.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_rows(y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``y[g] + (x[g] A[g]ᵀ) B[g]``; without gradients in place, so y must be nobody else's.

    x (groups · k, …, in) and y (groups · k, …, out) hold k rows a group, one group after the other.
    All in one dtype, x and y contiguous. Returns y's shape. Raises ``ValueError`` for rows that
    do not divide into groups.
    """
    groups = len(A)
    check_groups(x, groups)
    tokens = x.reshape(groups, -1, x.shape[-1])  # (groups, tokens, in)
    h = torch.bmm(tokens, A.transpose(1, 2))  # (groups, tokens, r)
    sums = y.view(groups, -1, y.shape[-1])  # (groups, tokens, out)
    if torch.is_grad_enabled():
        return torch.baddbmm(sums, h, B).view(y.shape)
    sums.baddbmm_(h, B)
    return y


def add_rows_plainly(y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The same as the equation reads, group by group, in A's precision, rounded to y's dtype."""
    check_groups(x, len(A))
    groups = zip(y.chunk(len(A)), x.chunk(len(A)), A, B, strict=True)
    return torch.cat(
        [(yg + (xg.to(Ag.dtype) @ Ag.T) @ Bg).to(y.dtype) for yg, xg, Ag, Bg in groups]
    )


def check_groups(x: Tensor, groups: int) -> None:
    """Raise ``ValueError`` when the rows are not equally many for each group."""
    if len(x) % groups:
        raise ValueError(
            f"{len(x)} rows do not divide into {groups} groups: expected equally many for each"
        )

"""How far two computations of the same thing may lie apart, derived once and for all from the dtype and the sizes.

A dot product of n terms in floating point with unit roundoff u obeys (Higham, Accuracy and Stability, 2nd ed., section 3.1)

    |fl(x·y) - x·y| <= γ_n |x|·|y|        γ_n = n u / (1 - n u)

whatever the order of summation, so it holds for every BLAS; kernels that accumulate half precision in float32 only do
better. Every further rounding of a result adds one to n. Underflow, which the model leaves out, adds at most the smallest
normal number of the dtype a term.
"""

import torch
from torch import Tensor


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, dtype: torch.dtype) -> float:
    """γ_n; only meaningful while n u < 1."""
    nu = n * unit_roundoff(dtype)
    assert nu < 0.5, f"{n} terms are too many for {dtype}"
    return nu / (1 - nu)


def magnitude(x: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """|x| |W|ᵀ + |b| and scaling (|x| |A|ᵀ) |B|ᵀ in float64: what rounding errors are measured against."""
    x, W, A, B = (t.detach().double().abs() for t in (x, W, A, B))
    plain = x @ W.T + (0 if bias is None else bias.detach().double().abs())
    return plain, scaling * (x @ A.T) @ B.T


def forward_bound(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Error of one computed LoRA forward, entry by entry: two products in a row, a scale, two sums."""
    plain, low = magnitude(x, W, A, B, scaling, bias)
    terms = x.shape[-1] + len(A)
    return gamma(terms + 6, dtype) * (plain + low) + terms * torch.finfo(dtype).tiny


def backward_bound(g: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """Error of ∂L/∂x = g W + scaling (g B) A: a forward through the transposed matrices."""
    return forward_bound(g, W.T, B.T, A.T, scaling, None, dtype)


def merged_bound(x: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Distance of a merged from an unmerged forward: both have the error above, and W0 + ΔW is itself rounded once more."""
    return 2 * forward_bound(x, W, A, B, scaling, bias, dtype)

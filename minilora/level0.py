"""LoRA and NF4 in NumPy, as the definitions read. No torch; the oracle of the tests.

LoRA
----

    y = x W0ᵀ + b + s · (x Aᵀ) Bᵀ        s = alpha / r

Shapes: x (…, in), W0 (out, in), b (out,), A (r, in), B (out, r), y (…, out). Everything is computed
in float64.

The backward, for g = ∂L/∂y flattened to (tokens, out) and h = x Aᵀ (tokens, r), is three uses of
one rule: the gradient of a product with respect to one factor is the incoming gradient times the
other factor.

    ∂L/∂B = s · gᵀ h            (out, r)
    ∂L/∂A = s · (g B)ᵀ x        (r, in)
    ∂L/∂x = g W0 + s · (g B) A  (…, in)

W0 and b are frozen: their gradients are not computed, which is where a LoRA step saves its time.

Source: LoRA (arXiv 2106.09685) section 4.1.

A mixed batch
-------------
    y[i] = x[i] W0ᵀ + b + s[i] · (x[i] A[i]ᵀ) B[i]ᵀ

One base, and for each row of the batch the factors of an adapter of its own; a row without one has
zeros. What stands in the other rows changes nothing.

Sources: Punica (arXiv 2310.18547) and S-LoRA (arXiv 2311.03285), abstracts.

NF4
---
    absmax = the block's largest |w|
    code   = how many midpoints of the 16 levels lie strictly below w / absmax
    ŵ      = level[code] · absmax

The levels are quantiles of a normal distribution, so that each code is about equally likely for
normal weights, with an exact zero. Blocks are runs of 64 values of the flattened tensor; two codes
share a byte, the first in the high half. Everything is computed in float32, operation by operation
as bitsandbytes does, so that the bytes come out equal.

Source: QLoRA (arXiv 2305.14314) section 3 and appendix E.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "NF4",
    "LoRAGradients",
    "delta_weight",
    "lora_backward",
    "lora_forward",
    "mixed_forward",
    "nf4_dequantize",
    "nf4_levels",
    "nf4_quantize",
]

Array = NDArray[np.float64]


class LoRAGradients(NamedTuple):
    """Gradients of a loss with respect to x (…, in), A (r, in) and B (out, r).

    >>> lora_backward([[1.0]], [[1, 2]], W=[[1, 0]], A=[[1, 1]], B=[[3]], alpha=2)._fields
    ('x', 'A', 'B')
    """

    x: Array
    A: Array
    B: Array


def lora_forward(
    x: ArrayLike,
    W: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    alpha: float,
    bias: ArrayLike | None = None,
) -> Array:
    """``x Wᵀ + bias + (alpha / r) (x Aᵀ) Bᵀ``. Raises ``ValueError`` when the shapes do not fit.

    >>> lora_forward([[1, 2]], W=[[1, 0]], A=[[1, 1]], B=[[3]], alpha=2)  # 1 + 2 · 3 · (1 + 2)
    array([[19.]])
    """
    x, W, A, B = check_shapes(x, W, A, B)
    b = np.zeros(len(W)) if bias is None else np.asarray(bias, dtype=np.float64)
    if b.shape != (len(W),):
        raise ValueError(
            f"bias must have one number for each of the {len(W)} outputs, got shape {b.shape}"
        )
    return x @ W.T + b + (alpha / len(A)) * (x @ A.T) @ B.T


def lora_backward(
    grad_y: ArrayLike, x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike, alpha: float
) -> LoRAGradients:
    """Gradients of x, A and B for a given ∂L/∂y (…, out); W and the bias are frozen.

    >>> lora_backward([[1.0]], [[1, 2]], W=[[1, 0]], A=[[1, 1]], B=[[3]], alpha=2).A
    array([[ 6., 12.]])
    """
    x, W, A, B = check_shapes(x, W, A, B)
    g = np.asarray(grad_y, dtype=np.float64)
    if g.shape != (y_shape := (*x.shape[:-1], len(W))):
        raise ValueError(f"grad_y must have the shape of y, {y_shape}, got {g.shape}")
    s = alpha / len(A)
    # (tokens, in), (tokens, out)
    flat_x, flat_g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    h = flat_x @ A.T  # (tokens, r)
    dh = s * flat_g @ B  # (tokens, r)
    return LoRAGradients(x=g @ W + (dh @ A).reshape(x.shape), A=dh.T @ flat_x, B=s * flat_g.T @ h)


def delta_weight(A: ArrayLike, B: ArrayLike, alpha: float) -> Array:
    """``ΔW = (alpha / r) B A``, (out, in): what a merge adds to W0.

    Raises ``ValueError`` when the shapes do not fit.

    >>> delta_weight(A=[[1, 1]], B=[[3], [0]], alpha=2)
    array([[6., 6.],
           [0., 0.]])
    """
    A, B = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
    if A.ndim != 2 or B.ndim != 2 or B.shape[1] != len(A):
        raise ValueError(f"expected A (r, in) and B (out, r), got A {A.shape}, B {B.shape}")
    return (alpha / len(A)) * B @ A


def mixed_forward(
    x: ArrayLike,
    W: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    scaling: ArrayLike,
    bias: ArrayLike | None = None,
) -> Array:
    """A batch whose rows have adapters of their own, one row after the other.

    x (rows, …, in), W (out, in), A (rows, r, in), B (rows, out, r), scaling (rows,); a row without
    an adapter has zeros for A and B. Returns (rows, …, out). Raises ``ValueError`` when the counts
    of rows differ, or as ``lora_forward``.

    >>> x, A, B = [[1.0, 2.0], [1.0, 2.0]], [[[1, 1]], [[0, 0]]], [[[3]], [[0]]]
    >>> mixed_forward(x, [[1, 0]], A, B, scaling=[2, 1])
    array([[19.],
           [ 1.]])
    """
    x, A, B, scaling = (np.asarray(array, dtype=np.float64) for array in (x, A, B, scaling))
    counts = {array.shape[0] if array.ndim else None for array in (x, A, B, scaling)}
    if len(counts) > 1 or None in counts:
        shapes = f"x {x.shape}, A {A.shape}, B {B.shape}, scaling {scaling.shape}"
        raise ValueError(f"expected as many A, B and scalings as rows of x, got {shapes}")
    rows = zip(x, A, B, scaling, strict=True)
    return np.stack([lora_forward(xi, W, Ai, Bi, s * len(Ai), bias) for xi, Ai, Bi, s in rows])


class NF4(NamedTuple):
    """A quantized tensor: two codes a byte, one float32 scale a block, the shape and block size.

    >>> nf4_quantize([[0.0, -2.0], [1.0, 2.0]]).absmax
    array([2.], dtype=float32)
    """

    packed: NDArray[np.uint8]
    absmax: NDArray[np.float32]
    shape: tuple[int, ...]
    block_size: int


def nf4_levels() -> NDArray[np.float32]:
    """The 16 levels, ascending: 7 negative quantiles, zero, 8 positive ones, over the largest.

    The outermost probability, 929/960 = 1 - (1/32 + 1/30)/2, lies half-way between the last of 32
    and the last of 30 equal shares. The probabilities are float32, as in bitsandbytes: float64 ones
    change ten of the values in the last bit. Source: QLoRA eq. 4.

    >>> nf4_levels()[[0, 7, 8, 15]].tolist()
    [-1.0, 0.0, 0.07958029955625534, 1.0]
    """
    positive, negative = linspace32(0.9677083, 0.5, 9)[:-1], linspace32(0.9677083, 0.5, 8)[:-1]
    quantile = NormalDist().inv_cdf
    above = [quantile(float(p)) for p in positive]
    below = [-quantile(float(p)) for p in negative]
    ascending = np.sort(np.array([*above, 0.0, *below], dtype=np.float32))
    return ascending / ascending.max()


def linspace32(first: float, last: float, count: int) -> NDArray[np.float32]:
    """Evenly spaced float32 values, each computed from the nearer end, as torch does."""
    start, end, i = np.float32(first), np.float32(last), np.arange(count, dtype=np.float32)
    step = (end - start) / np.float32(count - 1)
    from_start, from_end = start + step * i, end - step * (np.float32(count - 1) - i)
    return np.where(i < count // 2, from_start, from_end).astype(np.float32)


def nf4_quantize(w: ArrayLike, block_size: int = 64) -> NF4:
    """Quantize block by block; the last may be shorter, an odd tail is padded with zero's code.

    Raises ``ValueError`` for an empty array, values that are not finite, or a block size below 1.

    >>> nf4_quantize([0.0, -1.0, 1.0, 0.5]).packed.tolist()  # codes 7 0, 15 12
    [112, 252]
    """
    w = np.asarray(w, dtype=np.float32)
    if w.size == 0 or not np.isfinite(w).all():
        raise ValueError(
            f"nf4_quantize needs at least one value and finite values only, got shape {w.shape}"
        )
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    levels, values, tiny = nf4_levels(), w.ravel(), np.float32(1e-38)
    midpoints = (levels[:-1] + levels[1:]) / 2
    codes, scales = [], []
    for start in range(0, values.size, block_size):
        block = values[start : start + block_size]
        absmax = np.abs(block).max()
        if len(block) == block_size:
            scaled = block * (np.float32(1) / max(absmax, tiny))
        else:  # bitsandbytes divides here, and keeps the floor as the scale
            absmax = max(absmax, tiny)
            scaled = block / absmax
        codes.append(np.searchsorted(midpoints, scaled, side="left"))  # ties go down
        scales.append(absmax)
    all_codes = np.concatenate([*codes, np.full(values.size % 2, 7)])
    # the even element in the high half
    packed = (16 * all_codes[::2] + all_codes[1::2]).astype(np.uint8)
    return NF4(packed, np.array(scales, dtype=np.float32), w.shape, block_size)


def nf4_dequantize(q: NF4) -> NDArray[np.float32]:
    """``level[code] · absmax`` in float32, in the original shape.

    >>> nf4_dequantize(nf4_quantize([0.0, -2.0, 2.0]))
    array([ 0., -2.,  2.], dtype=float32)
    """
    codes = np.stack([q.packed >> 4, q.packed & 15], axis=1).ravel()[: int(np.prod(q.shape))]
    scales = np.repeat(q.absmax, q.block_size)[: codes.size]
    return (nf4_levels()[codes] * scales).reshape(q.shape)


def check_shapes(
    x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """All four as float64. Raises ``ValueError`` that shows the shapes when they do not fit."""
    x, W, A, B = (np.asarray(array, dtype=np.float64) for array in (x, W, A, B))
    fits = x.ndim >= 1 and W.ndim == A.ndim == B.ndim == 2
    fits = fits and x.shape[-1] == A.shape[1] == W.shape[1] and B.shape == (len(W), len(A))
    if not fits:
        raise ValueError(
            "shapes do not fit: expected x (…, in), W (out, in), A (r, in), B (out, r), "
            f"got x {x.shape}, W {W.shape}, A {A.shape}, B {B.shape}"
        )
    return x, W, A, B

"""LoRA in NumPy, as the definition reads. No torch; the oracle of the tests.

    y = x W0ᵀ + b + s · (x Aᵀ) Bᵀ        s = alpha / r

Shapes: x (…, in), W0 (out, in), b (out,), A (r, in), B (out, r), y (…, out). Everything is computed in float64.

The backward, for g = ∂L/∂y flattened to (tokens, out) and h = x Aᵀ (tokens, r), is three uses of one rule: the gradient of
a product with respect to one factor is the incoming gradient times the other factor.

    ∂L/∂B = s · gᵀ h            (out, r)
    ∂L/∂A = s · (g B)ᵀ x        (r, in)
    ∂L/∂x = g W0 + s · (g B) A  (…, in)

W0 and b are frozen: their gradients are not computed, which is where a LoRA step saves its time.

Source: LoRA (arXiv 2106.09685) section 4.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class LoRAGradients(NamedTuple):
    """Gradients of a loss with respect to the input and the two factors."""

    x: Array
    A: Array
    B: Array


def lora_forward(x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike, alpha: float, bias: ArrayLike | None = None) -> Array:
    """``x Wᵀ + bias + (alpha / r) (x Aᵀ) Bᵀ``. Raises ``ValueError`` when the shapes do not fit.

    >>> lora_forward([[1, 2]], W=[[1, 0]], A=[[1, 1]], B=[[3]], alpha=2)  # 1 + 2 · 3 · (1 + 2)
    array([[19.]])
    """
    x, W, A, B = check_shapes(x, W, A, B)
    y = x @ W.T + (alpha / len(A)) * (x @ A.T) @ B.T
    return y if bias is None else y + np.asarray(bias, dtype=np.float64)


def lora_backward(grad_y: ArrayLike, x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike, alpha: float) -> LoRAGradients:
    """Gradients of x, A and B for a given ∂L/∂y (…, out); W and the bias are frozen.

    >>> lora_backward([[1.0]], [[1, 2]], W=[[1, 0]], A=[[1, 1]], B=[[3]], alpha=2).A
    array([[ 6., 12.]])
    """
    x, W, A, B = check_shapes(x, W, A, B)
    g = np.asarray(grad_y, dtype=np.float64)
    if g.shape != (*x.shape[:-1], len(W)):
        raise ValueError(f"grad_y must have the shape of y, {(*x.shape[:-1], len(W))}, got {g.shape}")
    s = alpha / len(A)
    flat_x, flat_g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])  # (tokens, in), (tokens, out)
    h = flat_x @ A.T  # (tokens, r)
    dh = s * flat_g @ B  # (tokens, r)
    return LoRAGradients(x=g @ W + (dh @ A).reshape(x.shape), A=dh.T @ flat_x, B=s * flat_g.T @ h)


def delta_weight(A: ArrayLike, B: ArrayLike, alpha: float) -> Array:
    """``ΔW = (alpha / r) B A``, (out, in): what a merge adds to W0.

    >>> delta_weight(A=[[1, 1]], B=[[3], [0]], alpha=2)
    array([[6., 6.],
           [0., 0.]])
    """
    A, B = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
    return (alpha / len(A)) * B @ A


def check_shapes(x: ArrayLike, W: ArrayLike, A: ArrayLike, B: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """All four as float64; raise ``ValueError`` that shows the shapes when they do not fit each other."""
    x, W, A, B = (np.asarray(array, dtype=np.float64) for array in (x, W, A, B))
    fits = x.ndim >= 1 and W.ndim == A.ndim == B.ndim == 2
    if not fits or x.shape[-1] != W.shape[1] or A.shape[1] != W.shape[1] or B.shape != (len(W), len(A)):
        raise ValueError(
            f"shapes do not fit: x {x.shape}, W {W.shape}, A {A.shape}, B {B.shape}; "
            "needed x (…, in), W (out, in), A (r, in), B (out, r)"
        )
    return x, W, A, B

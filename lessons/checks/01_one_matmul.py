"""Checks of lesson 01. The oracle is the loss itself.

L = Σ dy · (x Wᵀ) is linear in W, so one unit step gives each slope.
"""

import numpy as np
from hypothesis.strategies import integers, lists

from minilora.learn import cases, close


def slopes(dy, x):
    """∂L/∂W[i, j] = L(W + E_ij) − L(W), measured one weight at a time."""
    measured = np.zeros((dy.shape[-1], x.shape[-1]))
    for i, j in np.ndindex(measured.shape):
        step = np.zeros_like(measured)
        step[i, j] = 1.0
        measured[i, j] = (dy * (x @ step.T)).sum()
    return measured


@cases(
    first={"leading": [2, 3], "size_in": 5, "size_out": 3, "seed": 0},
    leading=lists(integers(1, 4), min_size=1, max_size=3),
    size_in=integers(1, 5),
    size_out=integers(1, 5),
    seed=integers(0, 999),
)
def check_weight_gradient(answer, leading, size_in, size_out, seed):
    """Any leading axes, non-square and square layers."""
    draw = np.random.default_rng(seed)
    x, dy = draw.normal(size=(*leading, size_in)), draw.normal(size=(*leading, size_out))
    case = f"dy {dy.shape} and x {x.shape}"
    close(answer(dy.copy(), x.copy()), slopes(dy, x), what="∂W", case=case)


def transposed(dy, x):
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def averaged(dy, x):
    tokens = dy[..., 0].size
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1]) / tokens


def first_sequence_only(dy, x):
    while dy.ndim > 2:
        dy, x = dy[0], x[0]
    return dy.T @ x


def sums_first(dy, x):
    rows_dy, rows_x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return np.outer(rows_dy.sum(axis=0), rows_x.sum(axis=0))


def keeps_the_batch(dy, x):
    return np.swapaxes(dy, -1, -2) @ x


WRONG = {
    "weight_gradient": {
        "transposed": transposed,
        "averaged over the tokens": averaged,
        "the first sequence only": first_sequence_only,
        "sums before it multiplies": sums_first,
        "one gradient a sequence": keeps_the_batch,
    }
}

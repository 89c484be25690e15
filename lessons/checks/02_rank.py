"""Checkers of lesson 02. The oracle never takes an SVD.

Squared singular values are the eigenvalues of WᵀW or WWᵀ.
"""

import torch
from hypothesis.strategies import floats, integers

from minilora.learn import Wrong, cases


def energies(W):
    """Squared singular values, descending, from the smaller of the two Gram matrices."""
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)


def draw_matrix(rows, columns, seed):
    """Random, float64, with a decaying spectrum so that directions are told apart."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    return W * (1 + 3 * torch.rand(columns, dtype=torch.float64, generator=generator))


@cases(
    first={"rows": 7, "columns": 5, "rank": 3, "seed": 0},
    rows=integers(2, 12),
    columns=integers(2, 12),
    rank=integers(1, 12),
    seed=integers(0, 999),
)
def check_best_factors(answer, rows, columns, rank, seed):
    """Shapes, and an error that equals the discarded tail (Eckart and Young)."""
    r = min(rank, rows, columns)
    W = draw_matrix(rows, columns, seed)
    case = f"W {tuple(W.shape)}, r = {r}"
    pair = answer(W.clone(), r)
    if not isinstance(pair, tuple) or len(pair) != 2:
        shapes = f"B {(rows, r)} and A {(r, columns)}"
        raise Wrong(f"{case}: expected the pair (B, A), {shapes}, got {type(pair).__name__}")
    B, A = pair
    for name, factor, shape in (("B", B, (rows, r)), ("A", A, (r, columns))):
        if not isinstance(factor, torch.Tensor) or tuple(factor.shape) != shape:
            got = tuple(getattr(factor, "shape", ()))
            raise Wrong(f"{case}: {name} has shape {got}, a right answer has {shape}")
    tail, whole = energies(W)[r:].sum(), W.square().sum()
    lost = (W - B @ A).square().sum()
    if not abs(lost - tail) <= 1e-8 * whole:
        raise Wrong(
            f"{case}: ‖W − BA‖² is {lost / whole:.4f} of ‖W‖², a right answer loses "
            f"{tail / whole:.4f} (the discarded tail)"
        )


@cases(
    rows=integers(1, 12), columns=integers(1, 12), share=floats(0.02, 0.98), seed=integers(0, 999)
)
def check_rank_that_keeps(answer, rows, columns, share, seed):
    """The definition, tried from r = 1 upwards."""
    W = draw_matrix(rows, columns, seed)
    kept, total = energies(W), W.square().sum()
    right, enough = 1, share * total * (1 - 1e-12)
    while right < len(kept) and kept[:right].sum() < enough:
        right += 1
    rank = answer(W.clone(), share)
    if rank != right:
        raise Wrong(
            f"W {tuple(W.shape)}, share {share:.4g}: got {rank!r}, the smallest rank that keeps "
            f"so much is {right}"
        )


def columns_for_rows(W, r):
    """Takes V's columns out of Vh: fits only where W is square."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r], Vh[:, :r].T


def without_strengths(W, r):
    """Forgets the singular values."""
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r], Vh[:r]


def strengths_twice(W, r):
    """Gives the whole singular values to both."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r], S[:r, None] * Vh[:r]


def weakest(W, r):
    """Keeps the last directions."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, -r:] * S[-r:], Vh[-r:]


def one_too_many(W, r):
    """Off by one."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, : r + 1] * S[: r + 1], Vh[: r + 1]


def swapped(W, r):
    """Returns A first."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return Vh[:r], U[:, :r] * S[:r]


def unsquared(W, share):
    """Adds up singular values, not their squares."""
    energy = torch.linalg.svdvals(W).cumsum(0)
    return 1 + int((energy < share * energy[-1]).sum())


def one_too_few(W, share):
    """Off by one."""
    energy = torch.linalg.svdvals(W).square().cumsum(0)
    return int((energy < share * energy[-1]).sum())


def one_above(W, share):
    """Counts values above a share of the largest: another notion of rank."""
    s = torch.linalg.svdvals(W)
    return int((s >= (1 - share) * s[0]).sum())


WRONG = {
    "best_factors": {
        "columns of Vh": columns_for_rows,
        "no strengths": without_strengths,
        "strengths twice": strengths_twice,
        "the weakest": weakest,
        "one too many": one_too_many,
        "swapped": swapped,
    },
    "rank_that_keeps": {
        "not squared": unsquared,
        "one too few": one_too_few,
        "threshold": one_above,
    },
}

"""Checkers of lesson 23: whole matrices in float64; gradients token by token."""

import numpy as np
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


@cases(
    first={"ranks": [3, 2], "size_in": 5, "size_out": 7, "seed": 0},
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    size_in=st.integers(1, 6),
    size_out=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def check_exact_average(answer, ranks, size_in, size_out, seed):
    """Against the sum of the products."""
    dice = np.random.default_rng(seed)
    clients = [
        (
            dice.normal(size=(r, size_in)),
            dice.normal(size=(size_out, r)),
            float(dice.uniform(0.5, 4)),
            int(dice.integers(1, 200)),
        )
        for r in ranks
    ]
    total = sum(tokens for *_, tokens in clients)
    right = sum(tokens / total * scaling * B @ A for A, B, scaling, tokens in clients)
    case = (
        f"ranks {ranks}, tokens {[tokens for *_, tokens in clients]}, (in, out) {size_in, size_out}"
    )
    copies = [(A.copy(), B.copy(), scaling, tokens) for A, B, scaling, tokens in clients]
    result = answer(copies)
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(f"{case}: got {type(result).__name__}; a right answer is the pair A, B")
    for (A, B, _, _), (own_A, own_B, _, _) in zip(copies, clients, strict=True):
        if not (np.array_equal(A, own_A) and np.array_equal(B, own_B)):
            raise Wrong(f"{case}: a client's A or B was changed; a right answer leaves them alone")
    A, B = (np.asarray(factor) for factor in result)
    fits = A.ndim == B.ndim == 2 and B.shape[1] == len(A)
    if not fits or (A.shape[1], B.shape[0]) != (size_in, size_out):
        raise Wrong(
            f"{case}: A {A.shape} and B {B.shape}; a right answer has A (k, {size_in}) and B "
            f"({size_out}, k)"
        )
    if len(A) > sum(ranks):
        raise Wrong(f"{case}: k is {len(A)}, a right answer needs {sum(ranks)} at most")
    close(B @ A, right, what="B A", case=case, tolerance=1e-9)


@cases(
    first={"counts": [2, 0, 5], "size": 3, "seed": 0},
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    size=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def check_gradient_of_all(answer, counts, size, seed):
    """Against the mean over all tokens' own gradients."""
    counts = [*counts, 3]  # somebody has some
    dice = np.random.default_rng(seed)
    tokens = [dice.normal(size=(count, size)) for count in counts]
    right = np.concatenate(tokens).mean(axis=0)
    nothing = np.full(size, np.nan)
    parts = [(own.mean(axis=0) if len(own) else nothing.copy(), len(own)) for own in tokens]
    got = answer([(gradient.copy(), count) for gradient, count in parts])
    close(np.asarray(got), right, what="the gradient", case=f"tokens {counts}", tolerance=1e-9)


def averaged_factors(clients):
    """A's and B's averaged, cross-terms and all (padded to the largest rank)."""
    total, k = sum(n for *_, n in clients), max(len(A) for A, *_ in clients)
    A = sum(n / total * np.pad(A, ((0, k - len(A)), (0, 0))) for A, _, _, n in clients)
    B = sum(s * n / total * np.pad(B, ((0, 0), (0, k - B.shape[1]))) for _, B, s, n in clients)
    return A, B


def by_clients(clients):
    """Every client counts the same."""
    A = np.concatenate([A for A, *_ in clients])
    return A, np.concatenate([s / len(clients) * B for _, B, s, _ in clients], axis=1)


def unscaled(clients):
    """The scalings forgotten."""
    total = sum(n for *_, n in clients)
    A = np.concatenate([A for A, *_ in clients])
    return A, np.concatenate([n / total * B for _, B, _, n in clients], axis=1)


def weighted_twice(clients):
    """The weight on both factors."""
    total = sum(n for *_, n in clients)
    A = np.concatenate([n / total * A for A, _, _, n in clients])
    return A, np.concatenate([s * n / total * B for _, B, s, n in clients], axis=1)


def in_place(clients):
    """Right, but the clients' B's are changed."""
    total = sum(n for *_, n in clients)
    for _, B, s, n in clients:
        B *= s * n / total
    return np.concatenate([A for A, *_ in clients]), np.concatenate([B for _, B, *_ in clients], 1)


def summed(clients):
    """A sum, not an average."""
    A = np.concatenate([A for A, *_ in clients])
    return A, np.concatenate([s * n * B for _, B, s, n in clients], axis=1)


def mean_of_means(parts):
    """Every part counts the same."""
    return np.mean([gradient for gradient, n in parts if n], axis=0)


def with_the_empty(parts):
    """0 times NaN."""
    return sum(n * gradient for gradient, n in parts) / sum(n for _, n in parts)


def divided_by_parts(parts):
    """Divided by the number of parts."""
    return sum(n * np.nan_to_num(gradient) for gradient, n in parts) / len(parts)


def the_sum(parts):
    """Not divided."""
    return sum(n * np.nan_to_num(gradient) for gradient, n in parts)


WRONG = {
    "exact_average": {
        "averaged factors": averaged_factors,
        "by clients": by_clients,
        "unscaled": unscaled,
        "weighted twice": weighted_twice,
        "in place": in_place,
        "summed": summed,
    },
    "gradient_of_all": {
        "mean of means": mean_of_means,
        "with the empty part": with_the_empty,
        "divided by parts": divided_by_parts,
        "the sum": the_sum,
    },
}

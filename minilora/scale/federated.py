"""Many clients' updates as one, on a server that never sees their data.

A client i trains A and B on n_i answer tokens of its own and sends them. What should come out is

    ΔW  = Σ wᵢ sᵢ Bᵢ Aᵢ        wᵢ = nᵢ / Σ n       (FedAvg's weights, arXiv 1602.05629, in tokens)

and the ways to get there differ in what they lose:

    factors    A = Σ wᵢ Aᵢ, B = Σ wᵢ Bᵢ      not ΔW: B A has cross-terms wᵢ wⱼ Bᵢ Aⱼ that no client
                                             trained (FedIT, arXiv 2305.05644, averages so)
    svd        the best of rank r to ΔW      loses the energy of the singular values behind r
                                             (FlexLoRA, arXiv 2402.11505); takes ranks that differ
    stack      B = [w₁s₁B₁ … wₙsₙBₙ],        exactly ΔW, of rank Σ rᵢ; clients merge it and begin
               A = [A₁; …; Aₙ]               anew (FLoRA, arXiv 2409.05976); ranks may differ
    frozen_a   B = Σ wᵢ Bᵢ, one A for all    exactly ΔW, for Σ wᵢ (Bᵢ A) = (Σ wᵢ Bᵢ) A
                                             (FFA-LoRA, arXiv 2403.12313)

How large the cross-terms are depends on the A's. Clients that began with one A, and moved it a
little, make a small error. With an A of its own drawn by each it is most of the update, and nothing
reports it: shapes fit, numbers are finite. ``relative_error`` measures it.

Secure aggregation (arXiv 1611.04482) lets a server see sums over clients and nothing else. Of the
four only ``factors`` and ``frozen_a`` need no more than sums of what is sent, and only the second
is exact. ``svd`` and ``stack`` need each client's A and B.

Sums are made in float64 in the order of the clients' names, so the order of arrival changes no bit.
Clients that dropped out are simply not there: the weights are over those that answered. Left out:
momentum and adaptive server optimizers, robust means (a client can send anything finite).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import is_number
from ..lora.combining import LowRank, combine
from ..text import did_you_mean, listed


@dataclass(frozen=True)
class Update:
    """What a client sends: its factors by module path, and the answer tokens that trained them.

    >>> Update({"q": LowRank(torch.zeros(2, 4), torch.zeros(3, 2), 1.0)}, tokens=120).tokens
    120
    """

    parts: Mapping[str, LowRank]
    tokens: int


Updates = Mapping[str, Update]  # by the client's name


def aggregate(
    updates: Updates, how: str = "stack", *, rank: int | None = None, fewest: int = 1
) -> dict[str, LowRank]:
    """The clients' updates as one adapter; nothing that is given changes.

    - ``how``: ``factors``, ``svd``, ``stack`` or ``frozen_a``, see the top of this file.
    - ``rank``: for ``svd`` (default: the largest of the clients').
    - ``fewest``: of fewer clients than this no round is made.

    Raises ``ValueError`` for updates that do not belong together (modules, shapes, dtypes; for
    ``factors`` and ``frozen_a`` ranks and scalings too), values that are not finite floats, token
    counts that are not positive whole numbers, A's that differ under ``frozen_a``, or too few
    clients.

    >>> one = LowRank(torch.eye(1, 2), torch.ones(3, 1), 2.0)
    >>> two = LowRank(torch.ones(1, 2), torch.ones(3, 1), 2.0)
    >>> updates = {"a": Update({"q": one}, 30), "b": Update({"q": two}, 10)}
    >>> q = aggregate(updates)["q"]
    >>> (q.scaling * q.B @ q.A)[0].tolist()  # 2 · (3/4 [1 0] + 1/4 [1 1])
    [2.0, 0.5]
    """
    if how not in AGGREGATORS:
        hint = did_you_mean(how, AGGREGATORS, f"known are {', '.join(AGGREGATORS)}")
        raise ValueError(f"aggregate has no how={how!r}: {hint}")
    if rank is not None and (how != "svd" or not is_number(rank, int) or rank < 1):
        raise ValueError(f"rank is a positive whole number for how='svd', got {rank} for {how!r}")
    check_updates(updates, fewest)
    if how == "svd":
        return mean_of_products(updates, rank)
    return AGGREGATORS[how](updates)


def shares(updates: Updates) -> dict[str, float]:
    """Each client's weight ``tokens / all tokens``, by name in order.

    >>> shares({"b": Update({}, 10), "a": Update({}, 30)})
    {'a': 0.75, 'b': 0.25}
    """
    total = sum(update.tokens for update in updates.values())
    return {name: updates[name].tokens / total for name in sorted(updates)}


def average_factors(updates: Updates) -> dict[str, LowRank]:
    """A averaged, B averaged: what plain FedAvg does to an adapter. Not the average update.

    >>> a = LowRank(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 1.0)
    >>> b = LowRank(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [1.0]]), 1.0)
    >>> both = average_factors({"a": Update({"q": a}, 1), "b": Update({"q": b}, 1)})["q"]
    >>> (both.B @ both.A).tolist()  # the average update has 1/2 on the diagonal and zeros beside
    [[0.25, 0.25], [0.25, 0.25]]
    """
    check_one_form(updates, "factors")
    return {
        path: LowRank(mean(updates, path, "A"), mean(updates, path, "B"), some.scaling)
        for path, some in any_parts(updates).items()
    }


def average_b(updates: Updates) -> dict[str, LowRank]:
    """One A for all, B averaged: exact, and all that the server needs is two sums, Σ nᵢBᵢ and Σ nᵢ.

    >>> A = torch.ones(1, 2)
    >>> some = [LowRank(A, torch.full((3, 1), value), 1.0) for value in (1.0, 3.0)]
    >>> updates = {"a": Update({"q": some[0]}, 30), "b": Update({"q": some[1]}, 10)}
    >>> average_b(updates)["q"].B[0].item()
    1.5
    """
    check_one_form(updates, "frozen_a")
    first = any_parts(updates)
    for name in sorted(updates):
        for path, part in updates[name].parts.items():
            if not torch.equal(part.A, first[path].A):
                raise ValueError(
                    f"client {name!r}: its A of {path} is not the A of client {min(updates)!r}. "
                    "With how='frozen_a' all clients keep the A that the server sent"
                )
    return {
        path: LowRank(some.A.clone(), mean(updates, path, "B"), some.scaling)
        for path, some in first.items()
    }


def stack(updates: Updates) -> dict[str, LowRank]:
    """The factors beside each other, weights in B: exactly the average update, of rank Σ rᵢ.

    >>> one = LowRank(torch.ones(2, 4), torch.ones(3, 2), 1.0)
    >>> stack({"a": Update({"q": one}, 1), "b": Update({"q": one}, 1)})["q"].A.shape
    torch.Size([4, 4])
    """
    weights = shares(updates)
    return combine([updates[name].parts for name in weights], [*weights.values()], "cat")


def mean_of_products(updates: Updates, rank: int | None = None) -> dict[str, LowRank]:
    """The best of a rank to the average update, without ever making an (out, in) matrix.

        B = Q_B R_B,  Aᵀ = Q_A R_A          QR of the stacked factors, (out, k) and (in, k)
        U S Vᵀ = R_B R_Aᵀ                   SVD of a (k, k) core, k = Σ rᵢ
        B' = Q_B U S / s,  A' = Vᵀ Q_Aᵀ     the first ``rank`` columns and rows

    The scaling s stays the clients' own where they have one, so that they can go on training.

    >>> one = LowRank(torch.eye(2, 4), torch.eye(3, 2), 0.5)
    >>> both = mean_of_products({"a": Update({"q": one}, 1), "b": Update({"q": one}, 1)}, 2)["q"]
    >>> both.scaling, bool(torch.allclose(0.5 * both.B @ both.A, 0.5 * one.B @ one.A))
    (0.5, True)
    """
    cut = {}
    for path, some in any_parts(updates).items():
        parts = [update.parts[path] for update in updates.values()]
        r = rank or max(len(part.A) for part in parts)
        scaling = max(part.scaling for part in parts)
        one = all(math.isclose(part.scaling, scaling) for part in parts)  # α·r/R / r rounds
        if not one or scaling == 0:
            scaling = 1.0
        left, S, right = thin_svd(*stacked(updates, path))
        A, B = right[:r].to(some.A.dtype), (left * S / scaling)[:, :r].to(some.B.dtype)
        cut[path] = LowRank(A.contiguous(), B.contiguous(), scaling)
    return cut


def relative_error(updates: Updates, result: Mapping[str, LowRank]) -> float:
    """``‖result − Σ wᵢ ΔWᵢ‖ / ‖Σ wᵢ ΔWᵢ‖``, Frobenius, over all modules together.

    Made in float64 from the (k, k) cores, so it costs nothing beside a round.

    >>> one = LowRank(torch.eye(1, 2), torch.ones(3, 1), 2.0)
    >>> updates = {"a": Update({"q": one}, 3)}
    >>> round(relative_error(updates, {"q": LowRank(one.A, one.B, 3.0)}), 9)
    0.5
    """
    check_updates(updates)
    if other := sorted(result.keys() ^ any_parts(updates).keys()):
        if other[0] in result:
            raise ValueError(f"the result has {other[0]}, which no client trained")
        raise ValueError(f"the result has no {other[0]}, which the clients trained")
    wrong = size = 0.0
    for path in any_parts(updates):
        B, A = stacked(updates, path)
        size += float(thin_svd(B, A)[1].square().sum())
        part = result[path]
        both = torch.cat([B, -part.scaling * part.B.double()], 1)
        wrong += float(thin_svd(both, torch.cat([A, part.A.double()]))[1].square().sum())
    return (wrong / size) ** 0.5 if size else float(wrong > 0)


def thin_svd(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,) and Vᵀ (k, in) of B A, by QR of either factor and the SVD of a core."""
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return Q_B @ U, S, Vh @ Q_A.mT


def stacked(updates: Updates, path: str) -> tuple[Tensor, Tensor]:
    """B (out, Σ r) with weights and scalings inside and A (Σ r, in) of one module, in float64."""
    weighted = [(share, updates[name].parts[path]) for name, share in shares(updates).items()]
    B = torch.cat([share * part.scaling * part.B.double() for share, part in weighted], 1)
    return B, torch.cat([part.A.double() for _, part in weighted])


def mean(updates: Updates, path: str, factor: str) -> Tensor:
    """The token-weighted mean of one factor, in its own dtype."""
    weighted = [(updates[n].parts[path], updates[n].tokens) for n in sorted(updates)]
    tensors = [getattr(part, factor) for part, _ in weighted]
    total = sum(tokens for _, tokens in weighted)
    summed = sum(t.double() * tokens for t, (_, tokens) in zip(tensors, weighted, strict=True))
    return (summed / total).to(tensors[0].dtype)


def any_parts(updates: Updates) -> Mapping[str, LowRank]:
    """The parts of the client whose name comes first."""
    return updates[min(updates)].parts


def check_updates(updates: Updates, fewest: int = 1) -> None:
    """Raise ``ValueError`` unless there are enough updates, of one set of Linears, and finite."""
    if len(updates) < max(1, fewest):
        names = f": {listed(sorted(updates), 5, ', ')}" if updates else ""
        raise ValueError(
            f"expected updates of at least {max(1, fewest)} clients, got {len(updates)}{names}"
        )
    first = any_parts(updates)
    for name in sorted(updates):
        update = updates[name]
        if not is_number(update.tokens, int):
            raise ValueError(f"client {name!r}: tokens must be whole, got {update.tokens!r}")
        if update.tokens < 1:
            raise ValueError(f"client {name!r}: expected at least 1 token, got {update.tokens}")
        if not first or update.parts.keys() != first.keys():
            other = sorted(update.parts.keys() ^ first.keys()) or ["nothing"]
            raise ValueError(
                f"client {name!r} and client {min(updates)!r} adapted other modules: "
                f"{listed(other, 5, ', ')}"
            )
        for path, part in update.parts.items():
            check_part(f"client {name!r}: {path}", part, first[path])


def check_part(where: str, part: LowRank, first: LowRank) -> None:
    """Raise ``ValueError`` unless a part is finite and of the Linear that the first is of.

    Whole numbers are refused: a mean in their dtype would be cut to whole numbers, for everybody.
    """
    shapes = f"A {tuple(part.A.shape)} and B {tuple(part.B.shape)}"
    if part.A.dim() != 2 or part.B.dim() != 2 or len(part.A) != part.B.shape[1]:
        raise ValueError(f"{where} has {shapes}, expected (r, in) and (out, r)")
    expected = first.A.shape[1], first.B.shape[0]
    if (part.A.shape[1], part.B.shape[0]) != expected:
        raise ValueError(f"{where} has {shapes}, expected them for (in, out) = {expected}")
    dtypes = part.A.dtype, part.B.dtype
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"{where} has dtypes {dtypes}, expected floating-point numbers")
    if dtypes != (first.A.dtype, first.B.dtype):
        raise ValueError(f"{where} has dtypes {dtypes}, expected {first.A.dtype, first.B.dtype}")
    finite = torch.isfinite(part.A).all() and torch.isfinite(part.B).all()
    if not finite or not abs(part.scaling) < float("inf"):
        raise ValueError(f"{where} holds values that are not finite: its training diverged")


def check_one_form(updates: Updates, how: str) -> None:
    """Raise ``ValueError`` unless all clients have one rank and one scaling a module."""
    check_updates(updates)
    first = any_parts(updates)
    for name in sorted(updates):
        for path, part in updates[name].parts.items():
            one, other = ((len(p.A), p.scaling) for p in (part, first[path]))
            if one != other:
                raise ValueError(
                    f"client {name!r}: {path} has (rank, scaling) {one}, and client "
                    f"{min(updates)!r} has {other}; how={how!r} needs one for all: take 'svd' or "
                    "'stack'"
                )


AGGREGATORS: dict[str, Callable[[Updates], dict[str, LowRank]]] = {
    "factors": average_factors,
    "svd": mean_of_products,
    "stack": stack,
    "frozen_a": average_b,
}

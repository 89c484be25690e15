"""Two adapters side by side: settings, data, scores, and the ΔW that each adds to the base.

The spectra come from A and B alone, without the base and without ever making ΔW = s B A of (out,
in). With the QR decompositions B = Q₁R₁ and Aᵀ = Q₂R₂,

    ΔW = Q₁ (s R₁ R₂ᵀ) Q₂ᵀ        so ΔW has the singular values of the r × r matrix s R₁ R₂ᵀ

and inner products need r × r matrices only: ⟨ΔW, ΔW'⟩ = s s' Σ (BᵀB' ∘ AA'ᵀ) (Frobenius). All in
float64.

    cosine   ⟨ΔW, ΔW'⟩ / (‖ΔW‖ ‖ΔW'‖)    1: the same direction; near 0: two unrelated changes

Two runs of one recipe may have unlike A and B and still like ΔW: B A = (BM)(M⁻¹A) for every
invertible M. So deltas are compared, never factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..text import columns
from .adapter import Adapter
from .manifest import Manifest, shown


@dataclass(frozen=True)
class DeltaPair:
    """One module: ‖ΔW‖ of both, their ranks, and the cosine between them (None where one is missing
    or zero).
    """

    module: str
    norms: tuple[float, float]
    ranks: tuple[int, int]
    cosine: float | None


@dataclass(frozen=True)
class Comparison:
    """What differs between two versions; ``print`` shows it as tables.

    ``settings``, ``scores``: name -> (of the first, of the second), where they differ. ``data``:
    one sentence.

    >>> print(Comparison(("a@1", "a@2"), True, "one base", "the same data", {}, {}, ()))
    a@1 and a@2: one base; the same data
    the same tensors and settings: one adapter under two names
    <BLANKLINE>
    module  ‖ΔW‖  ‖ΔW'‖  rank  rank'  cosine
    """

    names: tuple[str, str]
    same_content: bool
    base: str
    data: str
    settings: dict[str, tuple[Any, Any]]
    scores: dict[str, tuple[float | None, float | None]]
    deltas: tuple[DeltaPair, ...]

    def __str__(self) -> str:
        lines = [f"{self.names[0]} and {self.names[1]}: {self.base}; {self.data}"]
        if self.same_content:
            lines.append("the same tensors and settings: one adapter under two names")
        rows: list[tuple[str, ...]] = [("", *self.names)]
        rows += [(name, shown(a), shown(b)) for name, (a, b) in self.settings.items()]
        rows += [(name, score(a), score(b)) for name, (a, b) in self.scores.items()]
        if len(rows) > 1:
            lines += ["", *columns(rows)]
        table: list[tuple[str, ...]] = [("module", "‖ΔW‖", "‖ΔW'‖", "rank", "rank'", "cosine")]
        for pair in self.deltas:
            cosine = "-" if pair.cosine is None else f"{pair.cosine:.3f}"
            norms, ranks = (f"{norm:.3f}" for norm in pair.norms), map(str, pair.ranks)
            table.append((pair.module, *norms, *ranks, cosine))
        return "\n".join([*lines, "", *columns(table)])


def compare(a: tuple[Manifest, Adapter], b: tuple[Manifest, Adapter]) -> Comparison:
    """Compare two versions, each given as what is known of it and its tensors."""
    (one, first), (other, second) = a, b
    names = sorted(one.settings.keys() | other.settings.keys())
    settings = {name: (one.settings.get(name), other.settings.get(name)) for name in names}
    scores = sorted(one.metrics.keys() | other.metrics.keys())
    return Comparison(
        (f"{one.name}@{one.version}", f"{other.name}@{other.version}"),
        one.content == other.content,
        same_or_not(one.architecture + one.tensors, other.architecture + other.tensors, "base"),
        same_or_not(one.data_sha, other.data_sha, "data"),
        {name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        {name: (one.metrics.get(name), other.metrics.get(name)) for name in scores},
        tuple(
            delta_pair(module, first, second)
            for module in sorted({*first.modules, *second.modules})
        ),
    )


def same_or_not(one: str, other: str, word: str) -> str:
    """``the same base``, ``another base`` or ``base unknown``.

    >>> same_or_not("ab", "ab", "data"), same_or_not("ab", "", "data")
    ('the same data', 'data unknown')
    """
    if not one or not other:
        return f"{word} unknown"
    return f"the same {word}" if one == other else f"other {word}"


def delta_pair(module: str, first: Adapter, second: Adapter) -> DeltaPair:
    """Norms, ranks and cosine of one module's two deltas; a missing delta is zero."""
    factors = [
        adapter.factors(module) if module in adapter.modules else None
        for adapter in (first, second)
    ]
    spectra = [spectrum(*each) if each else torch.zeros(1) for each in factors]
    norms = spectra[0].norm().item(), spectra[1].norm().item()
    cosine = None
    if factors[0] and factors[1] and all(norms) and fits(factors[0], factors[1]):
        cosine = inner(factors[0], factors[1]) / (norms[0] * norms[1])
    return DeltaPair(module, norms, (rank(spectra[0]), rank(spectra[1])), cosine)


def spectrum(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The singular values of ``scaling · B A``, largest first, (min(r, in, out),) float64.

    >>> A, B = torch.eye(2, 5), 3 * torch.eye(4, 2)
    >>> spectrum(A, B, 2.0)
    tensor([6., 6.], dtype=torch.float64)
    """
    R1 = torch.linalg.qr(B.double(), mode="r").R  # (min(out, r), r)
    R2 = torch.linalg.qr(A.double().T, mode="r").R  # (min(in, r), r)
    return torch.linalg.svdvals(scaling * R1 @ R2.T)


def rank(singular: Tensor, eps: float = torch.finfo(torch.float32).eps) -> int:
    """Singular values above what float32's rounding of A and B leaves behind: eps · r of the
    largest.
    """
    return int((singular > eps * len(singular) * singular[0]).sum())


def inner(one: tuple[Tensor, Tensor, float], other: tuple[Tensor, Tensor, float]) -> float:
    """⟨ΔW, ΔW'⟩ = s s' Σ (BᵀB' ∘ AA'ᵀ).

    >>> one = torch.ones(1, 3), torch.ones(2, 1), 2.0
    >>> inner(one, one)  # ΔW is 2 everywhere: six times 4
    24.0
    """
    (A, B, s), (A2, B2, s2) = ((A.double(), B.double(), s) for A, B, s in (one, other))
    return (s * s2 * ((B.T @ B2) * (A @ A2.T)).sum()).item()


def fits(one: tuple[Tensor, Tensor, float], other: tuple[Tensor, Tensor, float]) -> bool:
    """Whether both deltas have the same shape (out, in)."""
    return one[0].shape[1] == other[0].shape[1] and len(one[1]) == len(other[1])


def score(value: float | None) -> str:
    """A metric in a table."""
    return "-" if value is None else f"{value:.4g}"

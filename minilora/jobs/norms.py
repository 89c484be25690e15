"""How far an adapter moves its base, module by module, beside what the champions before it did.

    ‖ΔW‖² = s² ‖BA‖² = s² tr((BᵀB)(AAᵀ))        in r × r, without ever making ΔW

The Frobenius norm is no measure of quality. But the same recipe on data of the same kind moves the
base about as far each time, and a norm that leaves that range says that something else was learnt,
or that a run went off. So it is an alarm for a person, and no proof: a poison that moves little is
not seen (``benchmarks/gate.py`` says what it was on the shipped base).

Left out: DoRA's magnitudes, and methods without A and B.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ..hub.adapter import Adapter


def module_norms(adapter: Adapter) -> dict[str, float]:
    """The Frobenius norm of each module's ΔW."""
    norms = {}
    for module in adapter.modules:
        A, B, scaling = adapter.factors(module)
        A, B = A.double(), B.double()
        squared = ((B.T @ B) * (A @ A.T)).sum().item()  # tr(XY) = Σ X ∘ Yᵀ; both are symmetric
        norms[module] = abs(scaling) * math.sqrt(max(squared, 0.0))
    return norms


def whole(norms: Mapping[str, float]) -> float:
    """The norm of all modules together.

    >>> whole({"q_proj": 3.0, "v_proj": 4.0})
    5.0
    """
    return math.sqrt(sum(each**2 for each in norms.values()))


def outliers(
    norms: Mapping[str, float], before: Sequence[Mapping[str, float]], factor: float
) -> list[str]:
    """What lies more than ``factor`` times above or below the median of the adapters before: all
    modules together, then each.

    >>> outliers({"q_proj": 9.0}, [{"q_proj": 2.0}, {"q_proj": 3.0}], 3.0)
    ['all modules 9 after 2.5', 'q_proj 9 after 2.5']
    >>> outliers({"q_proj": 3.0}, [{"q_proj": 2.0}], 3.0)
    []
    """
    told = []
    usual = {"all modules": statistics.median(map(whole, before))} if before else {}
    for name in norms:
        if known := [each[name] for each in before if name in each]:
            usual[name] = statistics.median(known)
    mine = {"all modules": whole(norms), **norms}
    for name, median in usual.items():
        if median > 0 and not 1 / factor <= mine[name] / median <= factor:
            told.append(f"{name} {mine[name]:.3g} after {median:.3g}")
    return told

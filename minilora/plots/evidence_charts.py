"""The chart of an experiment: the evidence over time, and the difference it is about.

Arrays in, ``Figure`` out, as in ``plots/charts.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .style import GREY, check_alike, hue, in_house_style, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_house_style
def evidence_chart(
    title: str,
    pairs: Sequence[int],
    e_values: Sequence[float],
    msprt: Sequence[float],
    difference: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    limit: float,
) -> Figure:
    """E over the pairs seen so far, with the limit at which the arms are called different; beside
    it the difference of the arms' mean scores with its interval, which holds at all pairs at once.
    """
    arrays = {"pairs": pairs, "e_values": e_values, "msprt": msprt, "difference": difference}
    check_alike(**arrays, low=low, high=high)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(pairs, [min(e, 1e12) for e in e_values], color=hue(0), marker="o", markersize=3)
    left.plot(pairs, [min(e, 1e12) for e in msprt], color=hue(GREY), linewidth=1)
    left.axhline(limit, color=hue(1), linestyle="--", linewidth=1.2)
    label(left, f"{limit:g}: decided", (pairs[0], limit), (2, 4), color=hue(1))
    label(left, "exact", (pairs[-1], min(e_values[-1], 1e12)), (4, 4), color=hue(0))
    label(left, "mSPRT", (pairs[-1], min(msprt[-1], 1e12)), (4, -10), color=hue(GREY))
    left.set(title=title, xlabel="pairs of users", ylabel="E, evidence of a difference")
    left.set_yscale("log")
    left.margins(x=0.14)
    right.fill_between(pairs, low, high, color=hue(0), alpha=0.15, linewidth=0)
    right.plot(pairs, difference, color=hue(0), marker="o", markersize=3)
    right.axhline(0, color=hue(GREY), linewidth=1)
    right.set(title="How much better", xlabel="pairs of users", ylim=(-1.02, 1.02))
    right.set(ylabel="difference of the mean scores")
    return figure

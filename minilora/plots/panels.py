"""Small multiples: one panel a setting, the same axes in all, one colour a line's name.

Panels that share their axes can be compared at a glance, which is what they are for (Tufte, *The
Visual Display of Quantitative Information*, 1983). Names stand once, below the panels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import check_alike, hue, in_house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = tuple[Sequence[float], Sequence[float]]  # its x and its y


def panels_of(
    rows: Sequence[Mapping[str, Any]],
    panel: Callable[[Any], str],
    line: Callable[[Any], str],
    x: str,
    y: Callable[[Any], float],
) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Results as panels: ``panel(row)`` and ``line(row)`` say where (row[x], y(row)) belongs.

    >>> rows = [{"r": 8, "rate": 0.1, "loss": 2.0}, {"r": 8, "rate": 0.2, "loss": 1.0}]
    >>> panels_of(rows, lambda row: "r = 8", lambda row: "loss", "rate", lambda row: row["loss"])
    {'r = 8': {'loss': ([0.1, 0.2], [2.0, 1.0])}}
    """
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        xs, ys = panels.setdefault(panel(row), {}).setdefault(line(row), ([], []))
        xs.append(row[x])
        ys.append(y(row))
    return panels


@in_house_style
def small_multiples(
    panels: Mapping[str, Mapping[str, Line]],
    labels: tuple[str, str],
    log: str = "",
    dashed: str = "",
    note: str = "",
) -> Figure:
    """Lines in panels that share their axes; ``panels[title][name]`` is (xs, ys).

    ``labels`` are those of x and y; ``log`` has the letters of the axes that are logarithmic, "x",
    "y" or "xy". Lines whose names end in ``dashed`` take the colour of the name before it, and
    ``note``, above the panels, says what they are. Raises ``ValueError`` for a line without points.

    >>> lines = {"full": ([1, 2, 3], [3.0, 2.0, 1.0]), "r = 8": ([1, 2, 3], [3.0, 2.5, 2.0])}
    >>> figure = small_multiples({"30": lines, "100": lines}, ("step", "loss"))
    >>> len(figure.axes), len(figure.legends[0].get_texts())
    (2, 2)
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(max(7.4, 2.9 * len(panels)), 3.9), layout="constrained")
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    colors: dict[str, str] = {}
    for axes, (title, lines) in zip(row, panels.items(), strict=True):
        for name, (xs, ys) in lines.items():
            check_alike(xs=xs, ys=ys)
            plain = name.removesuffix(dashed) if dashed else name
            color = colors.setdefault(plain, hue(len(colors)))
            thin = bool(dashed) and name.endswith(dashed)
            style = {"linestyle": "--", "linewidth": 1.2} if thin else {"marker": "o"}
            axes.plot(xs, ys, color=color, label=name, markersize=4, **style)
        axes.set(title=title, xlabel=labels[0])
        for letter in log:
            axes.set(**{f"{letter}scale": "log"})
            axis = axes.xaxis if letter == "x" else axes.yaxis
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
    row[0].set_ylabel(labels[1])
    handles = {h.get_label(): h for axes in row for h in axes.get_lines() if h.get_marker() == "o"}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    if note:
        figure.suptitle(note, x=0.01, ha="left", fontsize=10)
    return figure

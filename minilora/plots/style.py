"""Charts: arrays in, matplotlib ``Figure`` out. This file holds the style that all charts share.

Colours that colour-blind readers can tell apart (Okabe and Ito 2008), labels at the data instead of
a legend, units on every axis, a light grid and nothing else. ``dark=True`` gives any chart its dark
face. The charts are in ``plots/charts.py`` and ``plots/parameter_charts.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
LIGHT_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B58900", "#56B4E9", "#6B6B6B")
DARK_CYCLE = ("#56B4E9", "#F0883E", "#2EC4A0", "#E6A0C4", "#F0E442", "#8FA8FF", "#B4B4B4")
GREY = 6  # ``hue(GREY)`` is the last colour of both themes
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "axes.axisbelow": True,
    "figure.dpi": 150,
    "svg.fonttype": "none",
}
PAPER, INK, LINES = "#15191E", "#E6E6E6", "#323A44"
DARK: Any = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "grid.color": LINES,
}


def in_house_style(draw: Callable[P, Figure]) -> Callable[..., Figure]:
    """Run a chart in the house style, as matplotlib reads parts of it when a title or label is set.

    The chart then takes ``dark`` besides its own arguments, and ``figure.again(dark=True)`` draws
    its other face.
    """

    @functools.wraps(draw)
    def styled(*args: Any, dark: bool = False, **settings: Any) -> Figure:
        import matplotlib
        from cycler import cycler

        cycle: Any = {"axes.prop_cycle": cycler(color=DARK_CYCLE if dark else LIGHT_CYCLE)}
        with matplotlib.rc_context({**STYLE, **cycle, **(DARK if dark else {})}):
            figure = draw(*args, **settings)
        figure.again = functools.partial(styled, *args, **settings)  # type: ignore[attr-defined]
        return figure

    return styled


def hue(index: int) -> str:
    """Colour ``index``, 0 to 6, of the chart's theme."""
    import matplotlib

    return matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][index]


def new_figure(
    columns: int, size: tuple[float, float], widths: Sequence[float]
) -> tuple[Figure, Any]:
    """A figure with axes side by side, drawn without a window system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns, width_ratios=widths)


def label(
    axes: Any,
    text: str,
    point: tuple[float, float],
    offset: tuple[float, float] = (5, 0),
    **style: Any,
) -> None:
    """Write beside a data point, ``offset`` points away; ``style`` is matplotlib's (color, ha)."""
    axes.annotate(text, point, offset, "data", "offset points", **style)


def one_axes(width: float = 7.4, height: float = 4.4, columns: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes, one or a row of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def label_ends(axes: Any, ends: Mapping[str, tuple[float, str]], gap: float = 0.075) -> None:
    """Names at the right edge, as high as their lines' ends, moved apart where they would overlap.

    ``ends[name]`` is (y of the line's end, colour); ``gap`` is a line of text, as a share of the
    axes' height.
    """
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    left = axes.get_xlim()[0]
    heights = {name: float(to_axes.transform((left, y))[1]) for name, (y, _) in ends.items()}
    outside: Any = {"xycoords": "axes fraction", "annotation_clip": False}
    below = -1.0  # the height of the name before
    for name in sorted(ends, key=lambda name: (heights[name], name)):
        below = max(heights[name], below + gap * (1 + name.count("\n")))
        axes.annotate(name, (1.015, below), color=ends[name][1], va="center", **outside)


def check_alike(**arrays: Sequence[Any]) -> None:
    """Raise ``ValueError`` when arrays are empty or differ in length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"expected arrays of one length and not empty, got lengths {lengths}")


def short(number: float) -> str:
    """A count in few letters.

    >>> short(1_304_192), short(8_030_261_248), short(512)
    ('1.3M', '8B', '512')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            digits = 3 if number >= 100 * size else 2
            return f"{number / size:.{digits}g}{letter}"
    return f"{number:g}"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG or SVG, by the name's ending, whole or not at all.

    Raises ``ValueError`` on another ending.

    >>> from matplotlib.figure import Figure
    >>> save_figure(Figure(), "chart.pdf")
    Traceback (most recent call last):
    ValueError: a figure is saved as .png or .svg, got 'chart.pdf'
    """
    import matplotlib

    kind = picture_kind(Path(path))
    with matplotlib.rc_context(STYLE):
        return write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=150))


def picture_kind(path: Path) -> str:
    """The format that a file's name asks for. Raises ``ValueError`` for one that is not drawn.

    >>> picture_kind(Path("chart.SVG"))
    'svg'
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"a figure is saved as .png or .svg, got {path.name!r}")
    return kind

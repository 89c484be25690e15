"""Charts: arrays in, matplotlib ``Figure`` out. Nothing here trains or touches a model.

One style for all: colours that colour-blind readers can tell apart (Okabe and Ito 2008), labels at the data instead of a
legend, units on every axis, a light grid and nothing else. ``dark=True`` gives any chart its dark face. The charts
themselves are in ``plots/charts.py``; here is what they share, and the demo's figure.
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
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
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
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": LINES,
}


def in_house_style(draw: Callable[P, Figure]) -> Callable[..., Figure]:
    """Run a chart with the house style in force (matplotlib reads parts of it only when a title or label is set).

    The chart then takes ``dark`` besides its own arguments, and ``figure.again(dark=True)`` draws its other face.
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
    """Colour ``index`` of the theme in force (0 to 6; 6 is grey)."""
    import matplotlib

    return matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][index]


@in_house_style
def finetune_figure(
    losses: Sequence[float],
    valid_steps: Sequence[int],
    valid_losses: Sequence[float],
    exact_matches: Sequence[float],
    full_parameters: int,
    adapter_parameters: int,
) -> Figure:
    """A fine-tune at a glance: loss and exact match by step, and what was trained against everything.

    ``losses`` has one value a step, nats an answer token; the ``valid_…`` arrays and ``exact_matches`` (0 to 1) are alike
    in length. Raises ``ValueError`` when they are not, or when nothing is given.

    >>> figure = finetune_figure([2.0, 1.0], [0, 2], [2.0, 1.1], [0.0, 1.0], 1000, 10)
    >>> len(figure.axes)
    3
    """
    if not losses or not len(valid_steps) == len(valid_losses) == len(exact_matches) > 0:
        raise ValueError(
            f"needed losses and validations of equal length, got {len(losses)} losses, "
            f"{len(valid_steps)} steps, {len(valid_losses)} validation losses, {len(exact_matches)} exact matches"
        )
    figure, (left, middle, right) = new_figure(3, (13, 3.8), [1.25, 1.1, 1])
    left.plot(range(1, len(losses) + 1), losses, color=BLUE, alpha=0.35, linewidth=1)
    left.plot(valid_steps, valid_losses, color=ORANGE, marker="o", markersize=4)
    left.set(title="Loss", xlabel="step", ylabel="nats an answer token (log scale)", yscale="log")
    label(left, valid_steps[0], valid_losses[0], "held-out logs", ORANGE, offset=(9, 2))
    label(
        left,
        len(losses),
        max(losses[-len(losses) // 20 :]),
        "each batch",
        BLUE,
        offset=(0, 8),
        align="right",
    )
    middle.plot(
        valid_steps, [100 * share for share in exact_matches], color=GREEN, marker="o", markersize=4
    )
    middle.set(
        title="Answers right to the letter",
        xlabel="step",
        ylabel="% of held-out logs",
        ylim=(-4, 106),
    )
    last = 100 * exact_matches[-1]
    label(middle, valid_steps[-1], last, f"{last:.0f}%", GREEN, offset=(-8, -18), align="right")
    parameter_bars(right, full_parameters, adapter_parameters)
    return figure


def parameter_bars(axes: Any, full_parameters: int, adapter_parameters: int) -> None:
    """Trainable parameters, everything against the adapter, as labelled bars from zero: their lengths are the numbers."""
    counts = [adapter_parameters, full_parameters]
    axes.barh(["LoRA", "full"], counts, color=[BLUE, GREY], height=0.55)
    axes.set(title="What is trained", xlabel="parameters", xlim=(0, 1.5 * max(counts)))
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(axis="y", visible=False)
    share = 100 * adapter_parameters / full_parameters
    for row, text in enumerate((f"{counts[0]:,}\n{share:.1f}% of full", f"{counts[1]:,}")):
        axes.annotate(text, (counts[row], row), (5, 0), "data", "offset points", va="center")


def new_figure(
    columns: int, size: tuple[float, float], widths: Sequence[float]
) -> tuple[Figure, Any]:
    """A figure with axes side by side; no window system is asked for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns, width_ratios=widths)


def label(
    axes: Any,
    x: float,
    y: float,
    text: str,
    color: str,
    offset: tuple[float, float],
    align: str = "left",
) -> None:
    """Write a name beside a data point, ``offset`` points away, in the colour of its line."""
    axes.annotate(text, (x, y), offset, "data", "offset points", color=color, ha=align)


def one_axes(width: float = 7.4, height: float = 4.4, columns: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes, one or a row of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def label_ends(axes: Any, ends: Mapping[str, tuple[float, str]], gap: float = 0.075) -> None:
    """Names at the right edge, at the height of their lines' ends, moved apart where they would overlap."""
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    left = axes.get_xlim()[0]
    wanted = sorted(
        (float(to_axes.transform((left, y))[1]), name, color) for name, (y, color) in ends.items()
    )
    floor = -1.0
    for height, name, color in wanted:
        need = gap * (1 + name.count("\n"))
        place = max(height, floor + need)
        axes.annotate(
            name,
            (1.015, place),
            xycoords="axes fraction",
            color=color,
            va="center",
            annotation_clip=False,
        )
        floor = place


def check_alike(**arrays: Sequence[Any]) -> None:
    """Raise ``ValueError`` when arrays are empty or differ in length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"needed arrays of one length and not empty, got lengths {lengths}")


def short(number: float) -> str:
    """A count in few letters.

    >>> short(1_304_192), short(8_030_261_248), short(512)
    ('1.3M', '8B', '512')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return (
                f"{number / size:.3g}{letter}"
                if number >= 100 * size
                else f"{number / size:.2g}{letter}"
            )
    return f"{number:g}"


def size_text(gigabytes: float) -> str:
    """Gigabytes, or terabytes from a thousand on."""
    return f"{gigabytes / 1000:,.3g} TB" if gigabytes >= 1000 else f"{gigabytes:,.3g} GB"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG or SVG, by the name's ending, atomically. Raises ``ValueError`` on another ending."""
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"a figure is saved as .png or .svg, got {path.name!r}")
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return write_atomically(
            path, lambda temporary: figure.savefig(temporary, format=kind, dpi=150)
        )

"""The benchmarks' figure: an adapter's cost in a forward and in a step, and its gain."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from minilora.plots.style import hue, in_house_style, label_ends, new_figure

from .tables import dialled


@in_house_style
def benchmark_figure(results: dict[str, dict[str, Any]]) -> Figure:
    """Three panels, from the results by name: forward, train_step, matrix."""
    figure, (left, middle, right) = new_figure(3, (14, 4), [1, 1.05, 1.3])
    draw_forward(left, results["forward"]["rows"])
    draw_step(middle, results["train_step"]["rows"])
    draw_scores(right, results["matrix"]["rows"][1:])
    return figure


def draw_forward(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Ratio to the plain Linear against width, for a prompt of 512 rows at r=8."""
    ends, tallest, most = {}, 1.0, max(row["rows"] for row in rows)
    shown = [row for row in rows if (row["mode"], row["rows"], row["r"]) == ("inference", most, 8)]
    for index, name in enumerate(("minilora", "PEFT", "loralib")):
        line = [row for row in shown if row["contestant"] == name]
        x, y = [row["width"] for row in line], [row["ratio"]["median"] for row in line]
        axes.plot(x, y, color=hue(index), marker="o", markersize=4)
        low, high = ([row["ratio"][end] for row in line] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=hue(index), alpha=0.15, linewidth=0)
        ends[name], tallest = (y[-1], hue(index)), max(tallest, *y)
    axes.axhline(1, color=hue(6), linewidth=1)
    axes.set(title="Forward, unmerged", ylabel="time / plain Linear's")
    axes.set_xlabel("width of the Linear (512 rows, r=8)")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0.9, 1.1 * tallest)  # a slow spell of the machine may widen a band beyond that
    axes.set_xticks(x, [str(width) for width in x])
    label_ends(axes, ends)


def draw_step(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Seconds of a step over the floor's, every contestant on the widest model."""
    names = [row["model"] for row in rows if "d=" in row["model"]]
    name = max(names, key=lambda model: int(model.split("d=")[1]))
    shown = [row for row in rows if row["model"] == name and "contestant" in row][::-1]
    for y, row in enumerate(shown):
        who, ratio = row["contestant"], row["ratio"]["median"]
        peer_or_floor = hue(1) if "," in who else hue(6)
        colour = hue(0) if "minilora" in who else peer_or_floor
        axes.barh(y, ratio, color=colour, height=0.6)
        text, place = f"{ratio:.2f}", (ratio, y)
        axes.annotate(text, place, (4, 0), "data", "offset points", va="center")
    axes.set_yticks(range(len(shown)), [row["contestant"].replace(" + ", " +\n") for row in shown])
    axes.set_xlim(0, 1.2 * max(row["ratio"]["median"] for row in shown))
    axes.grid(axis="y", visible=False)
    axes.set(title=f"A training step, {name}", xlabel="time / the floor's")


def draw_scores(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Exact match on naval code against trainable parameters, mean and range over the seeds."""
    lowest = min(100 * seed["exact_match"] for row in rows for seed in row["seeds"])
    for row in rows:
        scores = [100 * seed["exact_match"] for seed in row["seeds"]]
        name, x, mean = row["method"], row["trainable"], statistics.mean(scores)
        colour = {"f": hue(6), "Q": hue(2)}.get(name[0], hue(0))  # full, QLoRA, LoRA
        axes.plot([x, x], [min(scores), max(scores)], color=colour, linewidth=2, alpha=0.4)
        axes.plot(x, mean, "o", color=colour)
        if name.startswith("LoRA "):
            text, offset, side = name.replace("LoRA ", ""), (6, -3), "left"
        else:
            text, offset, side = name, (-6, -3), "right"
        style = {"color": colour, "ha": side, "fontsize": 9}
        axes.annotate(text, (x, mean), offset, "data", "offset points", **style)
    axes.set(title="Naval code after equal steps", ylabel="% of held-out logs right")
    axes.set(xlabel="trainable parameters (log scale)", xscale="log", ylim=(lowest - 8, 103))
    axes.margins(x=0.2)


@in_house_style
def forgetting_figure(rows: list[dict[str, Any]]) -> Figure:
    """Two panels: the short runs of all methods, code learnt against prose lost; the keyed runs."""
    figure, (left, right) = new_figure(2, (14, 6), [1, 0.8])
    draw_pareto(left, [row for row in rows if row["group"] == "rivals"])
    draw_kept(right, [row for row in rows if row["group"] == "keyed"])
    return figure


def means(rows: list[dict[str, Any]], *keys: str) -> dict[str, list[float]]:
    """The means over the seeds of some scores, by method, in the order of the rows."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(dialled(row), []).append(row)
    return {
        name: [statistics.mean(row[key] for row in group) for key in keys]
        for name, group in by_method.items()
    }


CURVES = {"self-replay ": 0, "old prose": 1, "nothing": 2, "EWC": 4}  # names that begin so: a line


def draw_pareto(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Exact match against bits a byte lost (log scale): a numbered point a method, and their key.

    Shares of replay, strengths of the penalty and of the dial are joined.
    """
    scores = means(rows, "exact", "forgot")
    for prefix, index in CURVES.items():
        joined = [
            score[::-1]
            for name, score in scores.items()
            if name.startswith(prefix) and (prefix == "nothing" or "dial" not in name)
        ]
        line = sorted(joined)
        lost, right = zip(*line, strict=True) if line else ((), ())
        axes.plot([100 * x for x in right], lost, color=hue(index), linewidth=1)
    for number, (name, (exact, forgot)) in enumerate(scores.items(), 1):
        index = next((i for prefix, i in CURVES.items() if name.startswith(prefix)), 6)
        axes.plot(100 * exact, forgot, "o", color=hue(index))
        style = {"color": hue(index), "fontsize": 9}
        axes.annotate(str(number), (100 * exact, forgot), (5, 3), "data", "offset points", **style)
        key, place = f"{number}  {name}", 1.01 - number * 0.97 / max(1, len(scores))
        axes.text(1.03, place, key, transform=axes.transAxes, **style)
    axes.set(title="Equal short runs: learnt and lost", xlabel="% of held-out logs right")
    axes.set(ylabel="bits a byte lost on old prose (log scale)", yscale="log")
    axes.margins(x=0.06)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_kept(axes: Any, rows: list[dict[str, Any]]) -> None:
    """The share of plain questions answered as before, and of keyed ones right."""
    scores = means(rows, "kept", "exact")
    for name, index in (("old answers kept", 0), ("code right", 1)):
        axes.barh(0, 0, color=hue(index), label=name)
    axes.legend(loc="lower left", bbox_to_anchor=(0, -0.22), ncols=2)
    for y, (_, (kept, exact)) in enumerate(reversed(scores.items())):
        axes.barh(y + 0.2, 100 * kept, color=hue(0), height=0.36)
        axes.barh(y - 0.2, 100 * exact, color=hue(1), height=0.36)
        for offset, value in ((0.2, kept), (-0.2, exact)):
            place = (100 * value, y + offset)
            text = f"{value:.0%}"
            axes.annotate(text, place, (4, 0), "data", "offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(scores)), list(reversed(scores)))
    axes.set(title="Keyed: old answers kept, code right", xlabel="%", xlim=(0, 115))
    axes.grid(axis="y", visible=False)

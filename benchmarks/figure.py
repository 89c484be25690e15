"""The benchmarks' figure: an adapter's cost in a forward and in a step, and its gain."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from minilora.plots.style import hue, in_house_style, label_ends, new_figure


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

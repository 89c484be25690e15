"""The benchmarks' figure: what an adapter costs in a forward and in a step, and what it gives."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from minilora.plots.style import hue, in_house_style, label_ends, new_figure


@in_house_style
def benchmark_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """Three panels, from the results by name: forward, train_step, matrix."""
    figure, (left, middle, right) = new_figure(3, (14, 4), [1, 1.05, 1.3])
    draw_forward(left, found["forward"]["rows"])
    draw_step(middle, found["train_step"]["rows"])
    draw_scores(right, found["matrix"]["rows"][1:])
    return figure


def draw_forward(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Ratio to the plain Linear against width, for a prompt of 512 rows at r=8."""
    ends, tallest = {}, 1.0
    for index, name in enumerate(("minilora", "PEFT", "loralib")):
        most = max(row["rows"] for row in rows)
        line = [
            r
            for r in rows
            if (r["contestant"], r["mode"], r["rows"], r["r"]) == (name, "inference", most, 8)
        ]
        x, y = [row["width"] for row in line], [row["ratio"]["median"] for row in line]
        axes.plot(x, y, color=hue(index), marker="o", markersize=4)
        low, high = ([row["ratio"][end] for row in line] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=hue(index), alpha=0.15, linewidth=0)
        ends[name], tallest = (y[-1], hue(index)), max(tallest, *y)
    axes.axhline(1, color=hue(6), linewidth=1)
    axes.set(
        title="Forward, unmerged",
        xlabel="width of the Linear (512 rows, r=8)",
        ylabel="time / plain Linear's",
    )
    axes.set_xscale("log", base=2)
    axes.set_ylim(0.9, 1.1 * tallest)  # a slow spell of the machine may widen a band beyond that
    axes.set_xticks(x, [str(width) for width in x])
    label_ends(axes, ends)


def draw_step(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Seconds of a step over the floor's, every contestant on the largest model."""
    name = max(
        (row["model"] for row in rows if "d=" in row["model"]),
        key=lambda model: int(model.split("d=")[1]),
    )
    shown = [row for row in rows if row["model"] == name and "contestant" in row][::-1]
    for y, row in enumerate(shown):
        colour = (
            hue(0)
            if "minilora" in row["contestant"]
            else hue(6)
            if "," not in row["contestant"]
            else hue(1)
        )
        axes.barh(y, row["ratio"]["median"], color=colour, height=0.6)
        axes.annotate(
            f"{row['ratio']['median']:.2f}",
            (row["ratio"]["median"], y),
            (4, 0),
            "data",
            "offset points",
            va="center",
        )
    axes.set_yticks(range(len(shown)), [row["contestant"].replace(" + ", " +\n") for row in shown])
    axes.set_xlim(0, 1.2 * max(row["ratio"]["median"] for row in shown))
    axes.grid(axis="y", visible=False)
    axes.set(title=f"A training step, {name}", xlabel="time / the floor's")


def draw_scores(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Exact match on naval code against trainable parameters, mean and range over the seeds."""
    lowest = min(100 * seed["exact_match"] for row in rows for seed in row["seeds"])
    for row in rows:
        scores = [100 * seed["exact_match"] for seed in row["seeds"]]
        colour = (
            hue(6)
            if row["method"] == "full"
            else hue(2)
            if row["method"].startswith("Q")
            else hue(0)
        )
        axes.plot(
            [row["trainable"]] * 2, [min(scores), max(scores)], color=colour, linewidth=2, alpha=0.4
        )
        axes.plot(row["trainable"], statistics.mean(scores), "o", color=colour)
        side = -1 if row["method"].startswith(("Q", "full")) else 1
        axes.annotate(
            row["method"].replace("LoRA ", "") if side > 0 else row["method"],
            (row["trainable"], statistics.mean(scores)),
            (6 * side, -3),
            "data",
            "offset points",
            color=colour,
            ha="left" if side > 0 else "right",
            fontsize=9,
        )
    axes.set(
        title="Naval code after equal steps",
        xlabel="trainable parameters (log scale)",
        xscale="log",
    )
    axes.set(ylabel="% of held-out logs right", ylim=(lowest - 8, 103))
    axes.margins(x=0.2)

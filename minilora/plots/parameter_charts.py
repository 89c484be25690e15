"""Charts of trained parameters, by model, rank and target. Arrays in, ``Figure`` out.

An adapter of rank r on a matrix (in, out) trains r (in + out) parameters (Hu et al. 2021, §5.1), so
lines by rank are straight. Each chart takes ``dark=True``. On a logarithmic axis counts are dots: a
bar has no zero to begin at, and one of 1/2,400 looks like half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .style import GREY, check_alike, hue, in_house_style, label, label_ends, one_axes, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_house_style
def trainable_chart(names: Sequence[str], full: Sequence[int], lora: Sequence[int]) -> Figure:
    """Trainable parameters of each model, all against the adapter, on a log scale."""
    check_alike(names=names, full=full, lora=lora)
    figure, axes = one_axes(height=1.4 + 0.62 * len(names))
    rows = np.arange(len(names))[::-1]
    axes.hlines(rows, lora, full, color=hue(GREY), linewidth=1)
    axes.plot(full, rows, "o", color=hue(GREY))
    axes.plot(lora, rows, "o", color=hue(0))
    for row, whole, part in zip(rows, full, lora, strict=True):
        label(axes, f"full {short(whole)}", (whole, row), (0, 7), ha="center")
        label(axes, f"LoRA {short(part)}", (part, row), (0, 7), ha="center", color=hue(0))
        middle = (float(whole) * float(part)) ** 0.5  # of a logarithmic axis
        label(axes, f"1/{whole / part:,.0f}", (middle, row), (0, -12), ha="center", fontsize=9)
    axes.set(title="What is trained", yticks=rows, yticklabels=names)
    axes.set(xlabel="trainable parameters (log scale)", xscale="log")
    axes.set_xlim(min(lora) / 4, max(full) * 4)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)
    return figure


@in_house_style
def methods_chart(
    names: Sequence[str], trained: Sequence[int], shipped: Sequence[int], model: str
) -> Figure:
    """What each method trains of a model, on a log scale, and the bytes of its file."""
    check_alike(names=names, trained=trained, shipped=shipped)
    figure, axes = one_axes(width=8.6, height=1.4 + 0.42 * len(names))
    order = np.argsort(trained)
    axes.plot(np.asarray(trained)[order], range(len(names)), "o", color=hue(0))
    for row, index in enumerate(order):
        text = f"{short(trained[index])}, file {shipped[index] / 1e6:.1f} MB"
        label(axes, text, (trained[index], row), (7, 0), va="center")
    axes.set(title=f"What each method trains of {model}")
    axes.set(yticks=range(len(names)), yticklabels=[names[i] for i in order])
    axes.set(xlabel="trainable parameters (log scale)", xscale="log")
    axes.set_xlim(min(trained) / 3, max(trained) * 60)
    axes.grid(axis="y", visible=False)
    return figure


@in_house_style
def rank_chart(
    ranks: Sequence[int], counts: Mapping[str, Sequence[int]], model: str, total: int
) -> Figure:
    """Trainable parameters by rank, one straight line for each choice of targets."""
    check_alike(ranks=ranks, **counts)
    figure, axes = one_axes()
    ends = {}
    for index, (name, numbers) in enumerate(counts.items()):
        axes.plot(ranks, numbers, color=hue(index), marker="o", markersize=4)
        ends[f"{name}: {100 * numbers[-1] / total:.2g}%"] = (numbers[-1], hue(index))
    axes.set(title=f"Rank is linear: r Σ (in + out), {model}")
    axes.set(xlabel="rank r (log scale)", xscale="log", xticks=ranks, xticklabels=ranks)
    axes.set(ylabel="trainable parameters (log scale)", yscale="log")
    axes.minorticks_off()
    label_ends(axes, ends)
    unit = f"% of all parameters\nat r = {ranks[-1]}"
    axes.annotate(unit, (1.015, 0.02), xycoords="axes fraction", annotation_clip=False)
    return figure


@in_house_style
def share_chart(
    sizes: Mapping[str, Sequence[int]], shares: Mapping[str, Sequence[float]], names: Sequence[str]
) -> Figure:
    """The trainable share (0 to 1) against the model's size, one line a setting.

    ``names`` label the points of the first line.
    """
    check_alike(names=names, **sizes)
    figure, axes = one_axes()
    ends = {}
    for index, setting in enumerate(shares):
        order = np.argsort(sizes[setting])
        x, y = np.array(sizes[setting])[order], 100 * np.array(shares[setting])[order]
        axes.plot(x, y, color=hue(index), marker="o", markersize=5)
        ends[setting] = (y[-1], hue(index))
    axes.set(title="The larger the model, the smaller the share")
    axes.set(xlabel="parameters of the model (log scale)", xscale="log")
    axes.set(ylabel="trainable, % of all (log scale)", yscale="log")
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter("{x:g}")
    first = next(iter(shares))
    for name, size, share in zip(names, sizes[first], shares[first], strict=True):
        label(axes, name, (size, 100 * share), (0, 7), ha="center", fontsize=9)
    axes.margins(x=0.09, y=0.12)
    label_ends(axes, ends)
    return figure


@in_house_style
def break_even_chart(shapes: Sequence[tuple[str, int, int]]) -> Figure:
    """An adapter's size as a share of its matrix's, by rank, for (name, in, out).

    At 100% the adapter has as many parameters as the matrix: r (in + out) = in · out.
    """
    check_alike(shapes=shapes)
    figure, axes = one_axes()
    most = max(min(size_in, size_out) for _, size_in, size_out in shapes)
    ranks = np.unique(np.round(np.geomspace(1, most, 200)))
    for index, (name, size_in, size_out) in enumerate(shapes):
        even = size_in * size_out / (size_in + size_out)
        axes.plot(ranks, 100 * ranks / even, color=hue(index))
        axes.plot([even], [100], "o", color=hue(index))
        place = (0.03, 0.94 - 0.085 * index)
        text = f"{name}: r = {even:,.0f}"
        axes.annotate(text, place, xycoords="axes fraction", color=hue(index), va="top")
    axes.axhline(100, color=hue(GREY), linewidth=1)
    label(axes, "as many as the matrix itself", (1, 100), (4, -13), color=hue(GREY))
    axes.set(title="Break-even rank: where r (in + out) = in · out")
    axes.set(xlabel="rank r (log scale)", xscale="log")
    axes.set(ylabel="adapter, % of its matrix (log scale)", yscale="log", ylim=(None, 40_000))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    return figure


@in_house_style
def heat_chart(
    targets: Sequence[str],
    ranks: Sequence[int],
    values: ArrayLike,
    title: str,
    text: Sequence[Sequence[str]],
) -> Figure:
    """A table of targets by rank as colours, each cell with its ``text``.

    ``values`` (targets, ranks) are positive.
    """
    table = np.asarray(values, dtype=float)
    shape = (len(targets), len(ranks))
    if table.shape != shape or not (table > 0).all():
        raise ValueError(f"expected positive values of shape {shape}, got {table.shape}")
    from matplotlib.colors import LogNorm

    figure, axes = one_axes(height=1.5 + 0.52 * len(targets))
    norm = LogNorm(table.min(), table.max() * 1.0001)
    axes.imshow(table, cmap="cividis", norm=norm, aspect="auto")
    for i, j in np.ndindex(table.shape):
        color = "black" if norm(table[i, j]) > 0.55 else "white"
        axes.annotate(text[i][j], (j, i), ha="center", va="center", color=color)
    axes.set(title=title, yticks=range(len(targets)), yticklabels=targets)
    axes.set(xlabel="rank r", xticks=range(len(ranks)), xticklabels=ranks)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure

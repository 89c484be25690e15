"""Charts of a run: its bytes, its loss, its weights. Arrays in, ``Figure`` out.

Each has one thing to see and takes ``dark=True``. ``plots/parameter_charts.py`` draws what is
trained, ``plots/gallery.py`` fills all of them from the ledger and from short real runs, and
``minilora chart`` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..text import size_text
from .style import (
    GREY,
    check_alike,
    hue,
    in_house_style,
    label,
    label_ends,
    new_figure,
    one_axes,
    short,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_house_style
def memory_chart(
    models: Sequence[str],
    bars: Mapping[str, Sequence[Mapping[str, float]]],
    gpus: Mapping[str, float],
    note: str = "",
) -> Figure:
    """Bytes by category, stacked: a panel a model, each with its own scale, and a bar a method.

    ``bars[method][i]`` is model i's bytes by category; ``gpus`` are bytes by name, drawn as lines
    where they lie within a panel's scale. One model alone is drawn in the shape of a slide, 16 to
    9, with the categories at the right.
    """
    check_alike(models=models, **bars)
    every_bar = [bar for rows in bars.values() for bar in rows]
    categories = [name for name in every_bar[0] if any(bar[name] for bar in every_bar)]
    alone = len(models) == 1
    size = (9.6, 5.4) if alone else (2.6 + 2.3 * len(models), 4.9)
    edge = len(bars) + (0.35 if alone else 0.6)  # between small bars and it stand the cards' names
    figure, panels = one_axes(*size, columns=len(models))
    panels = np.atleast_1d(panels)
    for i, (axes, model) in enumerate(zip(panels, models, strict=True)):
        tallest = stack_bars(axes, [rows[i] for rows in bars.values()], categories)
        card_lines(axes, gpus, tallest, edge, gap=0.06 if alone else 0.095)
        axes.set(title=model, xticks=range(len(bars)), xticklabels=list(bars))
        axes.set(xlim=(-0.6 if alone else -0.8, edge), ylim=(0, tallest * 1.13))
        axes.grid(visible=False)
        axes.yaxis.set_major_formatter("{x:,g}")
    panels[0].set_ylabel("bytes of a training step, GB")
    handles, names = panels[0].get_legend_handles_labels()
    if alone:
        # in the order of the stack
        figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False)
        figure.supxlabel(note, fontsize=11)
    else:
        place: Any = {"loc": "outside lower center", "ncols": 4}
        figure.legend(handles, names, **place, frameon=False, title=note or None)
    return figure


def stack_bars(axes: Any, bars: Sequence[Mapping[str, float]], categories: Sequence[str]) -> float:
    """Bars of stacked gigabytes with their sums above them; returns the largest sum."""
    behind = {"facecolor": axes.figure.get_facecolor(), "edgecolor": "none", "pad": 1}
    tallest = 0.0
    for x, bar in enumerate(bars):
        top = 0.0
        for index, category in enumerate(categories):
            name = category if x == 0 else None
            height = bar[category] / 1e9
            axes.bar(x, height, bottom=top, color=hue(index), width=0.62, label=name)
            top += height
        total = f"{top:,.0f} GB" if top >= 10 else f"{top:.1f} GB"
        label(axes, total, (x, top), (0, 4), ha="center", weight="bold", bbox=behind)
        tallest = max(tallest, top)
    return tallest


def card_lines(
    axes: Any, gpus: Mapping[str, float], tallest: float, edge: float, gap: float
) -> None:
    """Cards within the scale as dashed lines, without those too close to the one above."""
    last = -tallest
    for name, size in sorted(gpus.items(), key=lambda item: -item[1]):
        height = size / 1e9
        within = 0.05 * tallest < height <= 1.08 * tallest
        if within and abs(last - height) > gap * tallest:
            axes.axhline(height, color=hue(GREY), linestyle=(0, (4, 3)), linewidth=1, zorder=0.5)
            label(axes, name, (edge, height), (-2, 2), ha="right", color=hue(GREY), fontsize=9)
            last = height


@in_house_style
def disk_chart(numbers: Sequence[int], full_bytes: int, adapter_bytes: int, model: str) -> Figure:
    """Disk space of N fine-tunes: N full copies, or one base and N adapters."""
    check_alike(numbers=numbers)
    figure, axes = one_axes()
    count = np.asarray(numbers, dtype=float)
    full, lora = count * full_bytes / 1e9, (full_bytes + count * adapter_bytes) / 1e9
    axes.plot(numbers, full, color=hue(GREY))
    axes.plot(numbers, lora, color=hue(0))
    axes.set(title=f"{numbers[-1]:,} fine-tunes of {model} on disk")
    axes.set(xlabel="fine-tunes (log scale)", xscale="log", ylabel="GB (log scale)", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    copies = f"full copies\n{size_text(full[-1] * 1e9)}"
    less = f"{size_text(lora[-1] * 1e9)} ({full[-1] / lora[-1]:,.0f}× less)"
    adapters = f"one base, {numbers[-1]:,} adapters\n{less}"
    label_ends(axes, {copies: (full[-1], hue(GREY)), adapters: (lora[-1], hue(0))})
    return figure


@in_house_style
def finetune_figure(
    losses: Sequence[float],
    valid_steps: Sequence[int],
    valid_losses: Sequence[float],
    exact_matches: Sequence[float],
    full_parameters: int,
    adapter_parameters: int,
    forgotten: Mapping[str, float] | None = None,
    answers: Sequence[str] = (),
) -> Figure:
    """A fine-tune at a glance: loss and exact match by step, and trained parameters against all.

    ``losses`` has one value a step, nats an answer token; the ``valid_…`` arrays and
    ``exact_matches`` (0 to 1) have one value a validation. ``forgotten``, bits a byte gained on old
    prose by name, is drawn in place of the parameters, which are then told in a line; ``answers``
    are lines of text above all. Raises ``ValueError`` when the arrays differ in length, or when
    nothing is given.

    >>> figure = finetune_figure([2.0, 1.0], [0, 2], [2.0, 1.1], [0.0, 1.0], 1000, 10)
    >>> len(figure.axes)
    3
    """
    if not losses or not len(valid_steps) == len(valid_losses) == len(exact_matches) > 0:
        raise ValueError(
            f"expected losses and validations of equal length, got {len(losses)} losses, "
            f"{len(valid_steps)} steps, {len(valid_losses)} validation losses, "
            f"{len(exact_matches)} exact matches"
        )
    height = 3.8 + 0.24 * len(answers)
    figure, (left, middle, right) = new_figure(3, (13, height), [1.25, 1.1, 1])
    blue, orange, green = hue(0), hue(1), hue(2)
    left.plot(range(1, len(losses) + 1), losses, color=blue, alpha=0.35, linewidth=1)
    left.plot(valid_steps, valid_losses, color=orange, marker="o", markersize=4)
    left.set(title="Loss", xlabel="step", ylabel="nats an answer token (log scale)", yscale="log")
    label(left, "held-out logs", (valid_steps[0], valid_losses[0]), (9, 2), color=orange)
    recent = max(losses[-len(losses) // 20 :])
    label(left, "each batch", (len(losses), recent), (0, 8), color=blue, ha="right")
    percent = [100 * share for share in exact_matches]
    middle.plot(valid_steps, percent, color=green, marker="o", markersize=4)
    middle.set(title="Answers right to the letter", xlabel="step")
    middle.set(ylabel="% of held-out logs", ylim=(-4, 106))
    last = (valid_steps[-1], percent[-1])
    label(middle, f"{percent[-1]:.0f}%", last, (-8, -18), color=green, ha="right")
    if forgotten:
        forgotten_bars(right, forgotten)
        share = f"parameters: {adapter_parameters:,} trained beside {full_parameters:,} frozen"
        figure.supxlabel(share, fontsize=11)
    else:
        parameter_bars(right, full_parameters, adapter_parameters)
    if answers:
        text: Any = {"ha": "left", "fontsize": 11, "family": "monospace"}
        figure.suptitle("\n".join(answers), x=0.01, **text)
    return figure


def forgotten_bars(axes: Any, forgotten: Mapping[str, float]) -> None:
    """Bits a byte that each adapter has lost on old prose."""
    axes.barh(list(forgotten), list(forgotten.values()), color=hue(1), height=0.5)
    axes.set(title="What was forgotten", xlabel="bits a byte more on old prose")
    axes.set_xlim(min(0, *forgotten.values()), 1.35 * max(*forgotten.values(), 0.01))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for row, bits in enumerate(forgotten.values()):
        label(axes, f"{bits:+.2f}", (max(bits, 0), row), va="center")


def parameter_bars(axes: Any, full_parameters: int, adapter_parameters: int) -> None:
    """Trainable parameters, all against the adapter, as labelled bars from zero."""
    counts = [adapter_parameters, full_parameters]
    axes.barh(["LoRA", "full"], counts, color=[hue(0), hue(GREY)], height=0.55)
    axes.set(title="What is trained", xlabel="parameters", xlim=(0, 1.5 * max(counts)))
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(axis="y", visible=False)
    share = 100 * adapter_parameters / full_parameters
    for row, text in enumerate((f"{counts[0]:,}\n{share:.1f}% of full", f"{counts[1]:,}")):
        label(axes, text, (counts[row], row), va="center")


@in_house_style
def loss_chart(curves: Mapping[str, ArrayLike], steps: Sequence[int] | None = None) -> Figure:
    """Loss by step: the mean over seeds as a line, from the lowest to the highest seed as a band.

    ``curves[method]`` is (seeds, steps), nats a token.
    """
    check_alike(curves=[*curves])
    figure, axes = one_axes()
    ends = {}
    for index, (name, values) in enumerate(curves.items()):
        table = np.atleast_2d(np.asarray(values, dtype=float))  # (seeds, steps)
        x = np.arange(1, table.shape[1] + 1) if steps is None else steps
        low, mean, high = table.min(axis=0), table.mean(axis=0), table.max(axis=0)
        axes.fill_between(x, low, high, color=hue(index), alpha=0.2, linewidth=0)
        axes.plot(x, mean, color=hue(index))
        ends[f"{name} ({len(table)} seeds)"] = (mean[-1], hue(index))
    axes.set(title="Loss, mean and range over seeds", xlabel="step")
    axes.set(ylabel="nats an answer token (log scale)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    label_ends(axes, ends)
    return figure


@in_house_style
def spectrum_chart(
    spectra: Mapping[str, ArrayLike], title: str = "How many directions a fine-tune uses"
) -> Figure:
    """Singular values of weight updates, each over its own largest, by index."""
    check_alike(spectra=[*spectra])
    figure, axes = one_axes()
    ends = {}
    for index, (name, values) in enumerate(spectra.items()):
        relative = np.sort(np.asarray(values, dtype=float))[::-1]
        relative = relative / relative[0]
        visible = relative[relative > 1e-5]
        numbers = np.arange(1, len(visible) + 1)
        axes.plot(numbers, visible, color=hue(index), marker="o", markersize=3.5)
        ends[name] = (len(visible), visible[-1], hue(index))
    axes.set(title=title, xlabel="index of the singular value")
    axes.set(ylabel="singular value / largest (log scale)", yscale="log")
    longest = max(x for x, _, _ in ends.values())
    for name, (x, y, color) in ends.items():
        far = x > 0.7 * longest
        offset, side = ((-6, -16), "right") if far else ((-12, -22), "left")
        label(axes, name, (x, y), offset, color=color, ha=side)
    axes.set_ylim(bottom=min(y for _, y, _ in ends.values()) / 4)
    return figure


@in_house_style
def nf4_chart(weights: ArrayLike, levels: Sequence[float], name: str = "a weight") -> Figure:
    """A weight's histogram, each block of 64 over its largest magnitude, and NF4's 16 levels."""
    values = np.asarray(weights, dtype=float).ravel()
    blocks = values[: len(values) // 64 * 64].reshape(-1, 64)  # (blocks, 64)
    if not blocks.size:
        raise ValueError(f"expected at least one block of 64 weights, got {values.size}")
    largest = np.abs(blocks).max(axis=1, keepdims=True)  # (blocks, 1)
    scaled = (blocks / np.where(largest > 0, largest, 1)).ravel()
    figure, axes = one_axes()
    axes.hist(scaled, bins=120, range=(-1, 1), color=hue(0), alpha=0.55)
    top = axes.get_ylim()[1]
    axes.vlines(levels, 0, top * 1.02, color=hue(1), linewidth=1.3)
    label(axes, "16 NF4\nlevels", (levels[-2], top), (6, -28), color=hue(1))
    axes.set(title=f"Levels are dense where weights are: {name}", ylabel="weights in a bin")
    axes.set(xlabel="weight / largest of its block of 64")
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(axis="x", visible=False)
    return figure

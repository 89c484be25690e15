"""The ledger's charts: arrays in, ``Figure`` out, each with one thing to see. Each takes ``dark=True``.

``plots/gallery.py`` fills them from the ledger and from short real runs; ``minilora chart`` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .style import check_alike, hue, in_house_style, label_ends, one_axes, short, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = 6  # the last colour of both themes


@in_house_style
def trainable_chart(names: Sequence[str], full: Sequence[int], lora: Sequence[int]) -> Figure:
    """Trainable parameters of each model, everything against the adapter, on a log scale."""
    check_alike(names=names, full=full, lora=lora)
    figure, axes = one_axes(height=1.4 + 0.62 * len(names))
    rows = np.arange(len(names))[::-1]
    for offset, counts, color, what in (
        (0.2, full, hue(GREY), "full"),
        (-0.2, lora, hue(0), "LoRA"),
    ):
        axes.barh(rows + offset, counts, color=color, height=0.36)
        for row, number, whole in zip(rows, counts, full, strict=True):
            share = "" if counts is full else f"  ({100 * number / whole:.2g}%)"
            axes.annotate(
                f"{what} {short(number)}{share}",
                (number, row + offset),
                (5, 0),
                "data",
                "offset points",
                va="center",
            )
    axes.set(
        title="What is trained",
        xlabel="trainable parameters (log scale)",
        xscale="log",
        yticks=rows,
        yticklabels=names,
    )
    axes.set_xlim(min(lora) / 4, max(full) * 25)
    axes.grid(axis="y", visible=False)
    return figure


@in_house_style
def rank_chart(
    ranks: Sequence[int], counts: Mapping[str, Sequence[int]], model: str, total: int
) -> Figure:
    """Trainable parameters by rank, one line for each choice of targets: ``r Σ (in + out)``, straight lines."""
    check_alike(ranks=ranks, **counts)
    figure, axes = one_axes()
    for index, numbers in enumerate(counts.values()):
        axes.plot(ranks, numbers, color=hue(index), marker="o", markersize=4)
    axes.set(
        title=f"Rank is linear: r Σ (in + out), {model}",
        xlabel="rank r (log scale)",
        xscale="log",
        yscale="log",
    )
    axes.set(ylabel="trainable parameters (log scale)", xticks=ranks, xticklabels=ranks)
    axes.minorticks_off()
    shares = {name: 100 * numbers[-1] / total for name, numbers in counts.items()}
    label_ends(
        axes, {f"{n}: {shares[n]:.2g}%": (c[-1], hue(i)) for i, (n, c) in enumerate(counts.items())}
    )
    axes.annotate(
        f"% of all parameters\nat r = {ranks[-1]}",
        (1.015, 0.02),
        xycoords="axes fraction",
        annotation_clip=False,
    )
    return figure


@in_house_style
def memory_chart(
    models: Sequence[str],
    bars: Mapping[str, Sequence[Mapping[str, float]]],
    gpus: Mapping[str, float],
    note: str = "",
) -> Figure:
    """Bytes by category, stacked, one panel a model (each with its own scale) and one bar a method; cards as lines.

    One model alone is drawn in the shape of a slide, 16 to 9, with the categories at the right.
    ``bars[method][i]`` is model i's bytes by category; ``gpus`` are bytes by name. Panels show the cards within their scale.
    """
    check_alike(models=models, **bars)
    categories = [
        c
        for c in next(iter(bars.values()))[0]
        if any(bar[c] for rows in bars.values() for bar in rows)
    ]
    alone = len(models) == 1
    figure, panels = one_axes(
        9.6 if alone else 2.6 + 2.0 * len(models), 5.4 if alone else 4.9, len(models)
    )
    behind = {"facecolor": figure.get_facecolor(), "edgecolor": "none", "pad": 1}
    for i, (axes, model) in enumerate(zip(np.atleast_1d(panels), models, strict=True)):
        tallest = 0.0
        for x, rows in enumerate(bars.values()):
            bottom = 0.0
            for color, category in enumerate(categories):
                axes.bar(
                    x,
                    rows[i][category] / 1e9,
                    bottom=bottom,
                    color=hue(color),
                    width=0.62,
                    label=category if x == 0 else None,
                )
                bottom += rows[i][category] / 1e9
            text = f"{bottom:,.0f} GB" if bottom >= 10 else f"{bottom:.1f} GB"
            axes.annotate(
                text,
                (x, bottom),
                (0, 4),
                "data",
                "offset points",
                ha="center",
                weight="bold",
                bbox=behind,
            )
            tallest = max(tallest, bottom)
        card_lines(axes, gpus, tallest, len(bars), gap=0.06 if alone else 0.095)
        axes.set(
            title=model, xticks=range(len(bars)), xticklabels=list(bars), ylim=(0, tallest * 1.13)
        )
        axes.set_xlim(-0.6 if alone else -1.0, len(bars) + 0.35)
        axes.grid(visible=False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    np.atleast_1d(panels)[0].set_ylabel("bytes of a training step, GB")
    handles, names = np.atleast_1d(panels)[0].get_legend_handles_labels()
    if alone:
        # in the order of the stack
        figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False)
        figure.supxlabel(note, fontsize=11)
    else:
        figure.legend(
            handles, names, loc="outside lower center", ncols=4, frameon=False, title=note or None
        )
    return figure


def card_lines(
    axes: Any, gpus: Mapping[str, float], tallest: float, methods: int, gap: float
) -> None:
    """Cards that lie within the scale as dashed lines, those too close to the last left out."""
    last = -tallest
    for name, size in sorted(gpus.items(), key=lambda item: -item[1]):
        height = size / 1e9
        if (
            height <= tallest * 1.08
            and abs(last - height) > gap * tallest
            and height > 0.05 * tallest
        ):
            axes.axhline(height, color=hue(GREY), linestyle=(0, (4, 3)), linewidth=1, zorder=0.5)
            axes.annotate(
                name,
                (methods + 0.35, height),
                (-2, 2),
                "data",
                "offset points",
                ha="right",
                color=hue(GREY),
                fontsize=9,
            )
            last = height


@in_house_style
def share_chart(
    sizes: Mapping[str, Sequence[int]], shares: Mapping[str, Sequence[float]], names: Sequence[str]
) -> Figure:
    """The trainable share (0 to 1) against the model's size, one line a setting; ``names`` label the first line's points."""
    check_alike(names=names, **sizes)
    figure, axes = one_axes()
    for index, setting in enumerate(shares):
        order = np.argsort(sizes[setting])
        axes.plot(
            np.array(sizes[setting])[order],
            100 * np.array(shares[setting])[order],
            color=hue(index),
            marker="o",
            markersize=5,
        )
    axes.set(
        title="The larger the model, the smaller the share",
        xlabel="parameters of the model (log scale)",
        xscale="log",
    )
    axes.set(ylabel="trainable, % of all (log scale)", yscale="log")
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    setting = next(iter(shares))
    for name, size, share in zip(names, sizes[setting], shares[setting], strict=True):
        axes.annotate(
            name, (size, 100 * share), (0, 7), "data", "offset points", ha="center", fontsize=9
        )
    axes.margins(x=0.09, y=0.12)
    ends = {s: (100 * shares[s][int(np.argmax(sizes[s]))], hue(i)) for i, s in enumerate(shares)}
    label_ends(axes, ends)
    return figure


@in_house_style
def break_even_chart(shapes: Sequence[tuple[str, int, int]]) -> Figure:
    """An adapter's size as a share of its matrix's, by rank, for (name, in, out); at 100% r (in + out) = in · out."""
    check_alike(shapes=shapes)
    figure, axes = one_axes()
    ranks = np.unique(np.round(np.geomspace(1, max(min(i, o) for _, i, o in shapes), 200)))
    for index, (name, size_in, size_out) in enumerate(shapes):
        even = size_in * size_out / (size_in + size_out)
        axes.plot(
            ranks, 100 * ranks * (size_in + size_out) / (size_in * size_out), color=hue(index)
        )
        axes.plot([even], [100], "o", color=hue(index))
        text = f"{name}: r = {even:,.0f}"
        axes.annotate(
            text, (0.03, 0.94 - 0.085 * index), xycoords="axes fraction", color=hue(index), va="top"
        )
    axes.axhline(100, color=hue(GREY), linewidth=1)
    axes.annotate(
        "as many as the matrix itself", (1, 100), (4, -13), "data", "offset points", color=hue(GREY)
    )
    axes.set(
        title="Break-even rank: where r (in + out) = in · out",
        xlabel="rank r (log scale)",
        ylabel="adapter, % of its matrix (log scale)",
    )
    axes.set(xscale="log", yscale="log", ylim=(None, 40_000))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
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
        seen = relative[relative > 1e-5]
        axes.plot(np.arange(1, len(seen) + 1), seen, color=hue(index), marker="o", markersize=3.5)
        ends[name] = (len(seen), seen[-1], hue(index))
    axes.set(
        title=title,
        xlabel="index of the singular value",
        ylabel="singular value / largest (log scale)",
        yscale="log",
    )
    for name, (x, y, color) in ends.items():
        far = x > 0.7 * max(end[0] for end in ends.values())
        axes.annotate(
            name,
            (x, y),
            (-6, -16) if far else (-12, -22),
            "data",
            "offset points",
            color=color,
            ha="right" if far else "left",
        )
    axes.set_ylim(bottom=min(end[1] for end in ends.values()) / 4)
    return figure


@in_house_style
def loss_chart(curves: Mapping[str, ArrayLike], steps: Sequence[int] | None = None) -> Figure:
    """Loss by step, one band a method: the mean over seeds as a line, from the lowest to the highest seed as a band.

    ``curves[method]`` is (seeds, steps), nats a token.
    """
    check_alike(curves=[*curves])
    figure, axes = one_axes()
    ends = {}
    for index, (name, values) in enumerate(curves.items()):
        table = np.atleast_2d(np.asarray(values, dtype=float))
        x = np.arange(1, table.shape[1] + 1) if steps is None else steps
        axes.fill_between(
            x, table.min(axis=0), table.max(axis=0), color=hue(index), alpha=0.2, linewidth=0
        )
        axes.plot(x, table.mean(axis=0), color=hue(index))
        ends[f"{name} ({len(table)} seeds)"] = (table.mean(axis=0)[-1], hue(index))
    axes.set(
        title="Loss, mean and range over seeds",
        xlabel="step",
        ylabel="nats an answer token (log scale)",
        yscale="log",
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    label_ends(axes, ends)
    return figure


@in_house_style
def nf4_chart(weights: ArrayLike, levels: Sequence[float], name: str = "a weight") -> Figure:
    """A weight's histogram, each block of 64 over its largest magnitude, with the 16 levels that it is rounded to."""
    values = np.asarray(weights, dtype=float).ravel()
    blocks = values[: len(values) // 64 * 64].reshape(-1, 64)
    if not blocks.size:
        raise ValueError(f"needed at least one block of 64 weights, got {values.size}")
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = (blocks / np.where(largest > 0, largest, 1)).ravel()
    figure, axes = one_axes()
    axes.hist(scaled, bins=120, range=(-1, 1), color=hue(0), alpha=0.55)
    top = axes.get_ylim()[1]
    axes.vlines(levels, 0, top * 1.02, color=hue(1), linewidth=1.3)
    axes.annotate(
        "16 NF4\nlevels", (levels[-2], top), (6, -28), "data", "offset points", color=hue(1)
    )
    axes.set(
        title=f"Levels are dense where weights are: {name}",
        xlabel="weight / largest of its block of 64",
        ylabel="weights in a bin",
    )
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(axis="x", visible=False)
    return figure


@in_house_style
def heat_chart(
    targets: Sequence[str],
    ranks: Sequence[int],
    values: ArrayLike,
    what: str,
    text: Sequence[Sequence[str]],
) -> Figure:
    """A table of targets by rank as colours, each cell with its ``text``; ``values`` (targets, ranks) are positive."""
    table = np.asarray(values, dtype=float)
    if table.shape != (len(targets), len(ranks)) or not (table > 0).all():
        raise ValueError(
            f"needed positive values of shape {(len(targets), len(ranks))}, got {table.shape}"
        )
    from matplotlib.colors import LogNorm

    figure, axes = one_axes(height=1.5 + 0.52 * len(targets))
    image = axes.imshow(
        table, cmap="cividis", norm=LogNorm(table.min(), table.max() * 1.0001), aspect="auto"
    )
    for i, j in np.ndindex(table.shape):
        light = image.norm(table[i, j]) > 0.55
        axes.annotate(
            text[i][j], (j, i), ha="center", va="center", color="black" if light else "white"
        )
    axes.set(
        title=what,
        xlabel="rank r",
        yticks=range(len(targets)),
        yticklabels=targets,
        xticks=range(len(ranks)),
        xticklabels=ranks,
    )
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure


@in_house_style
def disk_chart(numbers: Sequence[int], full_bytes: int, adapter_bytes: int, model: str) -> Figure:
    """Disk space of N fine-tunes: N full copies, or one base and N adapters."""
    check_alike(numbers=numbers)
    figure, axes = one_axes()
    count = np.asarray(numbers, dtype=float)
    full, lora = count * full_bytes / 1e9, (full_bytes + count * adapter_bytes) / 1e9
    axes.plot(numbers, full, color=hue(GREY))
    axes.plot(numbers, lora, color=hue(0))
    axes.set(
        title=f"{numbers[-1]:,} fine-tunes of {model} on disk",
        xlabel="fine-tunes (log scale)",
        xscale="log",
    )
    axes.set(ylabel="GB (log scale)", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    label_ends(
        axes,
        {
            f"full copies\n{size_text(full[-1])}": (full[-1], hue(GREY)),
            f"one base, {numbers[-1]:,} adapters\n{size_text(lora[-1])} ({full[-1] / lora[-1]:,.0f}× less)": (
                lora[-1],
                hue(0),
            ),
        },
    )
    return figure

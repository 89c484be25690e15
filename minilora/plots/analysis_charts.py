"""Charts of what a fine-tune changed: where, along how many directions, and what it did.

Arrays in, ``Figure`` out, as in ``plots/charts.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .style import GREY, check_alike, hue, in_house_style, label_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_house_style
def adapter_chart(
    layers: Sequence[int],
    sizes: Mapping[str, Sequence[float]],
    spectra: Mapping[str, ArrayLike],
    written: Sequence[float],
    similar: Sequence[float],
) -> Figure:
    """What an adapter changed: where, how it is spread over directions, and what the blocks do.

    ``sizes[kind]`` has ‖ΔW‖/‖W0‖ for each of ``layers``, NaN where there is no adapter;
    ``spectra[kind]`` the mean singular values, the largest first; ``written`` the change of each
    block's own contribution and ``similar`` the CKA after each block, for all blocks of the model.
    """
    check_alike(layers=layers, **sizes)
    check_alike(written=written, similar=similar)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.6, 4.2), layout="constrained")
    widths: Any = {"width_ratios": [1.25, 1, 1]}
    left, middle, right = figure.subplots(1, 3, **widths)
    size_map(figure, left, layers, sizes)
    for index, (kind, values) in enumerate(spectra.items()):
        share = np.asarray(values, dtype=float) ** 2
        share = 100 * share.cumsum() / max(share.sum(), 1e-30)  # of an untrained adapter: zeros
        line: Any = {"color": hue(index % (GREY + 1)), "marker": "o", "markersize": 3}
        middle.plot(range(1, len(share) + 1), share, label=kind, **line)
    middle.set(title="Along how many directions", xlabel="directions, the strongest first")
    middle.set(ylabel="% of ‖ΔW‖², mean of the layers", ylim=(0, 104))
    middle.legend(frameon=False, fontsize=9, loc="lower right")
    blocks = range(len(written))
    right.plot(blocks, written, color=hue(1), marker="o", markersize=4)
    right.plot(blocks, similar, color=hue(0), marker="s", markersize=4)
    right.set(title="What that does", xlabel="block", ylim=(0, None))
    right.set(ylabel="share")
    right.margins(x=0.05)
    right.xaxis.get_major_locator().set_params(integer=True)
    names = {"change of\nwhat the\nblock adds": (written[-1], hue(1))}
    names["CKA with\nthe base, so\nfar"] = (similar[-1], hue(0))
    label_ends(right, names)
    return figure


def size_map(
    figure: Figure, axes: Any, layers: Sequence[int], sizes: Mapping[str, Sequence[float]]
) -> None:
    """‖ΔW‖/‖W0‖ as colours, a row a kind of module; numbers in the cells while they fit."""
    table = np.array([np.asarray(row, dtype=float) for row in sizes.values()])  # (kinds, layers)
    image = axes.imshow(100 * table, cmap="cividis", aspect="auto", vmin=0)
    if len(layers) <= 12:
        middle = 50 * np.nanmax(table)
        for i, j in np.argwhere(np.isfinite(table)):
            percent = 100 * table[i, j]
            text = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
            color = "black" if percent > middle else "white"
            axes.annotate(text, (j, i), ha="center", va="center", color=color, fontsize=9)
    axes.set(title="Where: ‖ΔW‖ / ‖W0‖", xlabel="layer", yticks=range(len(sizes)))
    axes.set(yticklabels=list(sizes))
    step = max(1, len(layers) // 10)
    axes.set(xticks=range(0, len(layers), step), xticklabels=list(layers)[::step])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="%", fraction=0.05, pad=0.02)

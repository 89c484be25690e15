"""Every chart with its data: most from the ledger in milliseconds, three from the shipped base, two of these after training.

    draw("memory")                -> Figure
    write_gallery("charts/")      -> charts/*.png, *.svg, light and dark, and index.html, which holds them all

The runs are real and short (``RUNS``); nothing is stored from elsewhere.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import text_writer, write_atomically
from ..ledger.estimate import GB, GPUS, Plan, Settings, plan
from ..ledger.shapes import architecture
from ..lora.config import LoraConfig
from ..text import nearest
from . import charts
from .style import save_figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {"steps": 30, "seeds": 3, "batch_size": 8}
ALL = "all-linear"
LLAMAS = ("llama-3-8b", "llama-3-70b", "llama-3.1-405b")
TARGETS = {
    "q": ["q_proj"],
    "q, v": ["q_proj", "v_proj"],
    "q, k, v, o": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gate, up, down": ["gate_proj", "up_proj", "down_proj"],
    "all linear": ALL,
}


def trainable(dark: bool = False) -> Figure:
    """Trainable parameters, full against LoRA (q and v, r = 8)."""
    names = ["base", "gpt2", "llama-3.2-1b", "llama-3-8b", "llama-3-70b", "llama-3.1-405b"]
    plans = [
        plan(
            name, LoraConfig(target_modules=["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"])
        )
        for name in names
    ]
    titles = [name.replace("base", "our base") for name in names]
    return charts.trainable_chart(
        titles, [p.parameters - p.trainable for p in plans], [p.trainable for p in plans], dark=dark
    )


def rank(dark: bool = False) -> Figure:
    """Parameters against rank for chosen targets."""
    ranks = [1, 2, 4, 8, 16, 32, 64, 128]
    counts = {
        name: [plan("llama-3-8b", LoraConfig(r, 16, t)).trainable for r in ranks]
        for name, t in TARGETS.items()
    }
    return charts.rank_chart(
        ranks, counts, "Llama-3-8B", architecture("llama-3-8b").parameters, dark=dark
    )


def memory(dark: bool = False) -> Figure:
    """Bytes by category across methods and sizes, with cards as lines."""
    settings = Settings(batch=1, seq=2048, checkpointing=True)
    config = LoraConfig(r=16, target_modules=ALL)
    methods = {"full": "full", "LoRA": "lora", "QLoRA": "qlora"}
    bars = {
        title: [plan(m, config, method, settings).bytes for m in LLAMAS]
        for title, method in methods.items()
    }
    cards = {name: size * GB for name, size in GPUS.items()} | {
        f"8 × {name}": 8 * GPUS[name] * GB for name in ("80 GB", "141 GB")
    }
    note = "bf16 base, r = 16 on all Linears, AdamW in float32, 1 × 2048 tokens, gradient checkpointing"
    return charts.memory_chart(
        ["Llama-3 8B", "Llama-3 70B", "Llama-3.1 405B"], bars, cards, note, dark=dark
    )


def share(dark: bool = False) -> Figure:
    """Trainable share against model size."""
    names = ["base", "llama-3.2-1b", "llama-3-8b", "llama-3-70b", "llama-3.1-405b"]
    settings = {"all linear, r = 16": LoraConfig(16, 16, ALL), "q and v, r = 8": LoraConfig(8)}
    plans: dict[str, list[Plan]] = {
        title: [plan(name, c) for name in names] for title, c in settings.items()
    }
    sizes = {title: [p.parameters - p.trainable for p in found] for title, found in plans.items()}
    titles = ["our base", "1B", "8B", "70B", "405B"]
    return charts.share_chart(
        sizes,
        {title: [p.share for p in found] for title, found in plans.items()},
        titles,
        dark=dark,
    )


def break_even(dark: bool = False) -> Figure:
    """Where r (in + out) = in · out."""
    shapes = [("our q_proj 128 → 128", 128, 128), ("Llama-3-8B v_proj 4096 → 1024", 4096, 1024)]
    shapes += [("4096 → 4096", 4096, 4096), ("Llama-3-8B up_proj 4096 → 14336", 4096, 14336)]
    return charts.break_even_chart(shapes, dark=dark)


def heat(dark: bool = False) -> Figure:
    """Targets by rank: trainable parameters of Llama-3-8B."""
    ranks = [1, 4, 8, 16, 64, 256]
    table = [
        [plan("llama-3-8b", LoraConfig(r, 16, t)).trainable for r in ranks]
        for t in TARGETS.values()
    ]
    text = [[short(value) for value in row] for row in table]
    return charts.heat_chart(
        [*TARGETS], ranks, table, "Trainable parameters, Llama-3-8B", text, dark=dark
    )


def disk(dark: bool = False) -> Figure:
    """Adapters (r = 16 on all Linears, bfloat16) on disk against full copies."""
    found = plan("llama-3-8b", LoraConfig(r=16, target_modules=ALL), adapter_dtype="bfloat16")
    numbers = [1, 3, 10, 30, 100, 300, 1000]
    return charts.disk_chart(
        numbers,
        2 * architecture("llama-3-8b").parameters,
        found.adapter_file_bytes,
        "Llama-3-8B",
        dark=dark,
    )


def nf4(dark: bool = False) -> Figure:
    """NF4's levels on a real weight."""
    from ..level0 import nf4_levels
    from ..model.pretrained import load_base

    name = "model.layers.2.mlp.up_proj"
    weight: Any = load_base().get_submodule(name).weight
    return charts.nf4_chart(
        weight.detach().numpy(),
        [float(x) for x in nf4_levels()],
        "one up_proj of our base",
        dark=dark,
    )


def loss(dark: bool = False) -> Figure:
    """Loss on the naval log, our base: full fine-tuning against LoRA, mean and range of three short runs each."""
    return charts.loss_chart({name: run["losses"] for name, run in runs().items()}, dark=dark)


def spectrum(dark: bool = False) -> Figure:
    """The singular values of what one such run changed in one weight of our base."""
    found = {name: run["spectrum"] for name, run in runs().items()}
    return charts.spectrum_chart(found, "Singular values of one q_proj's update", dark=dark)


@cache
def runs() -> dict[str, dict[str, Any]]:
    """A few short runs on the naval log, full and LoRA, several seeds: losses (seeds, steps), one update's spectrum."""
    import torch

    from ..lora.injection import inject
    from ..model.pretrained import load_base
    from ..training.data import naval_log
    from ..training.loop import train

    path, found = "model.layers.3.self_attn.q_proj", {}
    task = naval_log(400, 10)
    for name, r, rate in (("full", 0, 1e-3), ("LoRA r = 8", 8, 5e-3)):
        losses = []
        for seed in range(RUNS["seeds"]):
            torch.manual_seed(seed)
            model = load_base()
            before = model.get_submodule(path).weight.detach().clone()  # type: ignore[operator, union-attr]
            if r:
                inject(model, LoraConfig(r, 2 * r, ALL))
            settings: dict[str, Any] = {
                "steps": RUNS["steps"],
                "batch_size": RUNS["batch_size"],
                "lr": rate,
                "seed": seed,
            }
            history = train(model, task, **settings, validate_every=0, progress=False)
            if history.interrupted:
                raise KeyboardInterrupt
            losses.append(history.losses)
            layer: Any = model.get_submodule(path)
            delta = layer.delta_weight() if r else layer.weight.detach() - before
        found[name] = {"losses": losses, "spectrum": torch.linalg.svdvals(delta).tolist()}
    return found


CHARTS: dict[str, Callable[..., Any]] = {
    f.__name__.replace("_", "-"): f
    for f in (memory, trainable, rank, share, break_even, heat, disk, nf4, loss, spectrum)
}


def draw(name: str, dark: bool = False) -> Figure:
    """One chart by its name; ``ValueError`` with the nearest names for an unknown one.

    >>> draw("break-even").axes[0].get_xlabel()
    'rank r (log scale)'
    """
    if name not in CHARTS:
        near = nearest(name, CHARTS, most=2, cutoff=0.4)
        raise ValueError(
            f"no chart is called {name!r}; {'nearest' if near else 'there are'}: {', '.join(near or CHARTS)}"
        )
    return CHARTS[name](dark=dark)


def write_gallery(folder: str | Path) -> Path:
    """Every chart as PNG and SVG, light and dark, and ``index.html``, one file that holds them all; returns that file."""
    folder, figures = Path(folder), []
    for name, chart in CHARTS.items():
        sources = []
        for dark in (False, True):
            stem = f"{name}-dark" if dark else name
            figure = chart(dark=dark)
            save_figure(figure, folder / f"{stem}.svg")
            sources.append(
                base64.b64encode(save_figure(figure, folder / f"{stem}.png").read_bytes()).decode()
            )
        text = html.escape((chart.__doc__ or name).splitlines()[0])
        figures.append(FIGURE.format(name=name, text=text, light=sources[0], dark=sources[1]))
    return write_atomically(
        folder / "index.html", text_writer(PAGE.replace("FIGURES", "\n".join(figures)))
    )


FIGURE = """<figure id="{name}"><picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">
<img alt="{text}" src="data:image/png;base64,{light}"></picture>
<figcaption>{text} <code>minilora chart {name}</code></figcaption></figure>"""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a fine-tune costs</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #6b6b6b }
@media (prefers-color-scheme: dark) { :root { --paper: #15191e; --ink: #e6e6e6; --soft: #b4b4b4 } }
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem 1rem; font: 16px/1.5 system-ui, sans-serif }
body { background: var(--paper); color: var(--ink) }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 2rem }
figure { margin: 0 } #memory { grid-column: 1 / -1 } img { width: 100%; height: auto }
figcaption { color: var(--soft) } code { color: var(--ink); white-space: nowrap }
</style>
<h1>What a fine-tune costs</h1>
<main>
FIGURES
</main></html>
"""

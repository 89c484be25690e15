"""Every chart with its data: most from the ledger in milliseconds, three from the shipped base.

    draw("memory")           -> Figure
    write_gallery("charts/") -> charts/*.png, *.svg, light and dark, and index.html with all of them

Two of the three show training. These runs are real and short (``RUNS``); no result is stored.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import text_writer, write_atomically
from ..ledger.estimate import GB, GPUS, Plan, Settings, plan
from ..ledger.shapes import architecture
from ..lora.config import LoraConfig
from ..text import nearest
from . import charts, parameter_charts
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
    targets = {"gpt2": ["c_attn"]}
    plans = [
        plan(name, LoraConfig(target_modules=targets.get(name, ["q_proj", "v_proj"])))
        for name in names
    ]
    full, lora = [full_parameters(p) for p in plans], [p.trainable for p in plans]
    return parameter_charts.trainable_chart(["our base", *names[1:]], full, lora, dark=dark)


def methods(dark: bool = False) -> Figure:
    """What each method trains of Llama-3-8B, with its usual targets, and its file."""
    titles = {
        **{"lora": "LoRA q, v, r = 8", "dora": "DoRA q, v, r = 8", "pissa": "PiSSA q, v, r = 8"},
        **{"vera": "VeRA q, v, r = 256", "adalora": "AdaLoRA q, v, 12 to 8"},
        **{"ia3": "(IA)³ k, v, down", "bitfit": "BitFit q, v", "ln": "norms"},
        **{
            "prompt": "prompt, k = 20",
            "prefix": "prefix, k = 20",
            "bottleneck": "Pfeiffer, d / 16",
        },
    }
    plans = [plan("llama-3-8b", method=method) for method in titles]
    trained, shipped = [p.trainable for p in plans], [p.adapter_file_bytes for p in plans]
    names = list(titles.values())
    return parameter_charts.methods_chart(names, trained, shipped, "Llama-3-8B", dark=dark)


def rank(dark: bool = False) -> Figure:
    """Parameters against rank for chosen targets."""
    ranks = [1, 2, 4, 8, 16, 32, 64, 128]
    total = architecture("llama-3-8b").parameters
    return parameter_charts.rank_chart(ranks, counts_by(ranks), "Llama-3-8B", total, dark=dark)


def memory(dark: bool = False) -> Figure:
    """Bytes by category across methods and sizes, with cards as lines."""
    settings = Settings(batch=1, seq=2048, checkpointing=True)
    config = LoraConfig(r=16, target_modules=ALL)
    methods = {"full": "full", "LoRA": "lora", "QLoRA": "qlora"}
    bars = {
        title: [plan(model, config, method, settings).bytes for model in LLAMAS]
        for title, method in methods.items()
    }
    cards = {name: size * GB for name, size in GPUS.items()}
    cards |= {f"8 × {name}": 8 * cards[name] for name in ("80 GB", "141 GB")}
    note = "bf16 base, r = 16 on all Linears, AdamW in float32, 1 × 2048 tokens, "
    note += "gradient checkpointing"
    titles = ["Llama-3 8B", "Llama-3 70B", "Llama-3.1 405B"]
    return charts.memory_chart(titles, bars, cards, note, dark=dark)


def share(dark: bool = False) -> Figure:
    """Trainable share against model size."""
    names = ["base", "llama-3.2-1b", "llama-3-8b", "llama-3-70b", "llama-3.1-405b"]
    settings = {"all linear, r = 16": LoraConfig(16, 16, ALL), "q and v, r = 8": LoraConfig(8)}
    sizes, shares = {}, {}
    for title, config in settings.items():
        plans = [plan(name, config) for name in names]
        sizes[title] = [full_parameters(p) for p in plans]
        shares[title] = [p.share for p in plans]
    titles = ["our base", "1B", "8B", "70B", "405B"]
    return parameter_charts.share_chart(sizes, shares, titles, dark=dark)


def break_even(dark: bool = False) -> Figure:
    """Where r (in + out) = in · out."""
    shapes = [("our q_proj 128 → 128", 128, 128), ("Llama-3-8B v_proj 4096 → 1024", 4096, 1024)]
    shapes += [("4096 → 4096", 4096, 4096), ("Llama-3-8B up_proj 4096 → 14336", 4096, 14336)]
    return parameter_charts.break_even_chart(shapes, dark=dark)


def heat(dark: bool = False) -> Figure:
    """Targets by rank: trainable parameters of Llama-3-8B."""
    ranks = [1, 4, 8, 16, 64, 256]
    table = [*counts_by(ranks).values()]
    text = [[short(value) for value in row] for row in table]
    title = "Trainable parameters, Llama-3-8B"
    return parameter_charts.heat_chart([*TARGETS], ranks, table, title, text, dark=dark)


def disk(dark: bool = False) -> Figure:
    """Adapters (r = 16 on all Linears, bfloat16) on disk against full copies."""
    config = LoraConfig(r=16, target_modules=ALL)
    adapter_bytes = plan("llama-3-8b", config, adapter_dtype="bfloat16").adapter_file_bytes
    numbers = [1, 3, 10, 30, 100, 300, 1000]
    full_bytes = 2 * architecture("llama-3-8b").parameters
    return charts.disk_chart(numbers, full_bytes, adapter_bytes, "Llama-3-8B", dark=dark)


def nf4(dark: bool = False) -> Figure:
    """NF4's levels on a real weight."""
    from ..level0 import nf4_levels
    from ..model.pretrained import load_base

    layer: Any = load_base().get_submodule("model.layers.2.mlp.up_proj")
    weight, levels = layer.weight.detach().numpy(), [float(level) for level in nf4_levels()]
    return charts.nf4_chart(weight, levels, "one up_proj of our base", dark=dark)


def loss(dark: bool = False) -> Figure:
    """Loss of our base on the naval log, full against LoRA: mean and range of three short runs."""
    return charts.loss_chart({name: run["losses"] for name, run in runs().items()}, dark=dark)


def spectrum(dark: bool = False) -> Figure:
    """Singular values of one weight's update after a short run, full against LoRA."""
    spectra = {name: run["spectrum"] for name, run in runs().items()}
    return charts.spectrum_chart(spectra, "Singular values of one q_proj's update", dark=dark)


def full_parameters(estimate: Plan) -> int:
    """The model's parameters without the adapter's."""
    return estimate.parameters - estimate.trainable


def counts_by(ranks: Sequence[int]) -> dict[str, list[int]]:
    """Trainable parameters of Llama-3-8B by rank, for each choice of ``TARGETS``."""
    return {
        title: [plan("llama-3-8b", LoraConfig(r, 16, targets)).trainable for r in ranks]
        for title, targets in TARGETS.items()
    }


@cache
def runs() -> dict[str, dict[str, Any]]:
    """Short runs on the naval log, full and LoRA, over several seeds.

    Each has ``losses``, (seeds, steps), and the ``spectrum`` of one weight's update.
    """
    import torch

    from ..lora.injection import inject
    from ..model.pretrained import load_base
    from ..training.data import naval_log
    from ..training.loop import train

    path, results = "model.layers.3.self_attn.q_proj", {}
    task = naval_log(400, 10)
    for name, r, rate in (("full", 0, 1e-3), ("LoRA r = 8", 8, 5e-3)):
        losses = []
        for seed in range(RUNS["seeds"]):
            torch.manual_seed(seed)
            model = load_base()
            before = model.get_submodule(path).weight.detach().clone()  # type: ignore[operator, union-attr]
            if r:
                inject(model, LoraConfig(r, 2 * r, ALL))
            settings: Any = {"steps": RUNS["steps"], "batch_size": RUNS["batch_size"], "lr": rate}
            settings |= {"seed": seed, "validate_every": 0}
            history = train(model, task, **settings, progress=False)
            if history.interrupted:
                raise KeyboardInterrupt
            losses.append(history.losses)
            layer: Any = model.get_submodule(path)
            delta = layer.delta_weight() if r else layer.weight.detach() - before
        results[name] = {"losses": losses, "spectrum": torch.linalg.svdvals(delta).tolist()}
    return results


CHARTS: dict[str, Callable[..., Any]] = {
    f.__name__.replace("_", "-"): f
    for f in (memory, trainable, methods, rank, share, break_even, heat, disk, nf4, loss, spectrum)
}


def draw(name: str, dark: bool = False) -> Figure:
    """One chart by its name. Raises ``ValueError`` with the nearest names for an unknown one.

    >>> draw("break-even").axes[0].get_xlabel()
    'rank r (log scale)'
    """
    if name not in CHARTS:
        near = nearest(name, CHARTS, most=2, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"available: {', '.join(CHARTS)}"
        raise ValueError(f"no chart is called {name!r}; {hint}")
    return CHARTS[name](dark=dark)


def write_gallery(folder: str | Path) -> Path:
    """Every chart as PNG and SVG, light and dark, and ``index.html``, one page with all of them.

    Returns the page's path.

    >>> write_gallery("charts")  # doctest: +SKIP
    PosixPath('charts/index.html')
    """
    folder, figures = Path(folder), []
    for name, chart in CHARTS.items():
        sources = {}
        for face, stem in (("light", name), ("dark", f"{name}-dark")):
            figure = chart(dark=face == "dark")
            save_figure(figure, folder / f"{stem}.svg")
            picture = save_figure(figure, folder / f"{stem}.png").read_bytes()
            sources[face] = base64.b64encode(picture).decode()
        text = html.escape((chart.__doc__ or name).splitlines()[0])
        figures.append(FIGURE.format(name=name, text=text, **sources))
    page = PAGE.replace("FIGURES", "\n".join(figures))
    return write_atomically(folder / "index.html", text_writer(page))


FIGURE = """<figure id="{name}"><picture>
<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">
<img alt="{text}" src="data:image/png;base64,{light}"></picture>
<figcaption>{text} <code>minilora chart {name}</code></figcaption></figure>"""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a fine-tune costs</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #6b6b6b }
@media (prefers-color-scheme: dark) { :root { --paper: #15191e; --ink: #e6e6e6; --soft: #b4b4b4 } }
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem 1rem }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink) }
main { display: grid; gap: 2rem }
main { grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)) }
figure { margin: 0 } #memory { grid-column: 1 / -1 } img { width: 100%; height: auto }
figcaption { color: var(--soft) } code { color: var(--ink); white-space: nowrap }
</style>
<h1>What a fine-tune costs</h1>
<main>
FIGURES
</main></html>
"""

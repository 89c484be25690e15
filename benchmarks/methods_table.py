"""The field's table, its claims and its picture, from the results of ``benchmarks.methods``.

A claim is what an abstract says, in our words; beside it stands what this base and this budget
gave. A base of 1.3 M parameters and one synthetic task do not refute a paper about billions: the
column says where the claim did not carry over.
"""

from __future__ import annotations

import ast
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

import minilora
from minilora.plots.style import hue, in_house_style, new_figure

from .tables import megabytes, spread

LORA = "LoRA q, v, r=8"
METHODS_HEAD = (
    *("method", "trainable", "KB to ship", "peak MB", "step / LoRA's", "forward", "merged"),
    *("rate", "naval, exact", "steps to 90%", "forgot", "with self-replay", "manual, bits a byte"),
    *("at half the rate", "seeds"),
)
CLAIMS_HEAD = ("method", "lines", "swap", "batch", "merge", "claimed", "measured", "read in")
ELSEWHERE_HEAD = ("base", "method", "trainable", "KB to ship", "rate", "loss", "exact", "forgot")


class Facts(NamedTuple):
    """What is known of a method without a run; ``against``: the row that the claim is about."""

    claim: str = ""
    source: str = ""
    against: str = LORA
    batch: bool = False  # whether one batch of our bank can hold rows with different adapters of it


PAPERS = {
    LORA: Facts("on par with full fine-tuning or better", "2106.09685", "full", True),
    "LoRA q, v, half the rate": Facts("learns less and forgets less", "2405.09673", "full", True),
    "LoRA all, r=2": Facts("", "", batch=True),
    "rsLoRA q, v, r=32": Facts("higher ranks learn better, over √r", "2312.03732", batch=True),
    "LoRA+ q, v, r=8": Facts("1 to 2% better, up to 2 × faster", "2402.12354", batch=True),
    "DoRA q, v, r=8": Facts("consistently better than LoRA", "2402.09353"),
    "PiSSA q, v, r=8": Facts("faster convergence, better in the end", "2404.02948", batch=True),
    "OLoRA q, v, r=8": Facts("converges faster, performs better", "2406.01775", batch=True),
    "AdaLoRA q, v, 12 to 8": Facts("notably better at a low budget", "2303.10512"),
    "VeRA q, v, r=256": Facts("as good with a tenth of the parameters", "2310.11454"),
    "(IA)³ k, v, down": Facts("better than few-shot prompts with tiny files", "2205.05638", "full"),
    "BitFit, all": Facts("competitive with full at little data", "2106.10199", "full"),
    "norms": Facts("over 20% better than LoRA (images and text)", "2312.11420"),
    "Houlsby, k=8": Facts("within 0.4% of full (GLUE)", "1902.00751", "full"),
    "prompt, k=64": Facts("matches full only from billions of parameters on", "2104.08691", "full"),
}  # fmt: skip


MODULES = {  # where a method is written, by the beginning of its row's name
    **{"LoRA": "lora/layer.py", "rsLoRA": "lora/layer.py", "DoRA": "methods/dora.py"},
    **{"PiSSA": "methods/pissa.py", "OLoRA": "methods/pissa.py", "VeRA": "methods/vera.py"},
    **{"AdaLoRA": "methods/adalora.py", "(IA)": "methods/ia3.py", "BitFit": "methods/bitfit.py"},
    **{"norms": "methods/norm_tuning.py", "prefix": "methods/prefix_tuning.py"},
    **{"prompt": "methods/prompt_tuning.py", "Houlsby": "methods/bottleneck.py"},
    **{"Pfeiffer": "methods/bottleneck.py", "parallel": "methods/bottleneck.py"},
}


def code_lines(method: str) -> int | None:
    """``lines_of`` a method's module, None where there is none."""
    file = next((file for start, file in MODULES.items() if method.startswith(start)), None)
    return None if file is None else lines_of(Path(minilora.__file__).parent / file)


def lines_of(module: Path) -> int:
    """Lines of a module that are neither blank, comment nor docstring."""
    text = module.read_text(encoding="utf-8")
    documents = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documents |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and line[0] != "#" and i not in documents for i, line in lines)


def chosen_of(methods: Sequence[Any], words: Sequence[str]) -> list[Any]:
    """The methods whose names begin with one of the words; ``["all"]`` for all of them."""
    names = [method.name for method in methods]
    if strange := [w for w in words if w != "all" and not any(n.startswith(w) for n in names)]:
        raise SystemExit(f"no row begins with {strange[0]!r}; there are: {'; '.join(names)}")
    return [m for m in methods if "all" in words or m.name.startswith(tuple(words))]


def kept(settings: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run by method; {} without one. Exits where its settings differ."""
    file = Path(settings.out) / settings.device.split(":")[0] / "methods.json"
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    same = ("steps", "batch", "text_steps", "logs", "watched", "search_steps", "search_batch")
    was, now = ([of.get(name) for name in same] for of in (content["settings"], vars(settings)))
    if was != now:
        raise SystemExit(f"{file} has {same} = {was}, not {now}: --out FOLDER keeps these apart")
    return {row["method"]: row for row in content["rows"] if row["method"] in names}


def scores(row: dict[str, Any]) -> str:
    """A finished run, in words."""
    return ", ".join(f"{key} {row[key]:.3f}" for key in ("exact_match", "forgotten", "naval_loss"))


def finished(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The base's row, and those of methods that have run at least once."""
    return [row for row in result["rows"] if row.get("seeds") or "prose_bits" in row]


def mean(row: dict[str, Any], key: str, runs: str = "seeds") -> float:
    """A score's mean over the seeds."""
    return statistics.mean(seed[key] for seed in row[runs])


def steps_to(row: dict[str, Any], share: float = 0.9) -> str:
    """The median step at which so many watched logs were right, and how many runs got there."""
    first = [
        next((step for step, right in seed["curve"] if right >= share), None)
        for seed in row["seeds"]
    ]
    reached = [step for step in first if step is not None]
    if not reached:
        return "—"
    count = "" if len(reached) == len(first) else f" ({len(reached)} of {len(first)})"
    return f"{statistics.median(reached):.0f}{count}"


def methods_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a method: what it costs, what it learns, what it loses."""
    base, *rows = finished(result)
    scores = [f"{base['exact_match']:.0%}", "", "0", "", f"{base['manual_bits']:.2f}"]
    lines = [[base["method"], "0", "0", "", "", "1", "1", "", *scores, "", ""]]
    for row in rows:
        lines.append(
            [
                *(row["method"], f"{row['trainable']:,}", f"{row['shipped_bytes'] / 1e3:,.0f}"),
                *(megabytes(row["peak_bytes"]), f"{row['step']:.2f}"),
                f"{row['latency_unmerged']:.2f}",
                f"{row['latency_merged']:.2f}" if "latency_merged" in row else "—",
                *(f"{row['rate']:g}", spread([s["exact_match"] for s in row["seeds"]], ".0%")),
                *(steps_to(row), f"+{mean(row, 'forgotten'):.2f}"),
                both(row, "replay_seeds"),
                f"{statistics.mean(row['manual_bits']):.2f}" if row["manual_bits"] else "—",
                *(both(row, "half"), str(len(row["seeds"]))),
            ]
        )
    return lines


def both(row: dict[str, Any], runs: str) -> str:
    """What those runs got right and lost, in the mean; a dash without runs."""
    if not row[runs]:
        return "—"
    return f"{mean(row, 'exact_match', runs):.0%}, {mean(row, 'forgotten', runs):+.2f}"


def claims_rows(result: dict[str, Any]) -> list[list[str]]:
    """What a paper says of its method, and what came of it here."""
    rows = {row["method"]: row for row in finished(result)[1:]}
    lines = []
    for name, row in rows.items():
        facts = PAPERS.get(name, Facts())
        measured = ""
        if facts.claim and facts.against in rows:
            measured = compared(row, yardstick(rows, facts.against))
        adapter = name not in ("full", "from random weights")
        merges = "latency_merged" in row
        yes = {True: "yes", False: "no"}
        lines.append(
            [
                *(name, str(row.get("code_lines") or ""), yes[adapter], yes[facts.batch]),
                *(yes[merges] if adapter else "", facts.claim, measured, facts.source),
            ]
        )
    return lines


def yardstick(rows: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The row that a claim is about; LoRA's is the better of its two rates."""
    if name != LORA:
        return rows[name]
    both = [row for other, row in rows.items() if other.startswith("LoRA q, v,")]
    return max(both, key=lambda row: mean(row, "exact_match"))


def compared(row: dict[str, Any], other: dict[str, Any]) -> str:
    """A method's exact match, forgetting and steps against another's."""
    points = 100 * (mean(row, "exact_match") - mean(other, "exact_match"))
    lost = mean(row, "forgotten") - mean(other, "forgotten")
    steps = f"; to 80% in {steps_to(row, 0.8)} steps, not {steps_to(other, 0.8)}"
    return f"{points:+.0f} points, forgot {lost:+.2f} against {other['method']}{steps}"


def elsewhere_rows(result: dict[str, Any]) -> list[list[str]]:
    """The methods on four bits and on SmolLM2."""
    return [
        [
            *(row["base"], row["method"], f"{row['trainable']:,}"),
            *(f"{row['shipped_bytes'] / 1e3:,.0f}", f"{row['rate']:g}"),
            f"{row.get('held_out_loss', row['loss']):.3f}",
            *(f"{row['exact_match']:.0%}", f"{row['forgotten']:+.2f}"),
        ]
        for row in result["rows"]
    ]


@in_house_style
def methods_figure(result: dict[str, Any]) -> Figure:
    """Naval code learnt against prose forgotten, a dot a method, as large as what is shipped."""
    figure, axes = new_figure(1, (10, 6), [1])
    rows = [row for row in finished(result)[1:] if row["method"] != "from random weights"]
    dots = []
    for row in rows:
        colour, area = hue(colour_of(row["method"])), dot(row["shipped_bytes"])
        at, style = place(row, "seeds"), {"s": area, "edgecolors": colour}
        axes.scatter(*at, color=colour, alpha=0.75, s=area)
        dots.append((at, area, row["method"], colour))
        if row["replay_seeds"]:
            kept = place(row, "replay_seeds")
            axes.plot(*zip(at, kept, strict=True), color=colour, linewidth=0.6, alpha=0.5)
            axes.scatter(*kept, facecolors="none", **style)
            dots.append((kept, area, "", colour))
    axes.set(title="What a method learns, and what it forgets")
    axes.set(ylabel="% of held-out logs right", xlabel="bits a byte lost on the base's own prose")
    axes.margins(x=0.16, y=0.08)
    axes.set(yticks=range(0, 101, 20), ylim=(axes.get_ylim()[0], 110))
    note = "dot: bytes to ship; open dot: with self-replay"
    axes.text(0.99, 0.02, note, transform=axes.transAxes, ha="right", fontsize=9, color=hue(6))
    name_apart(axes, dots)
    return figure


def place(row: dict[str, Any], runs: str) -> tuple[float, float]:
    """Where those runs' dot stands: bits a byte forgotten, % right."""
    return mean(row, "forgotten", runs), 100 * mean(row, "exact_match", runs)


def name_apart(axes: Any, dots: Sequence[tuple[tuple[float, float], float, str, str]]) -> None:
    """A name at each dot (place, area, name, colour), where it covers no dot and no other name."""
    axes.figure.canvas.draw()
    taken = []
    for at, area, _, _ in dots:
        x, y = axes.transData.transform(at)
        half = 0.8 * (area / math.pi) ** 0.5 * axes.figure.dpi / 72
        taken.append(Bbox([[x - half, y - half], [x + half, y + half]]))
    for at, area, name, colour in (one for one in dots if one[2]):
        away = 5 + (area / math.pi) ** 0.5
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 2), (0, -2), (1, 2), (1, -2)):
            side = {"ha": ("center", "left", "right")[x], "va": "center", "fontsize": 9}
            offset = (away * x, (away + 5) * y)
            text = axes.annotate(name, at, offset, "data", "offset points", color=colour, **side)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            text.set_visible(False)
        text.set_visible(True)  # the last place, where none is free
        if y:  # not beside its dot: a line leads there
            line = {
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 6,
                "shrinkB": 0,
            }
            axes.annotate("", at, offset, "data", "offset points", arrowprops=line)
        taken.append(box)


def dot(size: int) -> float:
    """A dot's area in square points: as the root of the bytes, or a whole model covers the rest."""
    return 0.35 * size**0.5


def colour_of(method: str) -> int:
    """One hue a family: full, LoRA's relatives, vectors, beside the weights."""
    if method == "full":
        return 6
    if method.startswith(("VeRA", "(IA)", "BitFit", "norms")):
        return 1
    if method.startswith(("Houlsby", "Pfeiffer", "parallel", "prefix", "prompt")):
        return 2
    return 0


def rank_rows(result: dict[str, Any]) -> list[list[str]]:
    """A base a line, the smallest first: full's loss, and each rank's gap to it."""
    rows = sorted(result["rows"], key=lambda row: row["parameters"])
    ranks = sorted({row["rank"] for row in rows if row["rank"]})
    lines = []
    for base in dict.fromkeys(row["base"] for row in rows):
        of = {row["rank"]: row for row in rows if row["base"] == base}
        if None in of:
            gaps = [f"{of[r]['loss'] - of[None]['loss']:+.3f}" if r in of else "" for r in ranks]
            size = f"{of[None]['parameters']:,}"
            lines.append([base, size, f"{of[None]['loss']:.3f}", *gaps])
    return lines


def rank_head(result: dict[str, Any]) -> Sequence[str]:
    """The columns of ``rank_rows``."""
    ranks = sorted({row["rank"] for row in result["rows"] if row["rank"]})
    return ("base", "parameters", "full's loss", *(f"r={rank}" for rank in ranks))

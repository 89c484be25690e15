"""Two drawings of the course: what LoRA is, and which way of adapting to choose.

    python -m minilora.learn.drawings docs      writes lora.svg and decide.svg

SVG by hand, light and dark, with a text for readers who cannot see them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..files import text_writer, write_together

STYLE = """
text { font: 14px system-ui, sans-serif; fill: #222; text-anchor: middle }
.big { font-size: 22px } .soft { fill: #666; font-size: 12.5px } .left { text-anchor: start }
.link { text-decoration: underline }
.frozen { fill: #e9e7e0; stroke: #888 } .trained { fill: #d3e8f5; stroke: #005a94 }
.way { stroke: #444; fill: none; stroke-width: 1.6 } .tip { fill: #444 }
.back { stroke: #9a4300; fill: none; stroke-width: 1.6; stroke-dasharray: 5 4 }
.backtip, .backtext { fill: #9a4300 } .ask { fill: #fff; stroke: #888 }
@media (prefers-color-scheme: dark) {
text { fill: #ddd } .soft { fill: #aaa } .frozen { fill: #333; stroke: #888 } .ask { fill: #222 }
.trained { fill: #173a50; stroke: #7cc4ee } .way { stroke: #bbb } .tip { fill: #bbb }
.back { stroke: #f0a05a } .backtip, .backtext { fill: #f0a05a } }"""


def svg(width: int, height: int, title: str, description: str, parts: Sequence[str]) -> str:
    """A whole picture."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    texts = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return "\n".join([head, texts, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words around a point."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def arrow(*points: tuple[float, float], back: bool = False) -> str:
    """A line through points, with a tip at the last; ``back`` is the gradient's."""
    (x0, y0), (x, y) = points[-2:]
    length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
    dx, dy = 8 * (x - x0) / length, 8 * (y - y0) / length
    line = " L".join(f"{px:g},{py:g}" for px, py in [*points[:-1], (x - dx, y - dy)])
    half = f"{x - dx - dy / 2:g},{y - dy + dx / 2:g} {x - dx + dy / 2:g},{y - dy - dx / 2:g}"
    way, tip = ("back", "backtip") if back else ("way", "tip")
    return f'<path class="{way}" d="M{line}"/><path class="{tip}" d="M{x:g},{y:g} L{half} z"/>'


def draw_lora() -> str:
    """LoRA: W₀ beside A and B, x through both, the gradient into A and B only."""
    w = '<rect class="frozen" x="60" y="110" width="190" height="150" rx="4"/>'
    a = '<path class="trained" d="M360,260 h190 l-60,-62 h-70 z"/>'
    b = '<path class="trained" d="M420,172 h70 l60,-62 h-190 z"/>'
    parts = [
        w, text(155, 180, "W₀", "big"), text(155, 206, "out × in numbers, frozen", "soft"),
        a, text(455, 238, "A", "big"), b, text(455, 146, "B", "big"),
        text(575, 236, "r × in", "soft left"), text(575, 150, "out × r", "soft left"),
        text(466, 190, "h: r numbers a token", "soft left"),
        arrow((305, 330), (305, 300), (155, 300), (155, 262)),
        arrow((305, 330), (305, 300), (455, 300), (455, 262)), arrow((455, 198), (455, 173)),
        arrow((155, 110), (155, 62), (292, 62)), arrow((455, 110), (455, 62), (319, 62)),
        '<circle class="ask" cx="305" cy="62" r="13"/>', text(305, 67, "+"),
        text(400, 53, "× α / r", "soft"),
        arrow((305, 49), (305, 22)), text(305, 16, "y = x W₀ᵀ + α/r · (x Aᵀ) Bᵀ"),
        text(305, 348, "x"),
        arrow((412, 12), (640, 12), (640, 128), (552, 128), back=True),
        arrow((640, 128), (640, 250), (553, 250), back=True),
        text(652, 48, "the gradient", "backtext left"),
        text(652, 66, "reaches B and A,", "backtext left"),
        text(652, 84, "never W₀", "backtext left"),
    ]  # fmt: skip
    description = (
        "x goes two ways: through the frozen matrix W0, and through the thin matrices A and B, "
        "whose product is scaled by alpha over r. The two results are added. In training the "
        "gradient reaches B and A only."
    )
    return svg(780, 358, "LoRA: two thin matrices beside a frozen one", description, parts)


@dataclass(frozen=True)
class Fork:
    """A question of the tree: the answer that leaves it, where to, and the run that decides."""

    ask: str
    way: str
    to: str
    decides: str
    link: str  # from docs/


FORKS = (
    Fork(
        "Do a few examples in the prompt suffice?",
        *("yes", "prompt", "python -m benchmarks.facts", "benchmarks.md#facts"),
    ),
    Fork(
        "Is it facts, which change or must be quoted?",
        *("yes", "retrieve", "minilora learn 18", "../lessons/18_facts.py"),
    ),
    Fork(
        "Does LoRA on all Linears fall short on held-out data?",
        *("yes", "full", "python -m benchmarks.matrix", "benchmarks.md#matrix"),
    ),
    Fork(
        "Does the base fit in 16 bits?", *("no", "QLoRA", "minilora plan your-model", "planner.md")
    ),
)


def draw_decision() -> str:
    """The way from a wish to prompt, retrieve, full, QLoRA or LoRA, each fork linked to its run."""
    parts = list(fork_parts())
    last = 24 + 92 * len(FORKS)
    parts += [
        f'<rect class="trained" x="160" y="{last}" width="120" height="44" rx="6"/>',
        text(220, last + 28, "LoRA", "big"),
    ]
    steps = "; ".join(f"{fork.ask} {fork.way}: {fork.to}" for fork in FORKS)
    title = "Prompt, retrieve, LoRA, QLoRA or full fine-tuning"
    return svg(720, last + 56, title, f"{steps}; else LoRA.", parts)


def fork_parts() -> Iterator[str]:
    """Each question with its two ways: down, or to the right and out."""
    for number, fork in enumerate(FORKS):
        y = 24 + 92 * number
        yield f'<rect class="ask" x="20" y="{y}" width="400" height="48" rx="6"/>'
        yield text(220, y + 21, fork.ask)
        decided = text(220, y + 39, f"decided by: {fork.decides}", "soft link")
        yield f'<a href="{escape(fork.link)}">{decided}</a>'
        yield arrow((420, y + 24), (540, y + 24))
        yield text(475, y + 17, fork.way, "soft")
        yield f'<rect class="trained" x="540" y="{y + 2}" width="140" height="44" rx="6"/>'
        yield text(610, y + 30, fork.to, "big")
        yield arrow((220, y + 48), (220, y + 91))
        yield text(236, y + 74, "no" if fork.way == "yes" else "yes", "soft left")


def main(folder: Path) -> None:
    """Write both."""
    drawings = {"lora.svg": text_writer(draw_lora()), "decide.svg": text_writer(draw_decision())}
    write_together(folder, drawings)
    print(f"Saved {folder / 'lora.svg'} and {folder / 'decide.svg'}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The picture of the house: every wing of the package, and who imports whom.

It is drawn from the import statements. A wing stands above all that it imports, so every arrow
points down. An arrow that others imply (training → model → nf4 implies training → nf4) is left out.

    python -m minilora.learn.house docs/house.svg
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from ..files import write_text

PACKAGE = Path(__file__).parents[1]
SHELVES = {  # from the ground up: a wing imports wings before it
    "library": (
        *("level0", "files", "tensor_files", "text", "checks", "database"),
        *("nf4", "lora", "methods", "formats", "ledger", "model", "training"),
    ),
    "course": ("plots", "analysis", "bugs", "recipes", "learn"),
    "services": ("hub", "serving", "jobs", "scale", "commands"),
}
LANES = {  # where a wing stands, from the left (0) to the right (1), so that arrows pass by
    **{"level0": 0.0, "files": 0.25, "text": 0.5, "checks": 0.75, "database": 1.0},
    **{"tensor_files": 0.75, "nf4": 0.3, "lora": 0.56, "formats": 0.28},
    **{"ledger": 0.74, "methods": 0.1, "model": 0.36, "training": 0.36, "plots": 0.6},
    **{"recipes": 0.2, "bugs": 0.93, "analysis": 0.36, "learn": 0.64, "hub": 0.3, "jobs": 0.2},
    **{"serving": 0.4, "scale": 0.55, "commands": 0.75},
}
WIDTH, ROW, BOX, TALL = 640, 58, 112, 30  # of the picture, of a floor, of a wing
STYLE = """
text { font: 13px ui-monospace, monospace; fill: #222; text-anchor: middle }
.shelf { font-size: 11px; fill: #777; text-anchor: start }
.wing { fill: #fff; stroke: #888 } .band { fill: #f4f2ec }
.arrow { stroke: #999; fill: none } .tip { fill: #999 }
@media (prefers-color-scheme: dark) {
text { fill: #ddd } .wing { fill: #262626; stroke: #777 } .band { fill: #1b1b1b }
.arrow { stroke: #777 } .tip { fill: #777 } .shelf { fill: #999 } }"""
Arrows = dict[str, set[str]]


def imports(source: str, package: str) -> Iterator[str]:
    """Dotted names that a module of ``package`` imports from minilora, however it says so.

    >>> list(imports("from ..nf4.tensor import quantize", "minilora.lora"))
    ['minilora.nf4.tensor.quantize']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.startswith("minilora."))
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            if start.split(".")[0] == "minilora":
                yield from (f"{start}.{alias.name}" for alias in node.names)


def read_arrows(package: Path = PACKAGE) -> Arrows:
    """For each wing (or module on the ground) the wings that it imports."""
    arrows: Arrows = {}
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        if path.name in ("__init__.py", "__main__.py") and len(path.parts) == 1:
            continue  # the package's own face stands above all
        wing = path.parts[0].removesuffix(".py")
        if wing in ("lazy", "lessons"):  # the mechanics of every face; a wheel holds the lessons
            continue
        parents = ".".join(["minilora", *path.parts[:-1]])
        targets = (name.split(".")[1] for name in imports(file.read_text("utf-8"), parents))
        arrows.setdefault(wing, set()).update(target for target in targets if target != wing)
    return {wing: targets & arrows.keys() for wing, targets in arrows.items()}


def reachable(wing: str, arrows: Arrows) -> set[str]:
    """All that a wing imports, directly or through others."""
    return arrows[wing].union(*(reachable(target, arrows) for target in arrows[wing]))


def without_implied(arrows: Arrows) -> Arrows:
    """The arrows that no chain of others implies (the transitive reduction)."""
    return {
        wing: targets - set().union(*(reachable(target, arrows) for target in targets))
        for wing, targets in arrows.items()
    }


def floors(arrows: Arrows) -> list[tuple[str, list[str]]]:
    """(shelf, wings) of each floor, the ground first: a wing stands above all that it imports."""
    level: dict[str, int] = {}
    rows: list[tuple[str, list[str]]] = []
    for shelf, wings in SHELVES.items():
        ground = len(rows)
        for wing in (wing for wing in wings if wing in arrows):
            level[wing] = max([ground, *(level[target] + 1 for target in arrows[wing])])
            while len(rows) <= level[wing]:
                rows.append((shelf, []))
            rows[level[wing]][1].append(wing)
    return rows


def draw_house(package: Path = PACKAGE) -> str:
    """The picture as SVG text, for light pages and dark ones."""
    arrows = read_arrows(package)
    rows = floors(arrows)
    height = ROW * len(rows) + 12
    centre: dict[str, tuple[float, float]] = {}
    for number, (_, wings) in enumerate(rows):
        y = height - ROW * number - ROW / 2 - 6
        centre |= {wing: (70 + (WIDTH - 140) * LANES[wing], y) for wing in wings}
    parts = [*bands(rows, height)]
    for wing, targets in without_implied(arrows).items():
        parts += [arrow(centre[wing], centre[target]) for target in sorted(targets)]
    parts += [box(wing, *centre[wing]) for wing in centre]
    described = "; ".join(
        f"{w} imports {', '.join(sorted(t)) or 'nothing'}" for w, t in arrows.items()
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    title = f"<title>The wings of minilora</title><desc>{escape(described)}</desc>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def bands(rows: list[tuple[str, list[str]]], height: int) -> Iterator[str]:
    """A band of colour behind each shelf, with its name."""
    for shelf in SHELVES:
        numbers = [number for number, (name, _) in enumerate(rows) if name == shelf]
        if numbers:
            top = height - ROW * (max(numbers) + 1) - 4
            tall = ROW * len(numbers) - 4
            yield f'<rect class="band" x="0" y="{top}" width="{WIDTH}" height="{tall}" rx="6"/>'
            yield f'<text class="shelf" x="8" y="{top + 16}">{shelf}</text>'


def box(wing: str, x: float, y: float) -> str:
    """One wing."""
    corner = f'x="{x - BOX / 2:.0f}" y="{y - TALL / 2:.0f}"'
    rect = f'<rect class="wing" {corner} width="{BOX}" height="{TALL}" rx="5"/>'
    return f'{rect}<text x="{x:.0f}" y="{y + 4.5:.0f}">{wing}</text>'


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From a wing's floor to the roof of one that it imports."""
    (x, y), (to_x, to_y) = start, end
    y, to_y = y + TALL / 2, to_y - TALL / 2 - 5
    bend = (to_y - y) / 2
    bends = f"{x:.0f},{y + bend:.0f} {to_x:.0f},{to_y - bend:.0f}"
    curve = f"M{x:.0f},{y:.0f} C{bends} {to_x:.0f},{to_y:.0f}"
    tip = f"M{to_x - 3.5:.1f},{to_y:.0f} h7 l-3.5,5 z"
    return f'<path class="arrow" d="{curve}"/><path class="tip" d="{tip}"/>'


if __name__ == "__main__":
    print(f"Saved {write_text(sys.argv[1], draw_house())}.")

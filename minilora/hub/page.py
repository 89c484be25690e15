"""The hub as one static page: a card a name, its versions and scores, their lineage as a small
graph drawn by hand.

The page holds everything it shows, asks no server for anything and runs no script, so it can be
mailed, or put beside the blobs on a static server. It follows the reader's light or dark setting.
Everything that people wrote is escaped.

The graph of a name: versions from left to right as they were pushed. A version stays on its
parent's lane if it is the first child there and begins a lane below otherwise, as in the graphs of
version control; compressed copies are small and hollow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ..files import write_text
from ..text import size_text
from .catalog import Catalog
from .registry import Version

STEP, LANE, EDGE = 108, 52, 34  # pixels between versions, between lanes, around
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #595959; --line: #d8d8d8;
  --field: #f4f4f4; --c0: #0072b2; --c1: #d55e00 }
@media (prefers-color-scheme: dark) { :root { --paper: #15191e; --ink: #e6e6e6; --soft: #b4b4b4;
  --line: #323a44; --field: #1e242b; --c0: #56b4e9; --c1: #f0883e } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1060px; padding: 1.5rem 1rem 3rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.2rem; margin: 0 }
p { margin: .3rem 0; color: var(--soft) }
section { margin: 1.2rem 0; padding: 1rem 1.2rem; border: 1px solid var(--line);
  border-radius: 6px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .9rem }
th { text-align: left; font-weight: 600; color: var(--soft) }
td, th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap }
code { font-size: .85em; color: var(--soft) }
.alias { padding: 0 .5rem; border: 1px solid var(--c1); border-radius: 99px; color: var(--c1);
  font-size: .8rem }
.bar { display: inline-block; width: 5rem; height: .55em; margin-right: .5em;
  background: var(--field) }
.bar i { display: block; height: 100%; background: var(--c0) }
svg { display: block; margin: .6rem 0 }
svg text { fill: var(--ink); font-size: 12px }
svg .soft { fill: var(--soft) } svg .mark { fill: var(--c1); font-weight: 600 }
svg path { fill: none; stroke: var(--soft); stroke-width: 1.5 }
svg circle { fill: var(--c0); stroke: var(--paper); stroke-width: 2 }
svg circle.named { fill: var(--c1) } svg circle.copy { fill: var(--paper); stroke: var(--c0) }
"""


def write_page(hub: Catalog, path: str | Path) -> Path:
    """Write the page. Raises ``OSError`` when it cannot be written."""
    return write_text(path, hub_page(hub.list(), hub.folder.name))


def hub_page(versions: Sequence[Version], title: str = "hub") -> str:
    """The page's text.

    >>> hub_page([], "my <hub>").count("my &lt;hub&gt;")
    2
    """
    by_name: dict[str, list[Version]] = {}
    for each in versions:
        by_name.setdefault(each.name, []).append(each)
    stored = sum(each.manifest.bytes for each in versions)
    total = f"{len(by_name)} adapters, {len(versions)} versions, {size_text(stored)}"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: adapters</title>
<style>{STYLE}</style>
<h1>{escape(title)}</h1>
<p>{total if versions else "Nothing was pushed yet."}</p>
{"".join(card(name, known) for name, known in sorted(by_name.items()))}</html>
"""


def card(name: str, versions: Sequence[Version]) -> str:
    """One name: what it is for, its graph, its versions as a table."""
    last = max(versions, key=lambda each: ("champion" in each.aliases, each.pushed)).manifest
    metrics = sorted({metric for each in versions for metric in each.manifest.metrics})
    tops = {m: max(abs(each.manifest.metrics.get(m, 0)) for each in versions) for m in metrics}
    heads = ["version", "", *metrics, "rank", "data", "base", "size", "pushed"]
    about = " · ".join(filter(None, (last.task, *last.tags)))
    rows = "".join(row(each, metrics, tops) for each in reversed(versions))
    return f"""<section>
<h2 id="{escape(name)}">{escape(name)}</h2>
<p>{escape(last.description)}{" — " * bool(last.description and about)}{escape(about)}</p>
<div class="scroll">{lineage_graph(versions)}</div>
<div class="scroll"><table><tr>{"".join(f"<th>{escape(head)}</th>" for head in heads)}</tr>
{rows}</table></div>
</section>
"""


def row(version: Version, metrics: Sequence[str], tops: Mapping[str, float]) -> str:
    """One version in the table; a score's bar is its share of the name's largest."""
    about = version.manifest
    cells = [f"<b>{escape(version.version)}</b>"]
    cells.append(
        " ".join(f'<span class="alias">{escape(alias)}</span>' for alias in version.aliases)
    )
    for metric in metrics:
        value = about.metrics.get(metric)
        if value is None:
            cells.append("")
            continue
        share = 100 * max(0.0, value) / (tops[metric] or 1)
        cells.append(f'<span class="bar"><i style="width:{share:.0f}%"></i></span>{value:.4g}')
    cells += [
        f"{about.settings.get('r', 0):g}",
        f"<code>{about.data_sha[:8] or '?'}</code>",
        f"<code>{about.tensors[:8] or '?'}</code>",
        size_text(about.bytes),
        time.strftime("%Y-%m-%d", time.gmtime(version.pushed)),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def lineage_graph(versions: Sequence[Version]) -> str:
    """The versions of one name and which came from which, as SVG."""
    places = lanes([(each.spec, each.manifest.parent) for each in versions])
    spots = {
        spec: (EDGE + STEP * column, EDGE + LANE * lane) for spec, (column, lane) in places.items()
    }
    lines, dots = [], []
    for each in versions:
        x, y = spots[each.spec]
        parent = each.manifest.parent
        if parent in spots:
            px, py = spots[parent]
            bend = px + STEP / 2
            lines.append(
                f'<path d="M{px} {py} C{bend:g} {py} {px:g} {y} {px + STEP:g} {y} L{x} {y}"/>'
            )
        copy = "+" in each.version
        kind = "copy" if copy else "named" if each.aliases else ""
        dots.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="{5 if copy else 8}"/>')
        dots.append(text(x, y + 24, each.version))
        over = ", ".join(each.aliases)
        if over:
            dots.append(text(x, y - 14, over, "mark"))
        elif parent and parent not in spots:
            dots.append(text(x, y - 14, f"from {parent}", "soft"))
    width = 2 * EDGE + STEP * (len(versions) - 1) + 60
    height = 2 * EDGE + LANE * max(lane for _, lane in places.values())
    described = f"lineage of {versions[0].name}: {len(versions)} versions"
    return (
        f'<svg role="img" aria-label="{escape(described)}" width="{width}" height="{height}">'
        f"{''.join(lines + dots)}</svg>"
    )


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """A label of the graph, in the middle over ``x``."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="middle">{escape(content)}</text>'


def lanes(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """(column, lane) of each version, from (version, parent) in the order of the pushes.

    >>> lanes([("1.0.0", ""), ("1.1.0", "1.0.0"), ("1.0.1", "1.0.0"), ("1.2.0", "1.1.0")])
    {'1.0.0': (0, 0), '1.1.0': (1, 0), '1.0.1': (2, 1), '1.2.0': (3, 0)}
    >>> lanes([("1.0.0", ""), ("1.0.0+nf4", "1.0.0"), ("1.0.1", "1.0.0")])["1.0.1"]
    (2, 0)
    """
    places: dict[str, tuple[int, int]] = {}
    continued: set[str] = set()
    used = 0
    for column, (version, parent) in enumerate(pairs):
        if parent in places and parent not in continued and "+" not in version:
            lane = places[parent][1]
            continued.add(parent)
        else:
            lane, used = used, used + 1
        places[version] = column, lane
    return places

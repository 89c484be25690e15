"""The tables of ``minilora hub list`` and ``minilora hub show``, drawn by rich."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..text import size_text


def version_row(version: Any, metrics: Sequence[str]) -> tuple[str, ...]:
    """A version's line: what it is, its scores, its size, when it came."""
    manifest = version.manifest
    scores = [f"{manifest.metrics[m]:.4g}" if m in manifest.metrics else "" for m in metrics]
    rank, size = plain(manifest.settings["r"]), size_text(manifest.bytes)
    day = time.strftime("%Y-%m-%d", time.gmtime(version.pushed))
    return version.spec, ", ".join(version.aliases), manifest.task, *scores, rank, size, day


def show_versions(chosen: Sequence[Any]) -> None:
    """Versions as a table, a column a score."""
    if not chosen:
        print("no version of this tenant is like that")
        return
    metrics = sorted({name for each in chosen for name in each.manifest.metrics})
    rows = [version_row(each, metrics) for each in chosen]
    table(("version", "aliases", "task", *metrics, "rank", "size", "pushed"), rows)


def show_version(version: Any, lineage: Sequence[Any], events: Sequence[Any]) -> None:
    """Everything that is known of one version, and where its name's aliases pointed lately."""
    about = version.manifest
    rows = [
        ("version", version.spec),
        ("aliases", ", ".join(version.aliases)),
        ("description", about.description),
        ("task", about.task),
        ("tags", ", ".join(about.tags)),
        *((f"score {name}", f"{value:.6g}") for name, value in about.metrics.items()),
        ("base", f"architecture {about.architecture or '?'}, values {about.tensors or '?'}"),
        ("data", about.data_sha),
        ("lineage", " <- ".join(each.spec for each in lineage)),
        (
            "settings",
            ", ".join(f"{key}={plain(value)}" for key, value in about.settings.items() if value),
        ),
        ("recipe", ", ".join(f"{key}={value}" for key, value in about.recipe.items())),
        ("seed", "" if about.seed is None else str(about.seed)),
        ("made with", ", ".join(f"{key} {value}" for key, value in about.packages.items())),
        ("pushed", f"{about.created} by {about.creator}"),
        ("content", about.content),
        ("blob", f"blobs/{version.digest[:2]}/{version.digest}"),
    ]
    table(("", ""), [row for row in rows if row[1]])
    history = [each for each in events if "->" in each.what]
    for each in history[-5:]:
        print(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(each.at))}  {each.who}: {each.what}")


def plain(value: Any) -> str:
    """A setting without brackets and without ``.0``."""
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Draw a table as rich does, without the columns that are empty in every row."""
    from rich.console import Console
    from rich.table import Table

    kept = [i for i, head in enumerate(heads) if i == 0 or any(row[i] for row in rows)]
    drawn = Table(box=None, pad_edge=False, show_header=any(heads))
    for i in kept:
        drawn.add_column(heads[i], overflow="fold", no_wrap=i == 0 or heads[i] not in ("", "task"))
    for row in rows:
        drawn.add_row(*(row[i] for i in kept))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.width = max(console.width, 100)  # a narrower window wraps lines; a hash stays whole
    if any(heads):
        whole = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(drawn, options=whole).maximum)
    console.print(drawn)

"""The tables of docs/scale.md about federated rounds, for ``report.py``."""

from __future__ import annotations

from typing import Any

from .federated import DELTA, LADDER, LR, LR_B, SETTINGS
from .tables import pick, spread, table

NAMES = {
    "pooled": "pooled: all logs in one place",
    "stack": "`stack`",
    "svd": "`svd`",
    "factors": "`factors`",
    "frozen_a": "`frozen_a`",
    "alone": "the first client alone",
}
Rows = list[dict[str, Any]]


def spent(eps: float) -> str:
    """An ε.

    >>> spent(8.384), spent(15740.0)
    ('8.4', '15,740')
    """
    return f"{eps:.1f}" if eps < 100 else f"{eps:,.0f}"


def cells(rows: Rows) -> list[str]:
    """Loss and exact answers of one setting, over its seeds."""
    return [spread([r["loss"] for r in rows], ".2f"), spread([r["exact"] for r in rows], ".0%")]


def scores_table(result: dict[str, Any]) -> str:
    """A line for each way and split."""
    lines = []
    for clients, split in dict.fromkeys((clients, split) for clients, split, _ in SETTINGS):
        for how in NAMES:
            for lr in (LR, LR_B):
                own = {"clients": clients, "split": split, "clipping_norm": 0.0, "r": 4}
                rows = pick(result, how=how, lr=lr, **own)
                if rows:
                    name = NAMES[how] + (f", lr = {lr:g}" if lr != LR else "")
                    errors = [max(row["error"]) for row in rows]
                    error = "" if how in ("pooled", "alone") else f"{max(errors):.1%}"
                    sent = f"{rows[0]['bytes_up']:,}" if error else ""
                    lines.append([f"{clients}, {split}", name, *cells(rows), error, sent])
    if rows := pick(result, how="svd", r=1):
        error = f"{max(max(row['error']) for row in rows):.1%}"
        lines.append(["2, taste", f"{NAMES['svd']}, ranks 4 and 1", *cells(rows), error, ""])
    head = ("clients", "way", "loss, nats an answer token", "right to the letter")
    return table((*head, "largest error of a round", "bytes up, a client and round"), lines)


def noise_table(result: dict[str, Any]) -> str:
    """A line for each noise."""
    lines = []
    for noise in LADDER:
        rows = [row for row in pick(result, noise_multiplier=noise) if row["clipping_norm"]]
        if rows:
            eps = spent(rows[0]["epsilon"]) if noise else "none"
            lines.append([f"{noise:g}" if noise else "0: clipping alone", eps, *cells(rows)])
    head = ("noise multiplier", f"ε at δ = {DELTA:g}", "loss", "right to the letter")
    return table(head, lines)


def flower_table(result: dict[str, Any]) -> str:
    """A line for each run of Flower's processes."""
    lines = []
    for row in result["rows"]:
        asked = f"{row['flower_epsilon']:g}" if row["flower_epsilon"] else "no"
        eps = spent(row["epsilon"]) if row["flower_epsilon"] else ""
        scores = [f"{row['loss']:.2f}", f"{row['exact']:.0%}"]
        name = f"`{row['how']}`" + (f", lr = {row['lr']:g}" if row["lr"] != LR else "")
        steps = f"{row['rounds']} × {row['steps']}"
        lines.append([str(row["clients"]), name, steps, asked, eps, *scores])
    head = ("clients", "way", "rounds × steps", "`LocalDpMod`'s ε", "ε of all rounds")
    return table((*head, "loss", "right to the letter"), lines)


def part(results: dict[str, Any]) -> str:
    """Between the markers of docs/scale.md."""
    own = results["federated"]
    seeds = sorted({row["seed"] for row in own["rows"]})
    minutes = sum(row["seconds"] for row in own["rows"]) / 60
    word = "seed" if len(seeds) == 1 else "means (ranges) over seeds"
    told = f"{word} {', '.join(map(str, seeds))}, {minutes:.0f} minutes of one core"
    text = [
        f"`python -m benchmarks.federated`, {told}.",
        scores_table(own),
        "The ladder of noise, two clients, `frozen_a`, C = 3, lr = 0.02, three rounds:",
        noise_table(own),
    ]
    if "flower" in results:
        text += [
            "With Flower's `LocalDpMod` instead, seed 0 (`python -m benchmarks.flower_grid`):",
            flower_table(results["flower"]),
        ]
    if "flower_loopback" in results:
        text += [
            "On Flower's processes on loopback, seed 0 (`python -m benchmarks.flower_loopback`):",
            flower_table(results["flower_loopback"]),
        ]
    return "\n\n".join(text)

"""The tables of generation and serving, for ``report.py``."""

from __future__ import annotations

from typing import Any

from .tables import counted, megabytes, pick

GENERATION = (
    "base",
    "rows",
    "new tokens",
    "measured in",
    "by",
    "tokens a second",
    "speed / transformers'",
)
SERVING = ("what", "by", "figure", "ratio (quartiles)")
CLOCKS = {"cpu": "processor time", "wall": "wall time"}


def quartiled(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles, the lower first."""
    low, high = sorted((ratio["low"], ratio["high"]))
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def generation_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a base, number of rows, clock and contestant."""
    return [
        [
            row["base"],
            str(row["rows"]),
            str(row["new"]),
            f"{CLOCKS[row['clock']]}, {counted(row['threads'], 'thread')}",
            row["contestant"],
            f"{row['tokens_a_second']:,.0f}",
            quartiled(row["speed"]),
        ]
        for row in result["rows"]
    ]


def serving_rows(result: dict[str, Any]) -> list[list[str]]:
    """Steps, batches, arrivals, swaps, memory."""
    lines = []
    for row in pick(result, what="step"):
        what = f"{row['phase']}, 64 rows, {row['adapters']:,} adapters ({row['distinct']} in them)"
        line = [what, row["contestant"], f"{1e3 * row['seconds']:.2f} ms", quartiled(row["ratio"])]
        lines.append(line)
    for row in pick(result, what="batching"):
        speed = f"{row['tokens_a_second']:,.0f} tokens/s"
        what = f"{row['requests']} requests at once"
        lines.append([what, row["contestant"], speed, quartiled(row["ratio"])])
    for row in pick(result, what="arrivals"):
        first, whole = row["first_token"], row["whole"]
        tenants = row["first_by_tenant"]
        figure = f"first token {first['p50']:.2f} s (p95 {first['p95']:.2f}), "
        figure += f"end {whole['p50']:.2f} s (p95 {whole['p95']:.2f}), "
        figure += f"{row['tokens_a_second']:,.0f} tokens/s; first token of the small tenant "
        figure += f"{tenants['small']:.2f} s, of the large {tenants['large']:.2f} s"
        lines.append(["arrivals, wall time", f"minilora, {row['slots']} slots", figure, ""])
    for row in pick(result, what="newcomer"):
        figure = f"first token after {1e3 * row['wait']:.1f} ms; a step of the others "
        figure += f"{1e3 * row['decode']:.1f} ms, its prefill alone {1e3 * row['prefill']:.1f} ms"
        what = f"a request while {row['streaming']} stream"
        lines.append([what, "minilora", figure, f"{row['wait'] / row['decode']:.2f} steps"])
    for row in pick(result, what="swap"):
        figure = f"{1e6 * row['seconds']:,.1f} µs"
        ratio = row["ratio"]["median"]
        beside = quartiled(row["ratio"]) if ratio > 0.01 else f"1 / {1 / ratio:,.0f}"
        lines.append(["another adapter", row["contestant"], figure, beside])
    for row in pick(result, what="memory"):
        figure = f"{megabytes(row['bytes'], 1)} MB"
        lines.append([f"memory of {row['adapters']:,} adapters", "minilora", figure, ""])
    return lines


def generation_line(result: dict[str, Any]) -> list[str]:
    """The README's line: tokens a second over transformers', floats and four bits."""
    speeds: dict[tuple[str, int], dict[str, str]] = {}
    for row in pick(result, clock="wall"):
        speed = f"{row['speed']['median']:.2f}"
        speeds.setdefault((row["base"], row["rows"]), {})[row["contestant"]] = speed
    parts = [
        f"{base}, {counted(rows, 'row')} **{speed['minilora']}** (NF4 {speed['minilora, NF4']})"
        for (base, rows), speed in speeds.items()
    ]
    threads = counted(pick(result, clock="wall")[0]["threads"], "thread")
    what = f"generate, tokens a second / transformers', on {threads}"
    return [what, "; ".join(parts), "generation"]


def serving_line(result: dict[str, Any]) -> list[str]:
    """The README's line: 64 rows of up to a thousand adapters over the base alone."""
    most = max(row["adapters"] for row in pick(result, what="step"))
    cells = []
    for phase in ("prefill", "decode"):
        for count in (64, most):
            rows = pick(result, what="step", phase=phase, adapters=count)
            ratios = {row["contestant"]: row["ratio"]["median"] for row in rows}
            peer = ratios.get("PEFT, adapter_names")
            beside = "" if peer is None else f" (PEFT {peer:.2f})"
            cells.append(f"{phase}, {count:,} adapters **{ratios['minilora']:.2f}**{beside}")
    return ["64 rows, an adapter each / the base alone", "; ".join(cells), "serving"]

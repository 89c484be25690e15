"""Tables and a figure from ``results/``: into the README, between two markers, and whole into ``docs/benchmarks.md``.

    python -m benchmarks.report

Nothing in them is typed; tests/test_benchmarks.py fails when they are not what the results say.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilora.files import write_text
from minilora.plots.style import save_figure

from .common import RESULTS
from .figure import benchmark_figure
from .scaling import fit

ROOT = Path(__file__).parent.parent
START, END = (
    "<!-- benchmarks: written by `python -m benchmarks.report` -->",
    "<!-- benchmarks end -->",
)
Results = dict[str, dict[str, Any]]


def read(folder: Path = RESULTS / "cpu") -> Results:
    """Every result of one kind of device, by name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def pick(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows that have these values."""
    return [
        row for row in result["rows"] if all(row.get(key) == value for key, value in wanted.items())
    ]


def times(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and the range over the seeds."""
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def machine_line(result: dict[str, Any]) -> str:
    """Where a result comes from."""
    found = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['device']}, {found['threads']} threads, Python {found['python']}; {versions}"


def forward_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a setting, a column a contestant: ratios to the plain Linear."""
    settings = sorted(
        {(row["mode"], row["rows"], row["width"], row["r"]) for row in result["rows"]}
    )
    lines = []
    for mode, rows, width, r in settings:
        found = {
            row["contestant"]: row["ratio"]
            for row in pick(result, mode=mode, rows=rows, width=width, r=r)
        }
        lines.append(
            [
                mode,
                str(rows),
                str(width),
                str(r),
                *(f"{found[name]['median']:.2f}" for name in FORWARD),
            ]
        )
    return lines


FORWARD = (
    "minilora",
    "PEFT",
    "loralib",
    "minilora, disabled",
    "minilora, merged",
    "minilora, merged and unloaded",
    "PEFT, merged",
)


def step_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a pair of contestants, a column a model."""
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    pairs = dict.fromkeys((row["ours"], row["other"]) for row in result["rows"] if "ours" in row)
    cell = {
        (row["model"], row["ours"], row["other"]): times(row["ratio"])
        for row in result["rows"]
        if "ours" in row
    }
    return [
        [f"{ours} / {other}", *(cell.get((name, ours, other), "—") for name in names)]
        for ours, other in pairs
    ]


def nf4_rows(result: dict[str, Any]) -> list[list[str]]:
    """Speed in millions of weights a second, and as a multiple of bitsandbytes'."""
    lines = []
    for row in result["rows"]:
        speed, ratio = row["width"] ** 2 / row["seconds"] / 1e6, 1 / row["ratio"]["median"]
        size = f"{row['width']}² {row['dtype']}"
        lines.append(
            [
                row["what"],
                size,
                row["contestant"],
                f"{speed:.0f}",
                f"{ratio:.2f}",
                f"{row['bits']:.3f}",
            ]
        )
        lines[-1].append(f"{row['rmse']:.4f}")
    return lines


def memory_rows(result: dict[str, Any]) -> list[list[str]]:
    """Megabytes: what stays, what the peak is made of, and what the process took."""
    parts = ("weights", "adapters", "gradients", "optimizer", "activations", "temporary")
    lines = []
    for row in result["rows"]:
        peak = {
            **row["at_peak"],
            "weights": row["at_peak"]["weights"] + row["at_peak"]["constants"],
        }
        process = "—" if row["process"] is None else f"{row['process'] / 1e6:.0f}"
        totals = [f"{sum(row['resident'].values()) / 1e6:.0f}", f"{row['peak'] / 1e6:.0f}", process]
        lines.append([row["method"], *totals, *(f"{peak[part] / 1e6:.1f}" for part in parts)])
    return lines


def matrix_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a method."""
    base, *methods = result["rows"]
    full = {seed: row["step_seconds"] for seed, row in enumerate(methods[0]["seeds"])}
    untouched = [
        "",
        "",
        "",
        "",
        f"{base['exact_match']:.0%}",
        "0",
        f"{base['manual_bits']:.2f}",
        "0",
        "1",
        "1",
        "",
    ]
    lines = [[base["method"], *untouched]]
    for row in methods:
        seeds = row["seeds"]
        column = {key: [seed[key] for seed in seeds] for key in seeds[0]}
        steps = statistics.median(seed["step_seconds"] / full[i] for i, seed in enumerate(seeds))
        reached = [seconds for seconds in column["seconds_to_target"] if seconds is not None]
        target = (
            f"{statistics.median(reached):.1f} s"
            if len(reached) == len(seeds)
            else f"{len(reached)} of {len(seeds)} runs"
        )
        trainable = f"{row['trainable']:,} ({row['share']:.2%})"
        lines.append(
            [row["method"], trainable, f"{row['peak_bytes'] / 1e6:.0f}", f"{steps:.2f}", target]
        )
        lines[-1] += [
            spread(column["exact_match"], ".0%"),
            f"+{statistics.mean(column['naval_forgetting']):.2f}",
        ]
        lines[-1] += [
            spread(column["manual_bits"], ".2f"),
            f"+{statistics.mean(column['manual_forgetting']):.2f}",
        ]
        lines[-1] += [
            f"{row['latency_unmerged']:.2f}",
            f"{row['latency_merged']:.2f}" if "latency_merged" in row else "—",
        ]
        lines[-1].append(f"{row['shipped_bytes'] / 1e3:,.0f}")
    return lines


MATRIX = (
    "method",
    "trainable",
    "peak MB",
    "step / full's",
    "to a loss of 0.1",
    "naval, exact",
    "forgot",
    "manual, bits a byte",
)
MATRIX += ("forgot", "forward unmerged", "merged", "KB to ship")


def scaling_rows(result: dict[str, Any]) -> list[list[str]]:
    """Fitted and expected exponents."""
    found = [(row, row["exponent"]) for row in fit(result["rows"])]
    lines = [(row, "lost in the noise" if k is None else f"{k:.2f}") for row, k in found]
    return [[row["what"], row["axis"], k, f"{row['expected']:g}"] for row, k in lines]


def quality_rows(result: dict[str, Any]) -> list[list[str]]:
    """The base in each codebook, untrained, then every run."""
    return [
        [f"untrained, {row['base']}", "", "", f"{row['prose_bits']:.3f}"]
        if "base" in row
        else [
            row["method"],
            str(row["seed"]),
            f"{row['exact_match']:.1%}",
            f"{row['prose_bits']:.3f}",
        ]
        for row in result["rows"]
    ]


def quality_lines(result: dict[str, Any]) -> list[list[str]]:
    """What quantizing the base costs, and what learning on it costs."""
    bits = ", ".join(
        f"{row['base']} {row['prose_bits']:.3f}" for row in result["rows"] if "base" in row
    )
    given, lines = (
        result["settings"],
        [["the shipped base on its prose, untrained, bits a byte", bits, "quality"]],
    )
    how = f"{given['steps']:,} steps of naval code, {len(given['seeds'])} seeds, mean (range)"
    asked = {
        f"right of {given['logs']:,} held-out logs": ("exact_match", ".1%"),
        "prose, bits a byte": ("prose_bits", ".2f"),
    }
    for what, (key, form) in asked.items():
        rows = {
            m: [row[key] for row in result["rows"] if row.get("method") == m]
            for m in ("LoRA", "QLoRA")
        }
        found = ", ".join(f"{method} {spread(values, form)}" for method, values in rows.items())
        lines.append([f"{how}: {what}", found, "quality"])
    return lines


def summary(found: Results) -> str:
    """The README's part: the lines that answer the usual questions, and the matrix."""
    forward, step, four, memory = (
        found[name] for name in ("forward", "train_step", "nf4", "memory")
    )
    lines = []
    for rows, what in ((512, "a prompt of 512 rows"), (1, "one row")):
        ratio = {
            r["contestant"]: r["ratio"]
            for r in pick(forward, mode="inference", rows=rows, width=768, r=8)
        }
        peers = f"PEFT {ratio['PEFT']['median']:.2f}, loralib {ratio['loralib']['median']:.2f}"
        merged = f"merged and unloaded {ratio['minilora, merged and unloaded']['median']:.2f}"
        lines.append(
            [
                f"forward, {what}, 768 -> 768, r=8 / plain Linear",
                f"**{times(ratio['minilora'])}**; {peers}; {merged}",
            ]
        )
        lines[-1].append("forward")
    for row in pick(step, model="6 layers, d=768"):
        if "ours" in row:
            lines.append(
                [
                    f"a step, 6 layers, d=768: {row['ours']} / {row['other']}",
                    f"**{times(row['ratio'])}**",
                    "train_step",
                ]
            )
    for what in ("quantize", "dequantize"):
        speeds = [
            1 / row["ratio"]["median"] for row in pick(four, what=what, contestant="minilora")
        ]
        theirs = [1 / row["ratio"]["median"] for row in pick(four, what=what, contestant="torchao")]
        ours = f"**{min(speeds):.2f} to {max(speeds):.2f}**; torchao {min(theirs):.2f} to {max(theirs):.2f}"
        lines.append([f"{what} NF4, 256² to 4096², speed / bitsandbytes'", ours, "nf4"])
    peaks = ", ".join(f"{row['method']} {row['peak'] / 1e6:.0f}" for row in memory["rows"])
    lines.append(["memory at the peak of a step, 6 layers, d=768, MB", peaks, "memory"])
    lines += quality_lines(found["quality"])
    text = table(("what", "figure: median (quartiles)", "`python -m benchmarks.…`"), lines)
    seeds = len(found["matrix"]["rows"][1]["seeds"])
    steps = found["matrix"]["settings"]
    note = (
        f"Every method on the shipped base, {seeds} seeds, mean (range), {steps['steps']} steps of naval code and "
        f"{steps['text_steps']} of Python's manual; forgot: bits a byte lost on the base's own prose (`benchmarks.matrix`):"
    )
    # the time to a loss is in the docs
    rows = [[*row[:4], *row[5:]] for row in (MATRIX, *matrix_rows(found["matrix"]))]
    return f"{text}\n\n{note}\n\n{table(rows[0], rows[1:])}\n\n{machine_line(step)}."


def whole(found: Results) -> str:
    """``docs/benchmarks.md``."""
    models = list(dict.fromkeys(row["model"] for row in found["train_step"]["rows"]))
    parts = (
        (
            "forward",
            "Ratios to the plain Linear.",
            ("mode", "rows", "width", "r", *FORWARD),
            forward_rows,
        ),
        ("train_step", "Time of a step, ratio (quartiles).", ("ours / other", *models), step_rows),
        (
            "nf4",
            "",
            ("what", "size", "by", "M weights/s", "speed / bitsandbytes'", "bits a weight", "rmse"),
            nf4_rows,
        ),
        ("memory", "Megabytes.", ("method", "resident", "peak", "process", *PARTS), memory_rows),
        ("matrix", "", MATRIX, matrix_rows),
        (
            "quality",
            "Naval code: held-out logs right to the letter; the base's own prose in bits a byte.",
            ("base or method", "seed", "exact", "prose"),
            quality_rows,
        ),
        (
            "scaling",
            "Cost ∝ size^k, fitted on the three largest sizes; extra: over the floor.",
            ("cost", "grows with", "k", "expected"),
            scaling_rows,
        ),
    )
    text = [
        "# Benchmarks",
        "Written by `python -m benchmarks.report` from `benchmarks/results/`; `make bench` makes those anew.",
    ]
    text.append("![What an adapter costs, and what it gives](benchmarks.png)")
    for name, note, head, rows in parts:
        text += [
            f"## {name}",
            *([note] if note else []),
            table(head, rows(found[name])),
            machine_line(found[name]),
        ]
    return "\n\n".join(text) + "\n"


PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "temporary")


def put_between_markers(text: str, new: str) -> str:
    """The README with its part replaced. Raises ``ValueError`` when a marker is missing."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"the README needs the two lines {START} and {END}, once each")
    before, rest = text.split(START)
    return f"{before}{START}\n\n{new}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write all of it."""
    found = read()
    readme = ROOT / "README.md"
    write_text(readme, put_between_markers(readme.read_text(encoding="utf-8"), summary(found)))
    write_text(ROOT / "docs" / "benchmarks.md", whole(found))
    save_figure(benchmark_figure(found), ROOT / "docs" / "benchmarks.png")
    print("README.md, docs/benchmarks.md and docs/benchmarks.png are what the results say.")


if __name__ == "__main__":
    main()

"""The tables of the benchmarks: each result as rows of text, for Markdown.

``report.py`` puts them into the README and docs/benchmarks.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .scaling import fit

FORWARD = ("minilora", "PEFT", "loralib", "minilora, disabled", "minilora, merged")
FORWARD += ("minilora, merged and unloaded", "PEFT, merged")
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "temporary")
MATRIX = ("method", "trainable", "peak MB", "step / full's", "to a loss of 0.1", "naval, exact")
MATRIX += ("forgot", "manual, bits a byte", "forgot", "forward unmerged", "merged", "KB to ship")

FORGETTING = (
    "group",
    "method",
    "seeds",
    "exact",
    "forgot, bits a byte",
    "old answers kept",
    "CPU s",
)
WORDINGS = ("wordings in training", "seeds", "right, seen wordings", "right, unseen wordings")
FACTS = ("facts", "method", "“x status?”", "in another wording", "new log followed")
FACTS += ("taught value instead", "ship's logs", "forgot", "prompt tokens")
VARIANTS = ("avx512", "avx2", "plain", "tensors")
DEQUANTIZED = ("threads", "size", "bitsandbytes, M weights/s", *VARIANTS)
PRODUCTS = ("threads", "size", "rows", "bitsandbytes", *VARIANTS, "dequantize and multiply")
REFUSALS = ("model", "declined of 50", "declined, harmless", "naval, exact")
CONTEXT = ("model", "way", "exact", "prompt tokens", "CPU s a request", "training has paid after")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def pick(result: dict[str, Any], **values: Any) -> list[dict[str, Any]]:
    """The rows that have these values."""
    rows = result["rows"]
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def times(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def spread(values: Sequence[float], form: str) -> str:
    """The mean over the seeds, and their range where there are several.

    >>> spread([1.0, 2.0], ".1f"), spread([1.0], ".1f")
    ('1.5 (1.0 to 2.0)', '1.0')
    """
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else mean


def counted(number: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {what}{'s' * (number != 1)}"


def megabytes(size: float, digits: int = 0) -> str:
    """Bytes in millions."""
    return f"{size / 1e6:.{digits}f}"


def forward_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a setting, a column a contestant: ratios to the plain Linear."""
    rows, keys = result["rows"], ("mode", "rows", "width", "r")
    lines = []
    for setting in sorted({tuple(row[key] for key in keys) for row in rows}):
        picked = pick(result, **dict(zip(keys, setting, strict=True)))
        ratio = {row["contestant"]: f"{row['ratio']['median']:.2f}" for row in picked}
        lines.append([*map(str, setting), *(ratio[name] for name in FORWARD)])
    return lines


def step_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a pair of contestants, a column a model."""
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    compared = [row for row in result["rows"] if "ours" in row]
    pairs = dict.fromkeys((row["ours"], row["other"]) for row in compared)
    cells = {(row["model"], row["ours"], row["other"]): times(row["ratio"]) for row in compared}
    return [
        [f"{ours} / {other}", *(cells.get((name, ours, other), "—") for name in names)]
        for ours, other in pairs
    ]


def nf4_rows(result: dict[str, Any]) -> list[list[str]]:
    """Speed in millions of weights a second, and as a multiple of bitsandbytes'."""
    lines = []
    for row in result["rows"]:
        speed, ratio = row["width"] ** 2 / row["seconds"] / 1e6, 1 / row["ratio"]["median"]
        names = [row["what"], f"{row['width']}² {row['dtype']}", row["contestant"]]
        quality = [f"{row['bits']:.3f}", f"{row['rmse']:.4f}"]
        lines.append([*names, f"{speed:.0f}", f"{ratio:.2f}", *quality])
    return lines


def dequantized_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a size and number of threads, a column a variant: speed over bitsandbytes'."""
    lines = []
    for setting, rows in by_setting(result, "dequantize", ("threads", "width", "dtype")):
        threads, width, dtype = setting
        theirs = rows.pop("bitsandbytes")
        speed = f"{width**2 / theirs['seconds'] / 1e6:,.0f}"
        ratio = [rows.get(f"minilora, {name}") for name in VARIANTS]
        cells = [f"{1 / row['ratio']['median']:.2f}" if row else "—" for row in ratio]
        lines.append([str(threads), f"{width}² {dtype}", speed, *cells])
    return lines


def product_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a size, number of rows and threads: time over the plain float32 Linear's."""
    names = ("bitsandbytes", *(f"minilora, {name}" for name in PRODUCTS[4:]))
    lines = []
    for setting, rows in by_setting(result, "product", ("threads", "width", "rows")):
        threads, width, count = setting
        ratio = [rows.get(name) for name in names]
        cells = [f"{row['ratio']['median']:.2f}" if row else "—" for row in ratio]
        lines.append([str(threads), f"{width}²", str(count), *cells])
    return lines


def by_setting(result: dict[str, Any], what: str, keys: Sequence[str]) -> list[tuple[Any, Any]]:
    """The rows of one kind by these keys, and within each by contestant."""
    settings: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in pick(result, what=what):
        setting = tuple(row[key] for key in keys)
        settings.setdefault(setting, {})[row["contestant"]] = row
    return list(settings.items())


def memory_rows(result: dict[str, Any]) -> list[list[str]]:
    """Megabytes: resident, at the peak as a whole and by part, and of the process."""
    lines = []
    for row in result["rows"]:
        peak = {**row["at_peak"]}
        peak["weights"] += peak["constants"]
        process = "—" if row["process"] is None else megabytes(row["process"])
        totals = [megabytes(sum(row["resident"].values())), megabytes(row["peak"]), process]
        lines.append([row["method"], *totals, *(megabytes(peak[part], 1) for part in PARTS)])
    return lines


def matrix_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a method."""
    base, *methods = result["rows"]
    scores = [f"{base['exact_match']:.0%}", "0", f"{base['manual_bits']:.2f}", "0", "1", "1", ""]
    lines = [[base["method"], "", "", "", "", *scores]]
    full_seconds = [seed["step_seconds"] for seed in methods[0]["seeds"]]
    for row in methods:
        column = {key: [seed[key] for seed in row["seeds"]] for key in row["seeds"][0]}
        paired = zip(column["step_seconds"], full_seconds, strict=True)
        steps = statistics.median(seconds / full for seconds, full in paired)
        merged = f"{row['latency_merged']:.2f}" if "latency_merged" in row else "—"
        lines.append(
            [
                row["method"],
                f"{row['trainable']:,} ({row['share']:.2%})",
                megabytes(row["peak_bytes"]),
                f"{steps:.2f}",
                to_target(column["seconds_to_target"]),
                spread(column["exact_match"], ".0%"),
                f"+{statistics.mean(column['naval_forgetting']):.2f}",
                spread(column["manual_bits"], ".2f"),
                f"+{statistics.mean(column['manual_forgetting']):.2f}",
                f"{row['latency_unmerged']:.2f}",
                merged,
                f"{row['shipped_bytes'] / 1e3:,.0f}",
            ]
        )
    return lines


def to_target(seconds: Sequence[float | None]) -> str:
    """Median seconds to the loss, or how many runs reached it when some did not."""
    reached = [each for each in seconds if each is not None]
    if len(reached) < len(seconds):
        return f"{len(reached)} of {len(seconds)} runs"
    return f"{statistics.median(reached):.1f} s"


def scaling_rows(result: dict[str, Any]) -> list[list[str]]:
    """Fitted and expected exponents."""
    lines = []
    for row in fit(result["rows"]):
        k = "lost in the noise" if row["exponent"] is None else f"{row['exponent']:.2f}"
        lines.append([row["what"], row["axis"], k, f"{row['expected']:g}"])
    return lines


def quality_rows(result: dict[str, Any]) -> list[list[str]]:
    """The base in each codebook, untrained, then every run."""
    lines = []
    for row in result["rows"]:
        bits = f"{row['prose_bits']:.3f}"
        if "base" in row:
            lines.append([f"untrained, {row['base']}", "", "", bits])
        else:
            lines.append([row["method"], str(row["seed"]), f"{row['exact_match']:.1%}", bits])
    return lines


def quality_lines(result: dict[str, Any]) -> list[list[str]]:
    """The cost of quantizing the base, and of learning on it."""
    rows, settings = result["rows"], result["settings"]
    bits = ", ".join(f"{row['base']} {row['prose_bits']:.3f}" for row in rows if "base" in row)
    lines = [["the shipped base on its prose, untrained, bits a byte", bits, "quality"]]
    seeds = len(settings["seeds"])
    how = f"{settings['steps']:,} steps of naval code, {seeds} seeds, mean (range)"
    for what, key, form in (
        (f"right of {settings['logs']:,} held-out logs", "exact_match", ".1%"),
        ("prose, bits a byte", "prose_bits", ".2f"),
    ):
        cells = []
        for method in ("LoRA", "QLoRA"):
            values = [row[key] for row in pick(result, method=method)]
            cells.append(f"{method} {spread(values, form)}")
        lines.append([f"{how}: {what}", ", ".join(cells), "quality"])
    return lines


def forgetting_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each method of each group, and one for each strength of its dial."""
    by_method: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        by_method.setdefault((row["group"], dialled(row)), []).append(row)
    lines = []
    for (group, method), rows in sorted(by_method.items(), key=lambda item: item[0][0]):
        kept = [row["kept"] for row in rows if "kept" in row]
        seconds = [row["seconds"] for row in rows]
        lines.append(
            [
                group,
                method,
                str(len(rows)),
                spread([row["exact"] for row in rows], ".1%"),
                spread([row["forgot"] for row in rows], "+.3f"),
                spread(kept, ".0%") if kept else "",
                "" if "dial" in rows[0] else f"{statistics.mean(seconds):.0f}",
            ]
        )
    return lines


def dialled(row: dict[str, Any]) -> str:
    """A method's name, with the strength of its adapter where that is not 1."""
    return f"{row['method']}, dial at {row['dial']:g}" if "dial" in row else row["method"]


def wordings_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each number of wordings."""
    lines = []
    for count in dict.fromkeys(row["wordings"] for row in result["rows"]):
        rows = pick(result, wordings=count)
        scores = [spread([row[key] for row in rows], ".0%") for key in ("seen", "unseen")]
        lines.append([str(count), str(len(rows)), *scores])
    return lines


def facts_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a number of facts and a method, over the seeds."""
    facts = pick(result, part="facts")
    shares = ("recall", "other_wording", "new_log", "taught_value", "ships_logs")
    lines = []
    for count, method in dict.fromkeys((row["facts"], row["method"]) for row in facts):
        rows = [row for row in facts if (row["facts"], row["method"]) == (count, method)]
        cells = [spread([row[key] for row in rows], ".0%") for key in shares]
        forgot = f"{statistics.mean(row['forgot'] for row in rows):+.2f}"
        tokens = rows[0]["tokens_shown" if method == "shown" else "tokens_taught"]
        lines.append([str(count), method, *cells, forgot, f"{tokens:.0f}"])
    return lines


def invented_rows(result: dict[str, Any]) -> list[list[str]]:
    """The share of answers that invent a reading, by method."""
    rows = pick(result, part="hallucination")
    methods = dict.fromkeys(row["method"] for row in rows)
    shares = {name: [row["invents"] for row in rows if row["method"] == name] for name in methods}
    return [[name, spread(values, ".0%")] for name, values in shares.items()]


def context_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a way to ask: quality, length, time, and when an adapter has paid."""
    lines = []
    for row in pick(result, part="in context"):
        pays = row.get("pays_after_requests")
        cells = [f"{row['exact']:.0%}", f"{row['prompt_tokens']:.0f}", f"{row['seconds']:.2f}"]
        after = f"{pays:,.0f} requests" if pays and row["exact"] else "—"  # 0% replaces nothing
        if "training_seconds" in row:
            after = f"({row['training_seconds']:,.0f} CPU s of training)"
        lines.append([row["model"], row["way"], *cells, after])
    return lines


def refusal_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a model: what it declines, and what it has learnt."""
    keys = ("refused", "harmless_refused", "exact")
    return [[row["model"], *(f"{row[key]:.0%}" for key in keys)] for row in result["rows"]]

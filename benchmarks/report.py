"""Write the tables and the figure from ``results/``: a part of the README, and docs/benchmarks.md.

    python -m benchmarks.report

Nothing in them is typed; tests/test_benchmarks.py fails when they differ from the results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minilora.commands.bench import BENCHMARKS
from minilora.files import write_text
from minilora.plots.style import save_figure

from .common import RESULTS
from .federated_tables import part as federated_part
from .figure import benchmark_figure, forgetting_figure
from .gate_tables import PLANTED, gate_note, planted_table_rows
from .methods_table import (
    CLAIMS_HEAD,
    ELSEWHERE_HEAD,
    METHODS_HEAD,
    claims_rows,
    elsewhere_rows,
    methods_figure,
    methods_rows,
    rank_head,
    rank_rows,
)
from .serving_tables import (
    GENERATION,
    SERVING,
    generation_line,
    generation_rows,
    serving_line,
    serving_rows,
)
from .tables import (
    CONTEXT,
    DEQUANTIZED,
    FACTS,
    FORGETTING,
    FORWARD,
    MATRIX,
    PARTS,
    PRODUCTS,
    REFUSALS,
    WORDINGS,
    context_rows,
    counted,
    dequantized_rows,
    facts_rows,
    forgetting_rows,
    forward_rows,
    invented_rows,
    matrix_rows,
    megabytes,
    memory_rows,
    nf4_rows,
    pick,
    product_rows,
    quality_lines,
    quality_rows,
    refusal_rows,
    scaling_rows,
    step_rows,
    table,
    times,
    wordings_rows,
)

ROOT = Path(__file__).parent.parent
START = "<!-- benchmarks: written by `python -m benchmarks.report` -->"
END = "<!-- benchmarks end -->"
Results = dict[str, dict[str, Any]]


def read(folder: Path = RESULTS / "cpu") -> Results:
    """Every result of one kind of device, by name."""
    files = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def machine_line(result: dict[str, Any]) -> str:
    """Where a result comes from."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    python = f"Python {machine['python']}"
    return f"{machine['device']}, {counted(machine['threads'], 'thread')}, {python}; {versions}"


def made_line(result: dict[str, Any], name: str) -> str:
    """Where a result comes from, and the command that makes it anew."""
    command = f"`python -m benchmarks.{COMMANDS.get(name, name)}`"
    if {name, COMMANDS.get(name)} & set(BENCHMARKS):
        command = f"`make bench`, or {command}"
    return f"{machine_line(result)}. Anew: {command}"


def summary(results: Results) -> str:
    """The README's part: the lines that answer the usual questions, and the methods' picture."""
    lines = [forward_line(results["forward"], 512, "a prompt of 512 rows")]
    lines.append(forward_line(results["forward"], 1, "one row"))
    for row in pick(results["train_step"], model="6 layers, d=768"):
        if "ours" in row:
            what = f"a step, 6 layers, d=768: {row['ours']} / {row['other']}"
            lines.append([what, f"**{times(row['ratio'])}**", "train_step"])
    lines += [nf4_line(results["nf4"], what) for what in ("quantize", "dequantize")]
    lines.append(product_line(results["nf4_kernel"]))
    peaks = [f"{row['method']} {megabytes(row['peak'])}" for row in results["memory"]["rows"]]
    what = "memory at the peak of a step, 6 layers, d=768, MB"
    lines.append([what, ", ".join(peaks), "memory"])
    lines += [generation_line(results["generation"]), serving_line(results["serving"])]
    lines += quality_lines(results["quality"])
    text = table(("what", "figure: median (quartiles)", "`python -m benchmarks.…`"), lines)
    shown = f"\n\n{PICTURE}" if "methods" in results else ""
    return f"{text}{shown}\n\n{machine_line(results['train_step'])}."


def forward_line(result: dict[str, Any], rows: int, what: str) -> list[str]:
    """The forward of one Linear of 768, ours first."""
    picked = pick(result, mode="inference", rows=rows, width=768, r=8)
    ratio = {row["contestant"]: row["ratio"] for row in picked}
    medians = {name: f"{each['median']:.2f}" for name, each in ratio.items()}
    peers = f"PEFT {medians['PEFT']}, loralib {medians['loralib']}"
    merged = f"merged and unloaded {medians['minilora, merged and unloaded']}"
    figures = f"**{times(ratio['minilora'])}**; {peers}; {merged}"
    return [f"forward, {what}, 768 -> 768, r=8 / plain Linear", figures, "forward"]


def nf4_line(result: dict[str, Any], what: str) -> list[str]:
    """The range of speeds over the sizes, ours and, where it took part, torchao's."""
    cells = []
    for name, text in (("minilora", "**{}**"), ("torchao", "torchao {}")):
        speeds = [1 / row["ratio"]["median"] for row in pick(result, what=what, contestant=name)]
        if speeds:
            cells.append(text.format(f"{min(speeds):.2f} to {max(speeds):.2f}"))
    return [f"{what} NF4, 256² to 4096², speed / bitsandbytes'", "; ".join(cells), "nf4"]


def product_line(result: dict[str, Any]) -> list[str]:
    """One row through a layer of four bits, on all threads, by size; bitsandbytes' beside it."""
    cells, threads = [], result["machine"]["threads"]
    best = f"minilora, {result['settings']['kernel']}"
    for width in (768, 2048, 4096):
        rows = pick(result, what="product", rows=1, width=width, threads=threads)
        ratio = {row["contestant"]: f"{row['ratio']['median']:.2f}" for row in rows}
        cells.append(f"{width}² **{ratio[best]}** (bitsandbytes {ratio['bitsandbytes']})")
    return ["one row through a Linear in NF4 / plain Linear", "; ".join(cells), "nf4"]


def whole(results: Results) -> str:
    """``docs/benchmarks.md``."""
    models = list(dict.fromkeys(row["model"] for row in results["train_step"]["rows"]))
    forward = ("mode", "rows", "width", "r", *FORWARD)
    speed = ("what", "size", "by", "M weights/s", "speed / bitsandbytes'", "bits a weight", "rmse")
    memory = ("method", "resident", "peak", "process", *PARTS)
    exact = "Naval code: held-out logs right to the letter; the base's own prose in bits a byte."
    kept = (
        "![What is lost, and what keeps it](forgetting.png)\n\nOn the shipped base; see "
        "`benchmarks/forgetting.py` for the groups. Mean (range) over the seeds; CPU seconds on a "
        "busy machine."
    )
    asked = "Equal examples, each question in so many wordings; 100 held-out logs."
    grown = (
        "Greedy, a prompt of 40 tokens a row; in floats both make the same tokens, in four bits "
        "they may be others."
    )
    served = (
        "The shipped base, adapters of rank 8 on q and v. Processor time of one thread; a ratio is "
        "to the first line of its group. With one slot the engine still computes its least number "
        "of rows (row_batch.py): slower than `generate`."
    )
    fitted = "Cost ∝ size^k, fitted on the three largest sizes; extra: over the floor."
    parts = (
        ("forward", "Ratios to the plain Linear.", forward, forward_rows),
        ("train_step", "Time of a step, ratio (quartiles).", ("ours / other", *models), step_rows),
        ("nf4", "", speed, nf4_rows),
        ("nf4_kernel", kernel_note(results["nf4_kernel"]), PRODUCTS, product_rows),
        ("memory", "Megabytes.", memory, memory_rows),
        ("generation", grown, GENERATION, generation_rows),
        ("serving", served, SERVING, serving_rows),
        ("matrix", "", MATRIX, matrix_rows),
        ("quality", exact, ("base or method", "seed", "exact", "prose"), quality_rows),
        ("forgetting", kept, FORGETTING, forgetting_rows),
        ("wordings", asked, WORDINGS, wordings_rows),
        ("facts", facts_note(results["facts"]), FACTS, facts_rows),
        *([("in_context", IN_CONTEXT, CONTEXT, context_rows)] if "in_context" in results else []),
        *([("refusals", REFUSED, REFUSALS, refusal_rows)] if "refusals" in results else []),
        *(
            [("gate", gate_note(results["gate"]), PLANTED, planted_table_rows)]
            if "gate" in results
            else []
        ),
        ("scaling", fitted, ("cost", "grows with", "k", "expected"), scaling_rows),
    )
    parts = (*parts, *methods_parts(results))
    text = [
        "# Benchmarks",
        WRITTEN_BY,
        "![What an adapter costs, and what it gives](benchmarks.png)",
    ]
    for name, note, head, rows in parts:
        tabled = table(head, rows(results[name]))
        text += [f"## {name}", *([note] if note else []), tabled, made_line(results[name], name)]
    return "\n\n".join(text) + "\n"


def methods_parts(results: Results) -> list[tuple[str, str, Any, Any]]:
    """The parts about methods, of those results that there are."""
    parts: list[tuple[str, str, Any, Any]] = []
    if "methods" in results:
        parts.append(("methods", methods_note(results["methods"]), METHODS_HEAD, methods_rows))
    if {"methods", "elsewhere"} <= results.keys():
        note = elsewhere_note(results["elsewhere"]["settings"], results["methods"]["settings"])
        parts.append(("elsewhere", note, ELSEWHERE_HEAD, elsewhere_rows))
    if "best_rank" in results:
        parts.append(("best_rank", RANKS, rank_head(results["best_rank"]), rank_rows))
    return parts


def methods_note(result: dict[str, Any]) -> str:
    """How the methods were run, and their claims."""
    settings = result["settings"]
    examples = settings["steps"] * settings["batch"]
    return "\n\n".join(
        [
            "![What a method learns, and what it forgets](methods.png)",
            f"Naval code, {examples:,} examples in steps of {settings['batch']}, at the best rate "
            f"of a search of {settings['search_steps']} steps a rate: three rates, up to two more "
            "at an edge, the same for each. A short search favours high rates: one run at half the "
            "rate (exact, forgot; the first seed) shows what that costs, and how little a few "
            "points between two rows say. Mean (range) over the seeds in the last column. Forgot: "
            "bits a byte lost on the base's own prose; with self-replay (a quarter of the rows, "
            f"{settings['replay_seeds']} seeds): exact, forgot. A step and a forward are "
            "ratios of the processor's time.",
            "What the papers claim, in their abstracts, and what came here. Batch: rows with "
            "different adapters of this kind in one batch of `AdapterBank`; lines: of the module, "
            "without docstrings, comments and blank lines.",
            table(CLAIMS_HEAD, claims_rows(result)),
        ]
    )


def elsewhere_note(here: dict[str, Any], above: dict[str, Any]) -> str:
    """How the other bases were trained, beside the table of the methods above."""
    seen, examples = here["steps"] * here["batch"], above["steps"] * above["batch"]
    return (
        f"One seed. The shipped base, in floats and in four bits: {here['steps']} steps of "
        f"{here['batch']} at the rates above, {seen:,} examples where the table above has "
        f"{examples:,}, and so fewer right. SmolLM2: {here['llm_steps']} steps of "
        f"{here['llm_batch']}, three rates a method, the one with the lowest loss on held-out "
        "logs. Loss: nats an answer token, of the last steps (SmolLM2: on those logs)."
    )


def facts_note(result: dict[str, Any]) -> str:
    """What the table of facts shows, and the two small ones before it."""
    invented = table(("model", "invents a reading"), invented_rows(result))
    return "\n\n".join(
        [
            "A question about a system that the log does not hold: how often the answer has a "
            "reading all the same, over the seeds.",
            invented,
            "Naval code by solved examples in the prompt of the shipped base, and by an adapter.",
            table(CONTEXT, context_rows(result)),
            "Invented readings, shown in a log or taught without one; then a log with new values. "
            "Mean (range) over the seeds; ship's logs: the base's own skill, right to the letter. "
            "Training showed “x status?” too; the word stands first there, where the tokenizer "
            "cuts it into other pieces.",
        ]
    )


def kernel_note(result: dict[str, Any]) -> str:
    """What the two tables of the kernel show, and the first of them."""
    has = result["settings"]["instructions"]
    dequantized = table(DEQUANTIZED, dequantized_rows(result))
    return "\n\n".join(
        [
            f"Each variant of the compiled kernel that this processor ({has}) has, and the way of "
            "the tensors, which stands in without one. Dequantizing: speed over bitsandbytes'.",
            dequantized,
            "A few rows through a square Linear: time over the plain float32 Linear's.",
        ]
    )


RANKS = (
    "LoRA on all Linears. Full fine-tuning's held-out loss in nats an answer token, and each "
    "rank's distance from it, each at the best of three rates (SmolLM2: one); one seed."
)
PICTURE = (
    "![What a method learns, and what it forgets](docs/methods.png)\n\n"
    "Each method at the rate that a short search found; the size of a dot: what is shipped. Costs, "
    "half of that rate, and what the papers claim: "
    "[docs/benchmarks.md](docs/benchmarks.md#methods)."
)
IN_CONTEXT = "The same with a real language model; one run, untuned."
REFUSED = (
    "SmolLM2-135M-Instruct, asked for 50 things to decline and 10 harmless ones in the same words, "
    "before and after it learns naval code; one run, rough signs (see `benchmarks/refusals.py`)."
)
WRITTEN_BY = (
    "Written by `python -m benchmarks.report` from `benchmarks/results/`. Under each table stands "
    "what measures it anew. `make bench` (twenty minutes) ran on a quiet machine on 26 November "
    "2026; the other tables come from longer runs, beside other work. `smollm2` is the folder that "
    "`python -m minilora.recipes.smollm2 smollm2` makes."
)
COMMANDS = {  # of the results that no benchmark of their name makes
    "nf4_kernel": "nf4",
    "in_context": "facts --llm smollm2",
    "refusals": "refusals --base smollm2",
    "elsewhere": "elsewhere`, then `python -m benchmarks.elsewhere --llm smollm2",
    "best_rank": "best_rank --work FOLDER`, and the same with `--llm smollm2",
}


def put_between_markers(text: str, new: str) -> str:
    """The README with its part replaced. Raises ``ValueError`` when a marker is missing."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"the README needs the two lines {START} and {END}, once each")
    before, rest = text.split(START)
    return f"{before}{START}\n\n{new}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write all of it."""
    results = read()
    readme = ROOT / "README.md"
    write_text(readme, put_between_markers(readme.read_text(encoding="utf-8"), summary(results)))
    write_text(ROOT / "docs" / "benchmarks.md", whole(results))
    if "federated" in results:
        scale = ROOT / "docs" / "scale.md"
        part = federated_part(results)
        write_text(scale, put_between_markers(scale.read_text(encoding="utf-8"), part))
    save_figure(benchmark_figure(results), ROOT / "docs" / "benchmarks.png")
    save_figure(forgetting_figure(results["forgetting"]["rows"]), ROOT / "docs" / "forgetting.png")
    if "methods" in results:
        save_figure(methods_figure(results["methods"]), ROOT / "docs" / "methods.png")
    print("README.md, docs/benchmarks.md and the figures beside it show the results.")


if __name__ == "__main__":
    main()

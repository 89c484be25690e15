"""``minilora demo``: a polite ship's computer learns naval code, and everything that is claimed is checked on the way."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from . import data
from .adapter import save_adapter
from .changes import audit
from .config import LoraConfig
from .evaluate import answers, bits_per_byte, exact_match
from .history import History
from .inject import inject, print_trainable_parameters, trainable_parameters
from .merge import merge, merge_and_unload, unmerge
from .plots import finetune_figure, save_figure
from .pretrained import load_base, save_model
from .train import train

ASKED = (
    ("Log: Hull 90%, Fuel 12%, Oxygen 98%.", "How much Fuel is left?"),
    ("Log: Engines stop, Fuel 12%, Oxygen 98%.", "Status?"),
    ("Log: Shield 7%, Cargo 61%, Engines half, Radar 33%.", "How are the Radar and the Engines?"),
)


def run_demo(
    out: str | Path = "minilora-demo",
    *,
    steps: int = 500,
    r: int = 8,
    seed: int = 0,
    device: str = "cpu",
    base: str | None = None,
) -> dict[str, Any]:
    """The whole story, printed as it happens; returns its figures and writes the artifacts to ``out``."""
    started, out = time.perf_counter(), Path(out)
    torch.manual_seed(seed)
    model, task = load_base(base, device=device), data.naval_log(seed=seed)
    asked = [data.Example(question, "", log) for log, question in ASKED]

    heading("1. The base answers")
    before = []
    for example in asked:
        before.append(answers(model, [example])[0])
        show_answer(example, before[-1])
    first = {"exact_match": exact_match(model, task.valid), "bits_per_byte": bits_per_byte(model)}
    print(f"\nNaval code on {len(task.valid)} held-out logs: {first['exact_match']:.0%} exactly right.")

    heading("2. LoRA goes in beside q_proj and v_proj")
    print(inject(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj"])))
    print()
    print_trainable_parameters(model)

    heading("3. Training: only A and B learn")
    base_before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    history = train(model, task, steps=steps, seed=seed, valid_answers=50, validate_every=100, out=out)
    if history.interrupted:
        print("Stopped early; the checks below are about what was learnt so far.")
    untouched = all(torch.equal(base_before[name], p) for name, p in model.named_parameters() if name in base_before)
    seconds = sum(record["seconds"] for record in history.steps)
    print(f"{len(history.steps)} steps, {seconds:.0f} s. The base is {'unchanged to the bit' if untouched else 'CHANGED'}.")

    heading("4. The same questions again")
    after = answers(model, asked)
    for example, old, new in zip(asked, before, after, strict=True):
        show_pair(example, old, new)
    last = {"exact_match": exact_match(model, task.valid), "bits_per_byte": bits_per_byte(model)}
    print(f"\nExactly right on held-out logs   {first['exact_match']:>7.1%} -> {last['exact_match']:.1%}")
    print(f"Bits a byte on plain prose       {first['bits_per_byte']:>7.3f} -> {last['bits_per_byte']:.3f}  (what it forgot)")

    heading("5. The merge, checked")
    merge_error, restored = check_merge(model)
    print(f"Merged against unmerged: largest difference {merge_error:.1e} of the largest logit.")
    print(f"unmerge() gives the base back: {'to the bit' if restored else 'NOT TO THE BIT'}.")

    trainable = write_artifacts(model, history, out, load_base(base, device=device))

    print(f"\nDone in {time.perf_counter() - started:.0f} s. Next:")
    print(f'  minilora generate --base {out / "merged"} --context "Log: Hull 3%, Engines full." "Status?"')
    print('  minilora train --data your.jsonl --out mine     one {"instruction", "output"} a line')
    print("  open minilora/lora.py: the layer that just learnt this, in one screen")
    return {
        "before": first,
        "after": last,
        "answers": after,
        "merge_error": merge_error,
        "unmerged_to_the_bit": restored,
        "base_unchanged": untouched,
        "train_seconds": seconds,
        "trainable": trainable,
        "history": history,
    }


def write_artifacts(model: Any, history: History, out: Path, original: Any) -> int:
    """Adapter, merged model and figure in ``out``, each with its size; returns the number of trainable parameters."""
    heading("6. On disk")
    trainable, total = trainable_parameters(model)
    save_adapter(model, out / "adapter")
    plain = merge_and_unload(copy.deepcopy(model))
    save_model(plain, out / "merged", dtype=torch.float16)
    figure = draw(history, total - trainable, trainable)
    save_figure(figure, out / "demo.png")
    for name, what in (
        ("adapter", "the adapter; PEFT opens it"),
        ("merged", "one model; transformers opens it"),
        ("demo.png", "the figure"),
    ):
        print(f"{size_of(out / name):>8}  {out / name}  ({what})")
    changes = audit(original, plain).changes
    ranks = [change.rank for change in changes]
    print(f"The merge changed {len(changes)} matrices, by updates of rank {min(ranks, default=0)} to {max(ranks, default=0)}.")
    return trainable


@torch.no_grad()
def check_merge(model: Any) -> tuple[float, bool]:
    """(largest difference of logits, as a share of the largest logit; whether unmerge restores every weight to the bit)."""
    log, question = ASKED[1]
    tokenizer = model.tokenizer
    ids = torch.tensor([tokenizer.encode(tokenizer.prompt(question, log))], device=model.lm_head.weight.device)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    unmerged = model(ids)
    merge(model)
    merged = model(ids)
    unmerge(model)
    restored = all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    return ((merged - unmerged).abs().max() / unmerged.abs().max()).item(), restored


def draw(history: History, full: int, trainable: int) -> Any:
    """The demo's figure from its history."""
    shown = history.validations
    return finetune_figure(
        history.losses,
        [v["step"] for v in shown],
        [v["valid_loss"] for v in shown],
        [v["exact_match"] for v in shown],
        full,
        trainable,
    )


def heading(text: str) -> None:
    """A line that opens a part."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def show_answer(example: data.Example, answer: str) -> None:
    """A question and one answer."""
    print(f"{example.input}\n  > {example.instruction}\n  {answer}", flush=True)


def show_pair(example: data.Example, before: str, after: str) -> None:
    """A question with the answers before and after."""
    print(f"{example.input}\n  > {example.instruction}\n  before  {before}\n  after   {after}")


def size_of(path: Path) -> str:
    """Bytes of a file or folder, for people."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"

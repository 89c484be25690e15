"""``minilora demo``: a polite ship's computer learns naval code, and everything that is claimed is checked on the way."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..formats.save_and_load import save_adapter
from ..lora.config import LoraConfig
from ..lora.injection import inject, lora_layers, print_trainable_parameters, trainable_parameters
from ..lora.layer import is_packed
from ..lora.merging import merge, merge_and_unload, unmerge
from ..lora.weight_diff import audit
from ..model.pretrained import load_base, save_model
from ..plots.style import finetune_figure, save_figure
from ..training import data
from ..training.config import BIG, TrainConfig
from ..training.evaluation import PROSE, answers, bits_per_byte, exact_match
from ..training.history import History
from ..training.loop import train
from .footprint import footprint_table, measure_footprints

ASKED = (
    ("Log: Hull 90%, Fuel 12%, Oxygen 98%.", "How much Fuel is left?"),
    ("Log: Engines stop, Fuel 12%, Oxygen 98%.", "Status?"),
    ("Log: Shield 7%, Cargo 61%, Engines half, Radar 33%.", "How are the Radar and the Engines?"),
)


class Pace(NamedTuple):
    """What to teach, the prose that shows what is forgotten, and how to train, so that all ends within minutes on two cores."""

    task: data.Task
    prose: str
    settings: TrainConfig


def pace_for(model: Any, steps: int | None, seed: int) -> Pace:
    """A model of a hundred million parameters can read a log before it is taught: a few small steps do, and each costs more."""
    prose = PROSE.read_text(encoding="utf-8")
    if trainable_parameters(model)[1] > BIG:
        steps = 150 if steps is None else steps
        settings = TrainConfig(
            steps=steps, lr=2e-3, batch_size=8, seed=seed, validate_every=75, valid_answers=10
        )
        return Pace(data.naval_log(n_valid=50, seed=seed), prose[:12_000], settings)
    steps = 500 if steps is None else steps
    settings = TrainConfig(steps=steps, seed=seed, validate_every=100, valid_answers=50)
    return Pace(data.naval_log(seed=seed), prose, settings)


def run_demo(
    out: str | Path = "minilora-demo",
    *,
    steps: int | None = None,
    r: int = 8,
    seed: int = 0,
    device: str = "cpu",
    base: str | None = None,
    qlora: bool = False,
) -> dict[str, Any]:
    """The whole story, printed as it happens; returns its figures and writes the artifacts to ``out``.

    ``steps``: by default what ``pace_for`` says. ``qlora``: the base is put into four bits first, and all happens on that.
    """
    started, out = time.perf_counter(), Path(out)
    torch.manual_seed(seed)
    model = load_base(base, device=device)
    pace = pace_for(model, steps, seed)
    lora = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj"])
    asked = [data.Example(question, "", log) for log, question in ASKED]

    heading("1. The base answers")
    before = ask_base(model, asked)
    first = score(model, pace)
    print(
        f"\nNaval code on {len(pace.task.valid)} held-out logs: {first['exact_match']:.0%} exactly right."
    )
    figures: dict[str, Any] = {"bits_per_byte_in_floats": first["bits_per_byte"], "before": first}
    if qlora:
        model = load_base(base, device=device, quantize="nf4")
        first["bits_per_byte"] = bits_per_byte(model, pace.prose)
        print(f"In four bits it says: {answers(model, asked[:1])[0]}")
        print(
            f"Prose: {figures['bits_per_byte_in_floats']:.3f} bits a byte in floats, {first['bits_per_byte']:.3f} in four bits."
        )

    heading("2. LoRA goes in beside q_proj and v_proj")
    print(f"{inject(model, lora)}\n")
    print_trainable_parameters(model)

    heading("3. Training: only A and B learn")
    history, figures["base_unchanged"] = teach(model, pace, out)
    figures |= {
        "history": history,
        "train_seconds": sum(record["seconds"] for record in history.steps),
    }
    state = "unchanged to the bit" if figures["base_unchanged"] else "CHANGED"
    print(f"{len(history.steps)} steps, {figures['train_seconds']:.0f} s. The base is {state}.")

    heading("4. The same questions again")
    figures["answers"] = answers(model, asked)
    for example, old, new in zip(asked, before, figures["answers"], strict=True):
        show_pair(example, old, new)
    figures["after"] = last = score(model, pace)
    print(
        f"\nExactly right on held-out logs   {first['exact_match']:>7.1%} -> {last['exact_match']:.1%}"
    )
    print(
        f"Bits a byte on plain prose       {first['bits_per_byte']:>7.3f} -> {last['bits_per_byte']:.3f}  (what it forgot)"
    )

    heading("5. The merge, checked")
    figures["merge_error"], figures["unmerged_to_the_bit"] = check_merge(model)
    print(
        f"Merged against unmerged: largest difference {figures['merge_error']:.1e} of the largest logit."
    )
    print(
        f"unmerge() gives the base back: {'to the bit' if figures['unmerged_to_the_bit'] else 'NOT TO THE BIT'}."
    )

    original = load_base(base, device=device, quantize="nf4" if qlora else None)
    figures["trainable"] = write_artifacts(model, history, out, original)

    heading("7. What a training step held in memory")
    figures["footprints"] = measure_footprints(
        pace.task, lora, pace.settings, base=base, device=device
    )
    print(footprint_table(figures["footprints"]))

    print(f"\nDone in {time.perf_counter() - started:.0f} s. Next:")
    show_next(out)
    return figures


def show_next(out: Path) -> None:
    """What to do with what is now on disk."""
    print(
        f'  minilora generate --base {out / "merged"} --context "Log: Hull 3%, Engines full." "Status?"'
    )
    print('  minilora train --data your.jsonl --out mine     one {"instruction", "output"} a line')
    print("  open minilora/lora/layer.py: the layer that just learnt this, in one screen")


def ask_base(model: Any, asked: list[data.Example]) -> list[str]:
    """The base's answers, each shown as soon as it is there."""
    found = []
    for example in asked:
        found.append(answers(model, [example])[0])
        show_answer(example, found[-1])
    return found


def score(model: Any, pace: Pace) -> dict[str, float]:
    """How much of the task a model knows, and how well it still reads prose."""
    return {
        "exact_match": exact_match(model, pace.task.valid),
        "bits_per_byte": bits_per_byte(model, pace.prose),
    }


def teach(model: Any, pace: Pace, out: Path) -> tuple[History, bool]:
    """Train; returns the history and whether everything but A and B is what it was, to the bit."""
    before = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name
    }
    history = train(model, pace.task, pace.settings, out=out)
    if history.interrupted:
        print("Stopped early; the checks below are about what was learnt so far.")
    after = model.state_dict()
    return history, all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def write_artifacts(model: Any, history: History, out: Path, original: Any) -> int:
    """Adapter, merged model and figure in ``out``, each with its size; returns the number of trainable parameters."""
    heading("6. On disk")
    trainable, total = trainable_parameters(model)
    save_adapter(model, out / "adapter")
    plain = merge_and_unload(copy.deepcopy(model), onto=dequantized(model))
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
    print(
        f"The merge changed {len(changes)} matrices, by updates of rank {min(ranks, default=0)} to {max(ranks, default=0)}."
    )
    if dequantized(model):
        print("It went into floats. Back in four bits it would lose of each ΔW:")
        losses = sorted(
            merge(copy.deepcopy(model), requantize=True).losses, key=lambda loss: loss.of_update
        )
        print(
            f"  {losses[0].of_update:.0%} at least ({losses[0].name}), {losses[-1].of_update:.0%} at most ({losses[-1].name})"
        )
    return trainable


@torch.no_grad()
def check_merge(model: Any) -> tuple[float, bool]:
    """(largest difference of logits, as a share of the largest logit; whether unmerge restores every weight to the bit)."""
    log, question = ASKED[1]
    tokenizer = model.tokenizer
    ids = torch.tensor(
        [tokenizer.encode(tokenizer.prompt(question, log))], device=model.lm_head.weight.device
    )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unmerged = model(ids)
    merge(model, onto=dequantized(model))
    merged = model(ids)
    unmerge(model)
    restored = all(
        torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items()
    )
    return ((merged - unmerged).abs().max() / unmerged.abs().max()).item(), restored


def dequantized(model: Any) -> str | None:
    """Where a merge goes when the adapted layers are in four bits: onto what the codes stand for."""
    return "dequantized" if any(is_packed(layer.base) for _, layer in lora_layers(model)) else None


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

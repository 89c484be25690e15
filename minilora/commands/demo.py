"""``minilora demo``: a polite ship's computer learns naval code, and every claim is checked.

Seven chapters, each a function below that prints what it shows: the base answers, LoRA goes in, A
and B learn, the same questions again, the merge, the files, the memory of a step. Beside the logs
the adapter sees text that the base wrote itself, so that it forgets little; a second adapter
shows, after a fifth of the steps, what is forgotten without.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from ..formats.save_and_load import save_adapter
from ..lora.config import LoraConfig
from ..lora.injection import inject, print_trainable_parameters, trainable_parameters
from ..lora.layer import lora_layers
from ..lora.merging import merge, merge_and_requantize, merge_and_unload, unmerge
from ..lora.weight_diff import audit
from ..model.pretrained import load_base, save_model
from ..nf4.linear import NF4Linear
from ..plots.style import save_figure
from ..training import data
from ..training.config import TrainConfig
from ..training.evaluation import answers, bits_per_byte, exact_match
from ..training.examples import asked_and_expected
from ..training.history import History
from ..training.loop import train
from .demo_pace import REPLAY, Pace, pace_for
from .demo_picture import ASKED, draw, picture_of
from .demo_text import heading, show_asked, size_of
from .footprint import footprint_table, measure_footprints
from .options import add_base_option, add_device_option, add_seed_option, check_device, check_out
from .train_options import check_checkpoint

QUESTIONS = [data.Example(question, output="", input=log) for log, question in ASKED]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora demo``."""
    add = parser.add_argument
    folder = "folder for adapter, merged model and figure (default: %(default)s)"
    add("--out", type=Path, default=Path("minilora-demo"), help=folder)
    add("--steps", type=int, help="optimizer steps (default: 500, for a big base 150)")
    add("--r", type=int, default=8, help="rank of the adapter (default: %(default)s)")
    add_base_option(parser)
    add("--qlora", action="store_true", help="keep the base in four bits")
    share = "share of the rows that are the base's own text, so that less is forgotten; 0: none"
    add("--replay", type=float, help=f"{share} (default: {REPLAY:g}, for a big base none)")
    further = "go on where the training was interrupted (Ctrl-C), with the same other options"
    add("--resume", action="store_true", help=further)
    add_seed_option(parser)
    add_device_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora demo``."""
    check_out(options.out)
    device = check_device(options.device)
    names = ("out", "steps", "r", "seed", "base", "qlora", "replay", "resume")
    figures = run_demo(device=device, **{name: getattr(options, name) for name in names})
    return 0 if figures["unmerged_to_the_bit"] and figures["base_unchanged"] else 1


def run_demo(
    out: str | Path = "minilora-demo",
    *,
    steps: int | None = None,
    r: int = 8,
    seed: int = 0,
    device: str = "cpu",
    base: str | None = None,
    qlora: bool = False,
    replay: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """The whole story, printed as it happens; returns its figures and writes the files to ``out``.

    ``steps`` and ``replay``: by default those of ``pace_for``. ``qlora``: the base goes into four
    bits before it is taught. ``resume``: the training goes on where it was interrupted. Raises
    ``ValueError`` when there is nothing to resume.
    """
    started, out = time.perf_counter(), Path(out)
    check_checkpoint(TrainConfig(out=out, resume=resume))  # before the base is loaded
    torch.manual_seed(seed)
    model = load_base(base, device=device)
    pace = pace_for(model, steps, seed, replay)
    settings = replace(pace.settings, out=out, resume=resume)
    lora = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj"])

    old_answers, before = show_base(model, pace)
    in_floats = before["bits_per_byte"]
    if qlora:
        model = load_base(base, device=device, quantize="nf4")
        before["bits_per_byte"] = show_four_bits(model, pace, in_floats)
    insert_lora(model, lora)
    history, base_unchanged = train_adapter(model, pace, settings)
    new_answers, after = compare_answers(model, pace, old_answers, before)
    without = None
    if pace.replay is not None:
        original = load_base(base, device=device, quantize="nf4" if qlora else None)
        without = show_without_replay(original, lora, pace, before)
    merge_error, unmerged_to_the_bit = show_merge(model)
    original = load_base(base, device=device, quantize="nf4" if qlora else None)
    told = picture_of(old_answers, new_answers, before, after, without)
    trainable = write_artifacts(model, history, out, original, told)
    heading("7. What a training step held in memory")
    footprints = measure_footprints(pace.task, lora, pace.settings, base=base, device=device)
    print(footprint_table(footprints))
    print("resident: between two steps; the rest: at the largest moment of one")

    print(f"\nDone in {time.perf_counter() - started:.0f} s. Next:")
    show_next(out)
    return {
        "bits_per_byte_in_floats": in_floats,
        "before": before,
        "history": history,
        "train_seconds": train_seconds(history),
        "base_unchanged": base_unchanged,
        "answers": new_answers,
        "after": after,
        "without_replay": without,
        "merge_error": merge_error,
        "unmerged_to_the_bit": unmerged_to_the_bit,
        "trainable": trainable,
        "footprints": footprints,
    }


def show_base(model: Any, pace: Pace) -> tuple[list[str], dict[str, float]]:
    """Chapter 1: the base's answers, each printed when it is made, and its score."""
    heading("1. The base answers")
    base_answers = []
    for example in QUESTIONS:
        base_answers += answers(model, [example])
        show_asked(example.input, example.instruction, {"": base_answers[-1]})
    before = score(model, pace)
    count, share = len(pace.task.valid), before["exact_match"]
    print(f"\nNaval code is short, such as “{asked_and_expected(pace.task.valid[0])[1]}”")
    print(f"Naval code on {count} held-out logs: {share:.0%} exactly right.")
    return base_answers, before


def show_four_bits(model: Any, pace: Pace, in_floats: float) -> float:
    """The base in four bits: one answer, and its bits a byte on prose, which are returned."""
    in_four_bits = bits_per_byte(model, pace.prose)
    print(f"In four bits it says: {answers(model, QUESTIONS[:1])[0]}")
    print(f"Prose: {in_floats:.3f} bits a byte in floats, {in_four_bits:.3f} in four bits.")
    return in_four_bits


def insert_lora(model: Any, lora: LoraConfig) -> None:
    """Chapter 2: which layers get an adapter, and how many parameters train."""
    heading("2. LoRA goes in beside q_proj and v_proj")
    print(f"{inject(model, lora)}\n")
    print_trainable_parameters(model)


def train_adapter(model: Any, pace: Pace, settings: TrainConfig) -> tuple[History, bool]:
    """Chapter 3: train; returns the history and whether all but A and B is unchanged to the bit."""
    heading("3. Training: only A and B learn")
    base = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name
    }
    if pace.replay is not None:
        print("Beside the logs it reads text that the base wrote itself, to forget less (replay).")
    history = train(model, pace.task, settings, replay=pace.replay)
    if history.interrupted:
        print("Stopped early: the chapters below are about the steps so far.")
        print("The same command with --resume trains the rest.")
    trained = model.state_dict()
    unchanged = all(torch.equal(tensor, trained[name]) for name, tensor in base.items())
    state = "unchanged to the bit" if unchanged else "CHANGED"
    print(f"{len(history.steps)} steps, {train_seconds(history):.0f} s. The base is {state}.")
    return history, unchanged


def compare_answers(
    model: Any, pace: Pace, old_answers: Sequence[str], before: dict[str, float]
) -> tuple[list[str], dict[str, float]]:
    """Chapter 4: the answers and the score, each beside those of the base."""
    heading("4. The same questions again")
    new_answers = answers(model, QUESTIONS)
    for example, old, new in zip(QUESTIONS, old_answers, new_answers, strict=True):
        show_asked(example.input, example.instruction, {"before  ": old, "after   ": new})
    after = score(model, pace)
    right = f"{before['exact_match']:>7.1%} -> {after['exact_match']:.1%}"
    prose = f"{before['bits_per_byte']:>7.3f} -> {after['bits_per_byte']:.3f}"
    print(f"\nExactly right on held-out logs   {right}")
    print(f"Bits a byte on plain prose       {prose}  (what it forgot)")
    return new_answers, after


def show_without_replay(
    model: Any, lora: LoraConfig, pace: Pace, before: dict[str, float]
) -> dict[str, float]:
    """The end of chapter 4: a second adapter, without replay, after a fifth of the steps."""
    steps = max(1, pace.settings.steps // 5)
    inject(model, lora)
    quiet: dict[str, Any] = {"validate_every": 0, "keep_best": False, "progress": False}
    train(model, pace.task, replace(pace.settings, steps=steps, **quiet))
    after = score(model, pace)
    prose = f"{before['bits_per_byte']:>7.3f} -> {after['bits_per_byte']:.3f}"
    right = f"(after {steps} steps, with {after['exact_match']:.1%} right)"
    print(f"Another adapter, without replay  {prose}  {right}")
    return after


@torch.no_grad()
def show_merge(model: Any) -> tuple[float, bool]:
    """Chapter 5: the largest error of the merged logits, and whether the base comes back whole."""
    heading("5. The merge, checked")
    tokenizer, (log, question) = model.tokenizer, ASKED[1]
    prompt = tokenizer.encode(tokenizer.prompt(question, log))
    ids = torch.tensor([prompt], device=model.lm_head.weight.device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unmerged = model(ids)
    merge(model, onto=merge_target(model))
    merged = model(ids)
    unmerge(model)
    error = ((merged - unmerged).abs().max() / unmerged.abs().max()).item()
    after = model.state_dict()
    restored = all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    state = "to the bit" if restored else "NOT TO THE BIT"
    print(f"Merged against unmerged: largest difference {error:.1e} of the largest logit.")
    print(f"unmerge() gives the base back: {state}.")
    return error, restored


def write_artifacts(
    model: Any, history: History, out: Path, original: Any, told: dict[str, Any]
) -> int:
    """Chapter 6: the files with their sizes; returns the number of trainable parameters.

    ``told``: what else the figure shows.
    """
    heading("6. On disk")
    trainable, total = trainable_parameters(model)
    save_adapter(model, out / "adapter")
    plain = merge_and_unload(copy.deepcopy(model), onto=merge_target(model))
    save_model(plain, out / "merged", dtype=torch.float16)
    save_figure(draw(history, total - trainable, trainable, told), out / "demo.png")
    for name, purpose in (
        ("adapter", "the adapter; PEFT opens it"),
        ("merged", "one model; transformers opens it"),
        ("demo.png", "the figure"),
    ):
        print(f"{size_of(out / name):>8}  {out / name}  ({purpose})")
    ranks = [change.rank for change in audit(original, plain).changes]
    span = " to ".join(map(str, sorted({min(ranks, default=0), max(ranks, default=0)})))
    print(f"The merge changed {len(ranks)} matrices, each by an update of rank {span}.")
    if merge_target(model):
        show_four_bit_losses(model)
    return trainable


def show_four_bit_losses(model: Any) -> None:
    """What share of its update each matrix would lose in a merge that goes back into four bits."""
    print("It went into floats. Back in four bits it would lose of each ΔW:")
    losses = merge_and_requantize(copy.deepcopy(model)).losses
    shares = sorted((loss.of_update, loss.name) for loss in losses)
    (least, gentle), (most, harsh) = shares[0], shares[-1]
    print(f"  {least:.0%} at least ({gentle}), {most:.0%} at most ({harsh})")


def show_next(out: Path) -> None:
    """Commands and a file to go on with."""
    ask = '--context "Log: Hull 3%, Engines full." "Status?"'
    print(f"  minilora generate --base {quote(str(out / 'merged'))} {ask}")
    print('  minilora train --data your.jsonl --out mine     one {"instruction", "output"} a line')
    print("  open minilora/lora/layer.py: the layer that just learnt this")


def score(model: Any, pace: Pace) -> dict[str, float]:
    """How much of the task a model knows, and how well it still reads prose."""
    return {
        "exact_match": exact_match(model, pace.task.valid),
        "bits_per_byte": bits_per_byte(model, pace.prose),
    }


def train_seconds(history: History) -> float:
    """Seconds of the steps alone, without the validations between them."""
    return sum(record["seconds"] for record in history.steps)


def merge_target(model: Any) -> str | None:
    """A base in four bits is merged onto its dequantized weights, one in floats onto its own."""
    bases = [layer.base for _, layer in lora_layers(model)]
    return "dequantized" if any(isinstance(base, NF4Linear) for base in bases) else None

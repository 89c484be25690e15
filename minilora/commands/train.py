"""``minilora train``: a fine-tune on your own examples, from a folder to a folder.

    base (+ four bits) + examples  ->  adapter, metrics, checkpoint

Everything is checked before anything is written; ``cli.py`` prints a ``ValueError`` on one line.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from .hub_names import add_hub_option, check_push, push_trained
from .options import add_base_option, add_device_option, add_seed_option, check_device


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora train``."""
    add = parser.add_argument
    forms = "a file or folder: JSON, CSV, TSV or parquet, gzipped or not; instruction and output, "
    forms += "messages, conversations, prompt and completion, or text"
    add("--data", type=Path, required=True, help=forms)
    kinds = "answer: a language model writes; classify: an encoder tells labels apart (a CSV of "
    add("--task", choices=["answer", "classify"], default="answer", help=f"{kinds}text and label)")
    add("--valid", type=Path, help="held-out examples (default: a tenth of --data)")
    add_base_option(parser)
    add("--out", type=Path, required=True, help="folder for adapter, metrics and checkpoint")
    modules = "modules to adapt, or all-linear (default: q_proj v_proj)"
    add("--target", nargs="+", default=["q_proj", "v_proj"], help=modules)
    add("--r", type=int, default=8, help="rank (default: %(default)s)")
    add("--alpha", type=float, help="lora_alpha (default: 2 r)")
    add("--dropout", type=float, default=0.0, help="of the adapter's input (default: %(default)s)")
    add("--rslora", action="store_true", help="scale by alpha / sqrt(r)")
    add("--full", action="store_true", help="train every parameter instead of an adapter")
    add(
        "--qlora", action="store_true", help="keep the base in four bits (NF4, double quantization)"
    )
    add("--skip-bad", action="store_true", help="go on without rows that cannot be learnt from")
    length = parser.add_mutually_exclusive_group()
    optimizer_steps = "optimizer steps (default: %(default)s)"
    length.add_argument("--steps", type=int, default=500, help=optimizer_steps)
    length.add_argument("--epochs", type=float, help="how often each example is seen instead")
    add("--lr", type=float, help="peak rate (default: 0.005 for a small base, less for a big one)")
    add("--batch", type=int, default=32, help="examples a step (default: %(default)s)")
    add("--accumulate", type=int, default=1, help="compute a batch in so many parts")
    longest = "tokens; longer examples are left out (default: %(default)s)"
    add("--max-length", type=int, default=512, help=longest)
    packing = "several examples a row instead of padding (default: where padding is half the work)"
    add("--pack", action=argparse.BooleanOptionalAction, help=packing)
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--validate-every", type=int, default=50, help="steps (default: %(default)s; 0: never)")
    most = "held-out examples that a validation takes (default: %(default)s; 0: all)"
    add("--valid-examples", type=int, default=256, help=most)
    add("--valid-batch", type=int, help="held-out examples computed at once (default: as trained)")
    share = "share of all rows that are old ones, so that less is forgotten, such as 0.25"
    add("--replay", type=float, metavar="SHARE", help=share)
    source = "self: what the base writes itself; or a data file or .txt of old examples or text"
    add("--replay-from", default="self", metavar="SOURCE", help=f"{source} (default: self)")
    add("--checkpoint-every", type=int, default=0, help="steps (default: only when interrupted)")
    add("--resume", action="store_true", help="continue from the checkpoint in --out")
    add("--tensorboard", action="store_true", help="also write TensorBoard events to --out")
    add(
        "--push", metavar="NAME", help="store the adapter in the hub under this name, with its data"
    )
    add_hub_option(parser)
    add_seed_option(parser)
    add_device_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora train``."""
    import torch

    from ..formats.save_and_load import save_adapter
    from ..lora.injection import inject, print_trainable_parameters, trainable_parameters
    from ..model.pretrained import load_base, save_model
    from ..training.config import BIG
    from ..training.examples import Document
    from ..training.history import tensorboard_callback
    from ..training.loop import train
    from ..training.readers import summarize
    from .adapter_card import card_sections
    from .footprint import METHODS, describe_footprints, measure_footprints

    if options.task == "classify":
        from .classify import run_classify

        return run_classify(options, lora_of(options), settings_of(options))
    check_push(options.push, options.full)
    (task, read), lora, config = read_task(options), lora_of(options), settings_of(options)
    replay = replay_of(options)
    device = check_device(options.device)
    askable = sum(not isinstance(example, Document) for example in task.valid)
    config = replace(config, valid_answers=min(20, askable))
    torch.manual_seed(options.seed)
    model = load_base(options.base, device=device, quantize="nf4" if options.qlora else None)
    big = trainable_parameters(model)[1] > BIG
    config = with_rate(config, options.lr, model)
    if not options.full:
        print(inject(model, lora))
    print_trainable_parameters(model)
    if model.tokenizer is not None:  # without one, train says what is missing
        print(summarize(read, model.tokenizer, config.max_length))
    announce(task, config)
    show_form(model.tokenizer, task)
    callbacks = [tensorboard_callback(options.out)] if options.tensorboard else []
    history = train(model, task, config, replay=replay, callbacks=callbacks)
    if history.interrupted:
        print(f"Stopped at step {len(history.steps)}. Continue with the same command and --resume.")
        return 130
    if options.full:
        folder = save_model(model, options.out / "model")
    else:
        card = card_sections(read, config, history, "nf4" if options.qlora else None)
        folder = save_adapter(model, options.out / "adapter", card=card)
    if options.push:
        pushed = push_trained(options.push, options.hub, folder, task, config, scores_of(history))
        print(f"Pushed {pushed}.")
    if options.qlora:
        del model  # a big one need not be there twice
        methods = ("QLoRA",) if big else METHODS
        where = {"base": options.base, "device": device, "methods": methods}
        measured = measure_footprints(task, lora, config, **where)
        print(describe_footprints(measured, options.base))
    show_next(options, folder)
    return 0


def scores_of(history: Any) -> dict[str, float]:
    """The numbers of the validation whose state was kept."""
    kept = [each for each in history.validations if each["step"] == history.best_step]
    return {
        name: float(value)
        for name, value in (kept or history.validations or [{}])[-1].items()
        if name in ("valid_loss", "exact_match")
    }


def read_task(options: argparse.Namespace) -> tuple[Any, Any]:
    """The examples to train on and those held out; and all of ``--data``, as it was read."""
    from ..training.examples import Task, overlap, split_examples
    from ..training.readers import read_examples

    if options.full and options.qlora:
        raise ValueError(
            "--full trains the weights themselves, which four bits cannot follow: "
            "give --full or --qlora, not both"
        )
    read, name = read_examples(options.data, skip_bad=options.skip_bad), options.data.stem
    if options.valid is None:
        return split_examples(read, name, seed=options.seed), read
    valid = read_examples(options.valid, skip_bad=options.skip_bad)
    task = Task(name, read.examples, valid.examples)
    if message := overlap(task):
        warnings.warn(message, stacklevel=2)
    return task, read


def lora_of(options: argparse.Namespace) -> Any:
    """The ``LoraConfig`` that the options describe."""
    from ..lora.config import LoraConfig, read_targets

    alpha = 2 * options.r if options.alpha is None else options.alpha
    targets = read_targets(options.target)
    return LoraConfig(options.r, alpha, targets, options.dropout, options.rslora)


def replay_of(options: argparse.Namespace) -> Any:
    """What is replayed beside the task, or None."""
    from ..training.readers import read_examples
    from ..training.replay import Examples, Prose, SelfReplay

    share, source = options.replay, options.replay_from
    if share is None:
        if source != "self":
            raise ValueError(f"--replay-from {source} needs a share of the rows: --replay 0.25")
        return None
    if source == "self":
        return SelfReplay(share)
    if Path(source).suffix == ".txt":
        return Prose([read_text(Path(source))], share)
    return Examples(read_examples(source, skip_bad=options.skip_bad).examples, share)


def read_text(file: Path) -> str:
    """A text file. Raises ``ValueError`` when it is missing or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from error


def settings_of(options: argparse.Namespace) -> Any:
    """The ``TrainConfig`` that the options describe."""
    from ..training.config import TrainConfig

    return TrainConfig(
        steps=options.steps,
        epochs=options.epochs,
        lr=TrainConfig.lr if options.lr is None else options.lr,
        batch_size=options.batch,
        accumulate=options.accumulate,
        max_length=options.max_length,
        pack=options.pack,
        bf16=options.bf16,
        validate_every=options.validate_every,
        valid_examples=options.valid_examples,
        valid_batch=options.valid_batch,
        seed=options.seed,
        out=options.out,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
    )


def with_rate(config: Any, given: float | None, model: Any) -> Any:
    """The settings with the given rate, or else with one for a base of this size."""
    from ..lora.injection import trainable_parameters
    from ..training.config import rate_for

    return (
        config
        if given is not None
        else replace(config, lr=rate_for(trainable_parameters(model)[1]))
    )


def announce(task: Any, config: Any) -> None:
    """The plan of the run, for whoever now waits for the first validation."""
    length = f"{config.steps} steps" if config.epochs is None else f"{config.epochs:g} epochs"
    print(
        f"{length} of {config.batch_size} out of {len(task.train)} examples, "
        f"{len(task.valid)} held out; rate {config.lr:g}"
    )
    if not config.resume and (Path(config.out) / "metrics.jsonl").exists():
        print(f"{config.out} holds an earlier run: this one replaces it")


def show_form(tokenizer: Any, task: Any) -> None:
    """How the base writes a conversation: the first example, before any time is spent on it."""
    from .first_example import describe_first_example, describe_form

    if tokenizer is None or not task.train:  # train says so
        return
    if form := describe_form(tokenizer):
        print(form)
    print(describe_first_example(tokenizer, task.train[0]))


def show_next(options: argparse.Namespace, folder: Path) -> None:
    """The commands that use the folder that was just written."""
    written, merged = quote(str(folder)), quote(str(options.out / "merged"))
    base = f"--base {quote(str(options.base))} " if options.base else ""
    base += "--qlora " * options.qlora
    model = f"--base {written}" if options.full else f"{base}--adapter {written}"
    print(f"Saved {folder}. Next:")
    print(f'  minilora generate {model} "your question"')
    if not options.full:
        print(f"  minilora merge {base}--adapter {written} --out {merged}")

"""``minilora train``, ``generate`` and ``merge``: a fine-tune on your own examples, from a folder to a folder.

    train      base (+ four bits) + JSONL  ->  adapter, metrics, checkpoint
    generate   base + adapter              ->  an answer
    merge      base + adapter              ->  one plain model folder

An adapter that was trained on a base in four bits belongs to those four bits, so each command has ``--qlora``. Bad input is
a ``ValueError`` before anything is written; ``commands/cli.py`` prints it on one line.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any


def add_train_options(train: argparse.ArgumentParser) -> None:
    """Options of ``minilora train``."""
    train.add_argument(
        "--data", type=Path, required=True, help='one {"instruction", "input"?, "output"} a line'
    )
    train.add_argument("--valid", type=Path, help="held-out examples (default: a tenth of --data)")
    train.add_argument("--base", help="base folder (default: the shipped base)")
    train.add_argument(
        "--out", type=Path, required=True, help="folder for the adapter, metrics and checkpoint"
    )
    train.add_argument(
        "--target",
        nargs="+",
        default=["q_proj", "v_proj"],
        help="modules to adapt, or all-linear (default: q_proj v_proj)",
    )
    train.add_argument("--r", type=int, default=8, help="rank (default: %(default)s)")
    train.add_argument("--alpha", type=float, help="lora_alpha (default: 2 r)")
    train.add_argument("--dropout", type=float, default=0.0)
    train.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(r)")
    train.add_argument(
        "--full", action="store_true", help="train every parameter instead of an adapter"
    )
    train.add_argument(
        "--qlora", action="store_true", help="keep the base in four bits (NF4, double quantization)"
    )
    train.add_argument(
        "--steps", type=int, default=500, help="optimizer steps (default: %(default)s)"
    )
    train.add_argument(
        "--lr",
        type=float,
        help="highest rate (default: 0.005 for a small base, less for a big one)",
    )
    train.add_argument(
        "--batch", type=int, default=32, help="examples a step (default: %(default)s)"
    )
    train.add_argument("--accumulate", type=int, default=1, help="compute a batch in so many parts")
    train.add_argument(
        "--max-length",
        type=int,
        default=512,
        help="tokens; longer examples are left out (default: %(default)s)",
    )
    train.add_argument(
        "--pack", action="store_true", help="several examples a row instead of padding"
    )
    train.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    train.add_argument(
        "--checkpoint-every", type=int, default=0, help="steps (default: only when interrupted)"
    )
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    train.add_argument(
        "--tensorboard", action="store_true", help="also write TensorBoard events to --out"
    )


def add_merge_options(merge: argparse.ArgumentParser) -> None:
    """Options of ``minilora merge``."""
    merge.add_argument("--base", help="base folder (default: the shipped base)")
    merge.add_argument("--adapter", type=Path, required=True)
    merge.add_argument("--out", type=Path, required=True)
    merge.add_argument(
        "--qlora",
        action="store_true",
        help="for an adapter from train --qlora: the base in the same four bits",
    )
    merge.add_argument(
        "--onto",
        help="for a base in four bits: dequantized (with --qlora the default), or the folder of the original float model",
    )
    merge.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float16",
        help="(default: %(default)s)",
    )


def add_generate_options(generate: argparse.ArgumentParser) -> None:
    """Options of ``minilora generate``."""
    generate.add_argument("instruction", help="the question")
    generate.add_argument("--context", default="", help="what the question is about")
    generate.add_argument("--base", help="base folder (default: the shipped base)")
    generate.add_argument(
        "--adapter", type=Path, help="folder with an adapter (default: none, the base answers)"
    )
    generate.add_argument(
        "--qlora", action="store_true", help="the base in four bits, as in train --qlora"
    )
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token"
    )
    generate.add_argument("--top-k", type=int)


def run_train(options: argparse.Namespace) -> int:
    """``minilora train``."""
    import torch

    from ..formats.save_and_load import save_adapter
    from ..lora.injection import inject, print_trainable_parameters, trainable_parameters
    from ..model.pretrained import load_base, save_model
    from ..training.config import BIG
    from ..training.history import tensorboard_callback
    from ..training.loop import train
    from .footprint import METHODS, describe_footprints, measure_footprints

    task, lora, config, device = (
        read_task(options),
        lora_of(options),
        settings_of(options),
        check_device(options.device),
    )
    config = replace(config, valid_answers=min(20, len(task.valid)))
    torch.manual_seed(options.seed)
    model = load_base(options.base, device=device, quantize="nf4" if options.qlora else None)
    big = trainable_parameters(model)[1] > BIG
    config = with_rate(config, options.lr, model)
    if not options.full:
        print(inject(model, lora))
    print_trainable_parameters(model)
    announce(task, config)
    history = train(
        model,
        task,
        config,
        callbacks=[tensorboard_callback(options.out)] if options.tensorboard else [],
    )
    if history.interrupted:
        print(f"Stopped at step {len(history.steps)}. Go on with the same command and --resume.")
        return 130
    saved = (
        save_model(model, options.out / "model")
        if options.full
        else save_adapter(model, options.out / "adapter")
    )
    if options.qlora:
        del model  # a big one need not be there twice
        methods = ("QLoRA",) if big else METHODS
        found = measure_footprints(
            task, lora, config, base=options.base, device=device, methods=methods
        )
        print(describe_footprints(found, options.base))
    show_next(options, saved)
    return 0


def read_task(options: argparse.Namespace) -> Any:
    """The examples to train on and those held out."""
    from ..training import data

    if options.full and options.qlora:
        raise ValueError(
            "--full trains the weights themselves, which four bits cannot follow: give --full or --qlora, not both"
        )
    examples = data.load_jsonl(options.data)
    if options.valid is None:
        return data.split_examples(examples, options.data.stem, seed=options.seed)
    return data.Task(options.data.stem, examples, data.load_jsonl(options.valid))


def lora_of(options: argparse.Namespace) -> Any:
    """The ``LoraConfig`` that the options describe."""
    from ..lora.config import LoraConfig, read_targets

    alpha = 2 * options.r if options.alpha is None else options.alpha
    return LoraConfig(
        options.r, alpha, read_targets(options.target), options.dropout, options.rslora
    )


def settings_of(options: argparse.Namespace) -> Any:
    """The ``TrainConfig`` that the options describe."""
    from ..training.config import TrainConfig

    return TrainConfig(
        steps=options.steps,
        lr=TrainConfig.lr if options.lr is None else options.lr,
        batch_size=options.batch,
        accumulate=options.accumulate,
        max_length=options.max_length,
        pack=options.pack,
        bf16=options.bf16,
        seed=options.seed,
        out=options.out,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
    )


def with_rate(config: Any, given: float | None, model: Any) -> Any:
    """The settings with the rate that was given, or else one for a base of this size."""
    from ..lora.injection import trainable_parameters
    from ..training.config import rate_for

    return (
        config
        if given is not None
        else replace(config, lr=rate_for(trainable_parameters(model)[1]))
    )


def announce(task: Any, config: Any) -> None:
    """What is going to happen, for whoever now waits for the first validation."""
    print(
        f"{config.steps} steps of {config.batch_size} out of {len(task.train)} examples, {len(task.valid)} held out; "
        f"rate {config.lr:g}"
    )
    if not config.resume and (Path(config.out) / "metrics.jsonl").exists():
        print(f"{config.out} holds an earlier run: this one replaces it")


def show_next(options: argparse.Namespace, saved: Path) -> None:
    """What to do with what is now on disk."""
    base = (f"--base {options.base} " if options.base else "") + "--qlora " * options.qlora
    print(f"Saved {saved}. Next:")
    print(
        f'  minilora generate {f"--base {saved}" if options.full else f"{base}--adapter {saved}"} "your question"'
    )
    if not options.full:
        print(f"  minilora merge {base}--adapter {saved} --out {options.out / 'merged'}")


def run_merge(options: argparse.Namespace) -> int:
    """``minilora merge``."""
    import torch

    from ..formats.save_and_load import load_adapter
    from ..lora.merging import merge_and_unload
    from ..model.pretrained import load_base, save_model

    for option in ("base", "adapter", "onto"):
        if (given := getattr(options, option)) is not None and Path(
            given
        ).resolve() == options.out.resolve():
            raise ValueError(
                f"--out and --{option} are both {given}, and a merge would write over it: choose another --out"
            )
    model = load_adapter(
        load_base(options.base, quantize="nf4" if options.qlora else None), options.adapter
    )
    onto = options.onto or ("dequantized" if options.qlora else None)
    onto = onto if onto in (None, "dequantized") else load_base(onto)
    saved = save_model(
        merge_and_unload(model, onto=onto), options.out, dtype=getattr(torch, options.dtype)
    )
    print(f'Saved {saved}. Next:\n  minilora generate --base {saved} "your question"')
    return 0


def run_generate(options: argparse.Namespace) -> int:
    """``minilora generate``."""
    from ..formats.save_and_load import load_adapter
    from ..model.pretrained import load_base

    model = load_base(
        options.base, device=check_device(options.device), quantize="nf4" if options.qlora else None
    )
    if options.adapter is not None:
        load_adapter(model, options.adapter)
    print(
        model.generate_text(
            options.instruction,
            options.context,
            options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
    )
    return 0


def check_device(device: str) -> str:
    """The device, if torch has it; ``ValueError`` otherwise."""
    import torch

    try:
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} is not to be had here ({str(error).splitlines()[0]}); use --device cpu"
        ) from error
    return device

"""The options of ``minilora train``, and what they make: replay, settings of the loop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .hub_names import NAMED, add_hub_option
from .method_options import RATES, UNSET, add_method_options, flag
from .options import add_base_option, add_device_option, add_seed_option

AT_THE_END = 10**9  # steps between checkpoints: one after the last step only


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
    add("--adapter", metavar="FOLDER|NAME", help=f"train this one further instead: {NAMED}")
    add("--out", type=Path, required=True, help="folder for adapter, metrics and checkpoint")
    add_method_options(parser)
    add("--full", action="store_true", help="train every parameter instead of an adapter")
    add(
        "--qlora", action="store_true", help="keep the base in four bits (NF4, double quantization)"
    )
    add("--skip-bad", action="store_true", help="go on without rows that cannot be learnt from")
    length = parser.add_mutually_exclusive_group()
    optimizer_steps = "optimizer steps (default: 500, for a big base 150)"
    length.add_argument("--steps", type=int, help=optimizer_steps)
    length.add_argument("--epochs", type=float, help="how often each example is seen instead")
    add("--lr", type=float, help="peak rate (default: 0.005 for a small base, less for a big one)")
    add("--batch", type=int, help="examples a step (default: 32, for a big base 8)")
    add("--accumulate", type=int, default=1, help="compute a batch in so many parts")
    longest = "tokens; longer examples are left out (default: %(default)s)"
    add("--max-length", type=int, default=512, help=longest)
    packing = "several examples a row instead of padding (default: where padding is half the work)"
    add("--pack", action=argparse.BooleanOptionalAction, help=packing)
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    scaled = "float16 autocast with loss scaling, for cards without bfloat16"
    half.add_argument("--fp16", action="store_true", help=scaled)
    recompute = "compute activations again in backward: less memory, a third more time"
    add("--checkpointing", action="store_true", help=recompute)
    add("--validate-every", type=int, default=50, help="steps (default: %(default)s; 0: never)")
    most = "held-out examples that a validation takes (default: %(default)s; 0: all)"
    add("--valid-examples", type=int, default=256, help=most)
    add("--valid-batch", type=int, help="held-out examples computed at once (default: as trained)")
    share = "share of all rows that are old ones, so that less is forgotten, such as 0.25"
    add("--replay", type=float, metavar="SHARE", help=share)
    source = "self: what the model writes itself, as it is now (with --adapter: with that); or a "
    source += "data file or .txt of old examples or text"
    add("--replay-from", default="self", metavar="SOURCE", help=f"{source} (default: self)")
    seldom = "steps (default: when interrupted and, but for --full, at the end)"
    add("--checkpoint-every", type=int, default=0, help=seldom)
    further = "continue from the checkpoint in --out, to --steps or --epochs, which may be more"
    add("--resume", action="store_true", help=further)
    add("--tensorboard", action="store_true", help="also write TensorBoard events to --out")
    curves = "also write curves and norms to Weights & Biases (WANDB_MODE=offline: to a folder)"
    add("--wandb", metavar="PROJECT", help=curves)
    add(
        "--push", metavar="NAME", help="store the adapter in the hub under this name, with its data"
    )
    add_hub_option(parser)
    add_seed_option(parser)
    add_device_option(parser)


def check_adapter(options: argparse.Namespace) -> None:
    """Refuse options that contradict an adapter that exists already."""
    new = UNSET | {"method": "lora", "full": False}
    del new["loraplus_ratio"]  # that is the run's
    wrong = [flag(name) for name, default in new.items() if getattr(options, name) != default]
    if options.adapter and wrong:
        raise ValueError(
            f"--adapter brings its own modules, rank and scale: leave {' and '.join(wrong)} out"
        )


def check_half(options: argparse.Namespace, device: str) -> None:
    """Refuse float16 on a CPU before a base is opened."""
    if options.fp16 and device.startswith("cpu"):
        raise ValueError(
            "--fp16 is for cards without bfloat16; on a CPU float16 is no faster and overflows: "
            "leave it out, or give --bf16"
        )


def check_resume(options: argparse.Namespace) -> None:
    """Refuse ``--resume`` where no checkpoint is, before a base is opened."""
    why = " (--full keeps one only with --checkpoint-every N)" if options.full else ""
    check_checkpoint(settings_of(options), why)


def check_checkpoint(settings: Any, why: str = "") -> None:
    """Refuse a ``TrainConfig`` that resumes what is not there, in the words of the command."""
    from ..training.run import checkpoint_file

    file = checkpoint_file(settings)
    if settings.resume and file is not None and not file.is_file():
        raise ValueError(f"nothing to resume: {file} does not exist{why}: start without --resume")


def replay_of(options: argparse.Namespace) -> Any:
    """What is replayed beside the task, or None."""
    from ..training.readers import read_replay

    share, source = options.replay, options.replay_from
    if share is None:
        if source != "self":
            raise ValueError(f"--replay-from {source} needs a share of the rows: --replay 0.25")
        return None
    teacher: Any = "start" if options.adapter else "base"
    return read_replay(source, share, skip_bad=options.skip_bad, teacher=teacher)


def settings_of(options: argparse.Namespace, parameters: int = 0) -> Any:
    """The ``TrainConfig`` that the options describe, for a base of so many parameters."""
    from ..training.config import TrainConfig, settings_for

    given = {"lr": options.lr, "steps": options.steps, "batch_size": options.batch}
    sizes = settings_for(parameters)
    sizes["lr"] *= 1.0 if options.full or options.adapter else RATES.get(options.method, 1.0)
    if options.epochs is not None:
        del sizes["steps"]
    sizes |= {name: value for name, value in given.items() if value is not None}
    return TrainConfig(
        **sizes,
        epochs=options.epochs,
        accumulate=options.accumulate,
        max_length=options.max_length,
        loraplus_ratio=options.loraplus_ratio or 1.0,
        pack=options.pack,
        bf16=options.bf16,
        fp16=options.fp16,
        checkpointing=options.checkpointing,
        validate_every=options.validate_every,
        valid_examples=options.valid_examples,
        valid_batch=options.valid_batch,
        seed=options.seed,
        out=options.out,
        checkpoint_every=options.checkpoint_every or (0 if options.full else AT_THE_END),
        resume=options.resume,
        measure_memory=options.qlora,
    )

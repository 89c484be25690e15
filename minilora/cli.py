"""The commands: ``minilora demo | learn | train | merge | plan | …``. Each prints what it did and what is next."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = {
    "demo": "minilora demo --out minilora-demo",
    "train": "minilora train --data my.jsonl --out mine --steps 500",
    "merge": "minilora merge --adapter mine/adapter --out mine/merged",
    "plan": "minilora plan llama-3-8b --r 16 --target all-linear --qlora --chart plan.png",
    "chart": "minilora chart memory --out memory.svg",
    "zoo": 'minilora zoo "merge twice"',
    "learn": "minilora learn 1",
    "grade": "minilora grade class/* --lesson 1-5 --csv grades.csv",
    "notebook": "minilora notebook 1-5",
    "book": "minilora book site",
    "bench": "minilora bench forward",
    "generate": 'minilora generate --adapter mine/adapter --context "Log: Hull 90%, Fuel 12%." "Status?"',
}

BENCHMARKS = ("forward", "train_step", "nf4", "memory", "scaling", "matrix")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # a console without UTF-8 shows "?" rather than stopping the run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"minilora {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="minilora", description="LoRA from scratch: small enough to read, checked against PEFT.")
    commands = top.add_subparsers(dest="command", required=True, metavar="demo | learn | train | merge | plan | …")

    demo = command(commands, "demo", run_demo, "a polite ship's computer learns naval code, and every claim is checked")
    demo.add_argument("--out", type=Path, default=Path("minilora-demo"), help="folder for adapter, merged model and figure")
    demo.add_argument("--steps", type=int, help="optimizer steps (default: 500, for a big base 150)")
    demo.add_argument("--r", type=int, default=8, help="rank of the adapter (default: %(default)s)")
    demo.add_argument("--base", help="another base folder instead of the shipped one")
    demo.add_argument("--qlora", action="store_true", help="keep the base in four bits")
    common(demo)

    train = command(commands, "train", run_train, "fine-tune a base on your own JSONL")
    train.add_argument("--data", type=Path, required=True, help='one {"instruction", "input"?, "output"} a line')
    train.add_argument("--valid", type=Path, help="held-out examples (default: a tenth of --data)")
    train.add_argument("--base", help="base folder (default: the shipped base)")
    train.add_argument("--out", type=Path, required=True, help="folder for the adapter, metrics and checkpoint")
    train.add_argument("--target", nargs="+", default=["q_proj", "v_proj"], help="modules to adapt, or all-linear")
    train.add_argument("--r", type=int, default=8)
    train.add_argument("--alpha", type=float, help="lora_alpha (default: 2 r)")
    train.add_argument("--dropout", type=float, default=0.0)
    train.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(r)")
    train.add_argument("--full", action="store_true", help="train every parameter instead of an adapter")
    train.add_argument("--qlora", action="store_true", help="keep the base in four bits (NF4, double quantization)")
    train.add_argument("--steps", type=int, default=500)
    train.add_argument("--lr", type=float, default=5e-3)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--accumulate", type=int, default=1, help="compute a batch in so many parts")
    train.add_argument("--max-length", type=int, default=512, help="tokens; longer examples are left out")
    train.add_argument("--pack", action="store_true", help="several examples a row instead of padding")
    train.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    train.add_argument("--checkpoint-every", type=int, default=0, help="steps (default: only when interrupted)")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events to --out")
    common(train)

    merge = command(commands, "merge", run_merge, "fold an adapter into its base: one plain model folder")
    merge.add_argument("--base", help="base folder (default: the shipped base)")
    merge.add_argument("--adapter", type=Path, required=True)
    merge.add_argument("--out", type=Path, required=True)
    merge.add_argument("--onto", help="for a base in four bits: dequantized, or the folder of the original float model")
    merge.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16", help="(default: %(default)s)")

    generate = command(commands, "generate", run_generate, "ask a base, with an adapter or without")
    generate.add_argument("instruction", help="the question")
    generate.add_argument("--context", default="", help="what the question is about")
    generate.add_argument("--base", help="base folder (default: the shipped base)")
    generate.add_argument("--adapter", type=Path)
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    generate.add_argument("--top-k", type=int)
    common(generate)

    zoo = command(commands, "zoo", run_zoo, "bugs that LoRA libraries have had: the wrong line, and the test that catches it")
    zoo.add_argument("name", nargs="?", help="one of them (default: list all)")

    bench = command(commands, "bench", run_bench, "time everything beside the peers (in a checkout of the repository)")
    bench.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(BENCHMARKS)} (default: all)")
    bench.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")

    from . import planner
    from .learn import commands as lessons

    learn = command(commands, "learn", lessons.run_learn, "the lessons: from one matrix multiply to a merged QLoRA")
    lessons.add_learn_options(learn)
    grade = command(commands, "grade", lessons.run_grade, "check the exercises in learners' folders")
    lessons.add_grade_options(grade)
    lessons.add_notebook_options(command(commands, "notebook", lessons.run_notebook, "a lesson as a Jupyter notebook"))
    lessons.add_book_options(command(commands, "book", lessons.run_book, "lessons and package as a site of plain pages"))

    planner.add_plan_options(
        command(commands, "plan", planner.run_plan, "what a fine-tune will cost: parameters, bytes, FLOPs")
    )
    planner.add_chart_options(command(commands, "chart", planner.run_chart, "draw one of the ledger's charts, or all of them"))
    return top


def command(commands, name: str, run, purpose: str) -> argparse.ArgumentParser:
    """A sub-command whose help ends in an example."""
    made = commands.add_parser(name, help=purpose, description=purpose, epilog=f"example: {EXAMPLES[name]}")
    made.set_defaults(run=run)
    return made


def common(made: argparse.ArgumentParser) -> None:
    """Options that every command with a model has."""
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")


def run_demo(options: argparse.Namespace) -> int:
    """``minilora demo``."""
    from .demo import run_demo as demo

    device, settings = check_device(options.device), {"steps": options.steps, "r": options.r, "seed": options.seed}
    figures = demo(options.out, **settings, device=device, base=options.base, qlora=options.qlora)
    return 0 if figures["unmerged_to_the_bit"] and figures["base_unchanged"] else 1


def run_train(options: argparse.Namespace) -> int:
    """``minilora train``."""
    import torch

    from . import data
    from .adapter import save_adapter
    from .config import LoraConfig, TrainConfig
    from .footprint import footprint_table, measure_footprints
    from .history import tensorboard_callback
    from .inject import inject, print_trainable_parameters
    from .pretrained import load_base, save_model
    from .train import train

    examples = data.load_jsonl(options.data)
    task = data.split_examples(examples, options.data.stem, seed=options.seed)
    if options.valid is not None:
        task = data.Task(options.data.stem, examples, data.load_jsonl(options.valid))
    if options.full and options.qlora:
        raise ValueError(
            "--full trains the weights themselves, which four bits cannot follow: give --full or --qlora, not both"
        )
    device, alpha = check_device(options.device), 2 * options.r if options.alpha is None else options.alpha
    targets = "all-linear" if options.target == ["all-linear"] else options.target
    lora = LoraConfig(options.r, alpha, targets, options.dropout, options.rslora)
    config = TrainConfig(
        steps=options.steps,
        lr=options.lr,
        batch_size=options.batch,
        accumulate=options.accumulate,
        max_length=options.max_length,
        pack=options.pack,
        bf16=options.bf16,
        seed=options.seed,
        out=options.out,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        valid_answers=min(20, len(task.valid)),
    )
    torch.manual_seed(options.seed)
    model = load_base(options.base, device=device, quantize="nf4" if options.qlora else None)
    if not options.full:
        print(inject(model, lora))
    print_trainable_parameters(model)
    history = train(model, task, config, callbacks=[tensorboard_callback(options.out)] if options.tensorboard else [])
    if history.interrupted:
        print(f"Stopped at step {len(history.steps)}. Go on with the same command and --resume.")
        return 130
    saved = save_model(model, options.out / "model") if options.full else save_adapter(model, options.out / "adapter")
    if options.qlora:
        print("A training step of this run held in memory (measured):")
        print(footprint_table(measure_footprints(task, lora, config, base=options.base, device=device)))
    print(f"Saved {saved}. Next:")
    base = f"--base {options.base} " if options.base else ""
    print(f'  minilora generate {f"--base {saved}" if options.full else f"{base}--adapter {saved}"} "your question"')
    if not options.full:
        print(f"  minilora merge {base}--adapter {saved} --out {options.out / 'merged'}")
    return 0


def run_merge(options: argparse.Namespace) -> int:
    """``minilora merge``."""
    import torch

    from .adapter import load_adapter
    from .merge import merge_and_unload
    from .pretrained import load_base, save_model

    model = load_adapter(load_base(options.base), options.adapter)
    onto = options.onto if options.onto in (None, "dequantized") else load_base(options.onto)
    saved = save_model(merge_and_unload(model, onto=onto), options.out, dtype=getattr(torch, options.dtype))
    print(f'Saved {saved}. Next:\n  minilora generate --base {saved} "your question"')
    return 0


def run_generate(options: argparse.Namespace) -> int:
    """``minilora generate``."""
    from .adapter import load_adapter
    from .pretrained import load_base

    model = load_base(options.base, device=check_device(options.device))
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


def run_zoo(options: argparse.Namespace) -> int:
    """``minilora zoo``."""
    from .zoo import describe, describe_all, find_bug

    print(describe_all() if options.name is None else describe(find_bug(options.name)))
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """``minilora bench``: the benchmarks need the peers and stand beside the package, not in it."""
    import subprocess

    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        raise ValueError(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    checkout = Path(__file__).parent.parent
    if not (checkout / "benchmarks" / "__main__.py").exists():
        raise ValueError("the benchmarks are part of the repository, not of the package: clone it, then make bench")
    return subprocess.call([sys.executable, "-m", "benchmarks", *options.names, "--device", options.device], cwd=checkout)


def check_device(device: str) -> str:
    """The device, if torch has it; ``ValueError`` otherwise."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not to be had here ({str(error).splitlines()[0]}); use --device cpu") from error
    return device


if __name__ == "__main__":
    sys.exit(main())

"""The commands: ``minilora demo | learn | train | merge | plan | …``. Each prints what it did and what is next."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..training.config import check_seed

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
    # a console without UTF-8 shows "?" rather than stopping the run
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    top = parser()
    options = top.parse_args(arguments)
    if options.command is None:
        top.print_help()
        return 2
    python_form, warnings.formatwarning = (
        warnings.formatwarning,
        lambda message, *_: f"minilora {options.command}: {message}\n",
    )
    try:
        check_seed(getattr(options, "seed", 0))
        return options.run(options) or 0
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"minilora {options.command}: {error}", file=sys.stderr)
        return 2
    # torch's word for a full memory, a card's or the machine's; anything else is a bug of ours
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        print(
            f"minilora {options.command}: not enough memory: {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = python_form


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="minilora",
        description="LoRA from scratch: small enough to read, checked against PEFT.",
    )
    commands = top.add_subparsers(dest="command", metavar="demo | learn | train | merge | plan | …")

    demo = command(
        commands,
        "demo",
        run_demo,
        "a polite ship's computer learns naval code, and every claim is checked",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("minilora-demo"),
        help="folder for adapter, merged model and figure",
    )
    demo.add_argument(
        "--steps", type=int, help="optimizer steps (default: 500, for a big base 150)"
    )
    demo.add_argument("--r", type=int, default=8, help="rank of the adapter (default: %(default)s)")
    demo.add_argument("--base", help="another base folder instead of the shipped one")
    demo.add_argument("--qlora", action="store_true", help="keep the base in four bits")
    common(demo)

    from . import finetune

    train = command(commands, "train", finetune.run_train, "fine-tune a base on your own JSONL")
    finetune.add_train_options(train)
    common(train)
    merge = command(
        commands,
        "merge",
        finetune.run_merge,
        "fold an adapter into its base: one plain model folder",
    )
    finetune.add_merge_options(merge)
    generate = command(
        commands, "generate", finetune.run_generate, "ask a base, with an adapter or without"
    )
    finetune.add_generate_options(generate)
    common(generate)

    zoo = command(
        commands,
        "zoo",
        run_zoo,
        "bugs that LoRA libraries have had: the wrong line, and the test that catches it",
    )
    zoo.add_argument("name", nargs="?", help="one of them (default: list all)")

    bench = command(
        commands,
        "bench",
        run_bench,
        "time everything beside the peers (in a checkout of the repository)",
    )
    bench.add_argument(
        "names", nargs="*", metavar="name", help=f"{', '.join(BENCHMARKS)} (default: all)"
    )
    bench.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")

    from . import learn as lessons
    from . import planner

    learn = command(
        commands,
        "learn",
        lessons.run_learn,
        "the lessons: from one matrix multiply to a merged QLoRA",
    )
    lessons.add_learn_options(learn)
    grade = command(
        commands, "grade", lessons.run_grade, "check the exercises in learners' folders"
    )
    lessons.add_grade_options(grade)
    lessons.add_notebook_options(
        command(commands, "notebook", lessons.run_notebook, "a lesson as a Jupyter notebook")
    )
    lessons.add_book_options(
        command(commands, "book", lessons.run_book, "lessons and package as a site of plain pages")
    )

    planner.add_plan_options(
        command(
            commands,
            "plan",
            planner.run_plan,
            "what a fine-tune will cost: parameters, bytes, FLOPs",
        )
    )
    planner.add_chart_options(
        command(
            commands, "chart", planner.run_chart, "draw one of the ledger's charts, or all of them"
        )
    )
    return top


def command(commands, name: str, run, purpose: str) -> argparse.ArgumentParser:
    """A sub-command whose help ends in an example."""
    made = commands.add_parser(
        name, help=purpose, description=purpose, epilog=f"example: {EXAMPLES[name]}"
    )
    made.set_defaults(run=run)
    return made


def common(made: argparse.ArgumentParser) -> None:
    """Options that every command with a model has."""
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")


def run_demo(options: argparse.Namespace) -> int:
    """``minilora demo``."""
    from .demo import run_demo as demo
    from .finetune import check_device

    device, settings = (
        check_device(options.device),
        {"steps": options.steps, "r": options.r, "seed": options.seed},
    )
    figures = demo(options.out, **settings, device=device, base=options.base, qlora=options.qlora)
    return 0 if figures["unmerged_to_the_bit"] and figures["base_unchanged"] else 1


def run_zoo(options: argparse.Namespace) -> int:
    """``minilora zoo``."""
    from ..bugs.release import describe, describe_all, find_bug

    print(describe_all() if options.name is None else describe(find_bug(options.name)))
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """``minilora bench``: the benchmarks need the peers and stand beside the package, not in it."""
    import subprocess

    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        raise ValueError(
            f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}"
        )
    checkout = Path(__file__).parents[2]
    if not (checkout / "benchmarks" / "__main__.py").exists():
        raise ValueError(
            "the benchmarks are part of the repository, not of the package: clone it, then make bench"
        )
    return subprocess.call(
        [sys.executable, "-m", "benchmarks", *options.names, "--device", options.device],
        cwd=checkout,
    )


if __name__ == "__main__":
    sys.exit(main())

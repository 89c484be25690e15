"""The commands: ``minilora demo | learn | train | plan | …``.

A command is one line of ``COMMANDS`` and one module of its name in this folder, which has
``add_options(parser)`` and ``run(options)``. Only the module of the command that was typed is
imported, so ``minilora --help`` and a mistyped command answer without torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..text import columns, did_you_mean


class Command(NamedTuple):
    """What ``minilora --help`` says of a command, and the example under its own ``--help``."""

    group: str
    purpose: str
    example: str


COMMANDS = {
    "demo": Command(
        "Try",
        "a polite ship's computer learns naval code, and every claim is checked",
        "minilora demo --out minilora-demo",
    ),
    "zoo": Command(
        "Try",
        "bugs that LoRA libraries have had: the wrong line, and the test that catches it",
        'minilora zoo "merge twice"',
    ),
    "learn": Command(
        "Learn", "the lessons: from one matrix multiply to a thousand adapters", "minilora learn 0"
    ),
    "book": Command("Learn", "lessons and package as a site of plain pages", "minilora book site"),
    "train": Command(
        "Use",
        "fine-tune a base on your own examples",
        "minilora train --data my.jsonl --out mine --steps 500",
    ),
    "generate": Command(
        "Use",
        "ask a base, with an adapter or without",
        'minilora generate --adapter mine/adapter --context "Log: Hull 90%." "Status?"',
    ),
    "chat": Command(
        "Use", "talk to a base, with an adapter or without", "minilora chat --adapter mine/adapter"
    ),
    "merge": Command(
        "Use",
        "fold an adapter into its base: one plain model folder",
        "minilora merge --adapter mine/adapter --out mine/merged",
    ),
    "export": Command(
        "Use",
        "a model or an adapter for llama.cpp (GGUF), an adapter for vLLM",
        "minilora export mine/merged --gguf --type q8_0",
    ),
    "combine": Command(
        "Use",
        "several adapters of one base as one: exactly, or by PEFT's rules",
        "minilora combine legal/adapter brief/adapter --weights 1 0.5 --out both",
    ),
    "analyze": Command(
        "Use",
        "what an adapter changed, and where: a table and a picture",
        "minilora analyze mine/adapter --data my.jsonl --out analysis.png",
    ),
    "hub": Command(
        "Serve",
        "adapters by name and version, with where they come from",
        "minilora hub push naval mine/adapter --data my.jsonl",
    ),
    "jobs": Command(
        "Serve",
        "from data to a registered adapter: queued, watched, resumed after any kill",
        "minilora jobs run spec.toml",
    ),
    "serve": Command(
        "Serve",
        "the OpenAI API for a base and its adapters, on this machine",
        "minilora serve --port 8000 --adapter naval=mine/adapter",
    ),
    "plan": Command(
        "Plan",
        "what a fine-tune will cost: bytes, FLOPs, cards, hours; what serving it takes",
        "minilora plan llama-3-8b --r 16 --target all-linear --qlora --chart plan.png",
    ),
    "chart": Command(
        "Plan",
        "draw one of the ledger's charts, or all of them",
        "minilora chart memory --out memory.svg",
    ),
    "bench": Command(
        "Plan",
        "time everything beside the peers (in a checkout of the repository)",
        "minilora bench forward",
    ),
    "notebook": Command("Teach", "a lesson as a Jupyter notebook", "minilora notebook 1-5"),
    "grade": Command(
        "Teach",
        "check the exercises in learners' folders",
        "minilora grade class/* --lesson 1-5 --csv grades.csv",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # a console without UTF-8 shows "?"
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help", "help"):
        print(help_text())
        return 0 if name else 2
    if name == "--version":
        import minilora

        print(f"minilora {minilora.__version__}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, "minilora --help lists the commands")
        print(f"minilora: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        with warnings_on_one_line(name):
            return run_command(name, rest[:-1])
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        own_words = isinstance(error, OSError) and error.filename is None and error.strerror
        print(f"minilora {name}: {own_words or error}", file=sys.stderr)  # without "[Errno 2]"
        return 2
    except RuntimeError as error:  # torch says so when a card's or the machine's memory is full
        if "memory" not in str(error):
            raise
        first_line = str(error).splitlines()[0]
        print(f"minilora {name}: not enough memory: {first_line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Import the command's module, read its options, check the seed, run it."""
    together = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if name != "train" and together:
        raise ValueError("one process is enough: of the commands only train is for torchrun")
    command = importlib.import_module(f".{name}", __package__)
    options = parser_of(name).parse_args(arguments)
    if getattr(options, "seed", None) is not None:  # hub push: unknown where none is given
        from ..training.config import check_seed

        check_seed(options.seed)
    return command.run(options) or 0


def parser_of(name: str) -> argparse.ArgumentParser:
    """A command's options; its help ends in an example."""
    _, purpose, example = COMMANDS[name]
    epilog = f"example: {example}"
    parser = argparse.ArgumentParser(f"minilora {name}", description=purpose, epilog=epilog)
    importlib.import_module(f".{name}", __package__).add_options(parser)
    name_defaults(parser)
    return parser


def name_defaults(parser: argparse.ArgumentParser) -> None:
    """Put "(default: …)" behind the help of each option with a value that does not say so itself.

    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--seed", type=int, default=3, help="of the run")
    >>> name_defaults(parser); parser._actions[-1].help
    'of the run (default: 3)'
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                name_defaults(each)
        elif action.option_strings and action.nargs != 0 and not action.required:
            words = (action.help or "").replace("(%(default)s", "(default: %(default)s")
            action.help = words
            if words != argparse.SUPPRESS and "default" not in words:
                # an option that is not given is None, an empty string or an empty list
                value = "none" if action.default in (None, "", []) else action.default
                action.help = f"{words} (default: {value})".strip()


def help_text() -> str:
    """Every command in its group, with its purpose.

    >>> print(help_text().splitlines()[0])
    usage: minilora COMMAND [options]     minilora COMMAND --help says more of one
    """
    head = """usage: minilora COMMAND [options]     minilora COMMAND --help says more of one

LoRA adapts a large model by training two thin matrices beside each of its big ones.
Here every part of that is small enough to read, and checked against PEFT.
"""
    rows = [(f"  {name}", command.purpose) for name, command in COMMANDS.items()]
    lines = dict(zip(COMMANDS, columns(rows), strict=True))
    groups: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        groups.setdefault(command.group, []).append(lines[name])
    return "\n".join([head, *("\n".join([group, *each]) for group, each in groups.items())])


@contextmanager
def warnings_on_one_line(name: str) -> Iterator[None]:
    """Inside this context a warning is printed as one line that begins with the command."""

    def on_one_line(message: Warning | str, *_: object) -> str:
        return f"minilora {name}: {message}\n"

    before, warnings.formatwarning = warnings.formatwarning, on_one_line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())

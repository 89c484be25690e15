"""``minilora hub push | pull | list | show | compare | alias | verify | gc | …``: adapters by name
and version.

Each sub-command prints what it did and what comes next; the work is in ``minilora/hub``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hub.page import kilobytes
from ..text import did_you_mean
from .hub_tables import show_version, show_versions

EPILOG = """examples:
  minilora hub push naval mine/adapter --data my.jsonl --metric exact_match=0.97
  minilora hub list naval                     minilora hub show naval@champion
  minilora hub compare naval@1.0 naval@1.1    what changed, and by how much
  minilora hub alias naval@1.1.0 champion     promote; the same with 1.0.0 rolls back
  minilora hub pull naval@champion            prints the folder, checked to the bit
  minilora hub prune --unused-for 30d         never what an alias names"""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Options and sub-commands of ``minilora hub``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "--hub", type=Path, default=Path("hub"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--tenant", default="default", help="whose adapters (default: %(default)s)")
    commands = parser.add_subparsers(dest="action", metavar="push | pull | list | …", required=True)

    def add(action: str, run: Callable, purpose: str, /, **arguments: dict[str, Any]) -> None:
        made = commands.add_parser(action, help=purpose, description=purpose)
        made.set_defaults(run_action=run)
        for argument, settings in arguments.items():
            positional = settings.pop("positional", False)
            flag = argument if positional else f"--{argument.replace('_', '-')}"
            made.add_argument(flag, **settings)

    spec = {"positional": True, "help": "naval, naval@1.2, naval@1.2.0 or naval@champion"}
    add(
        "push",
        push,
        "store an adapter's folder as a new version, for good",
        name={"positional": True},
        folder={"positional": True, "type": Path},
        version={"help": "such as 1.2.0 (default: the suggested one)"},
        data={
            "type": Path,
            "help": "the JSONL it was trained on: its hash is kept, and it teaches the router",
        },
        task={"default": ""},
        description={"default": ""},
        tag={"action": "append", "default": [], "help": "any number of times"},
        metric={"action": "append", "default": [], "metavar": "NAME=NUMBER", "help": "a score"},
        seed={"type": int},
        parent={"help": "the version it was made from (default: the newest)"},
    )
    add(
        "pull",
        pull,
        "print a version's folder, checked",
        spec={**spec, "help": f"{spec['help']}, or https://…"},
    )
    add(
        "list",
        list_versions,
        "all versions, or those of a name",
        name={"positional": True, "nargs": "?"},
        task={"default": ""},
        tag={"default": ""},
        base={"default": "", "help": "either half of the base's fingerprint"},
        metric={"default": "", "metavar": "NAME[=LEAST]"},
    )
    add("show", show, "where a version comes from: data, base, parent, scores", spec=dict(spec))
    add(
        "compare",
        compare,
        "settings, data, scores and the two ΔW side by side",
        a={"positional": True},
        b={"positional": True},
    )
    add(
        "alias",
        alias,
        "let a name such as champion mean a version",
        spec=dict(spec),
        alias={"positional": True},
        expect={
            "metavar": "VERSION",
            "help": "only if it means this now; 'none': only if it is new",
        },
    )
    add("route", route, "which adapter is a question for, and why", question={"positional": True})
    add(
        "compress",
        compress,
        "a smaller copy as a version of its own",
        spec=dict(spec),
        kind={"choices": ["fp16", "nf4"], "default": "nf4", "help": "(default: %(default)s)"},
    )
    add("verify", verify, "read everything; status 1 if a bit is wrong")
    add("gc", gc, "remove what no version has")
    add(
        "prune",
        prune,
        "delete versions that nobody used and no alias names",
        unused_for={"required": True, "metavar": "30d", "help": "a number and s, m, h, d or w"},
    )
    add("page", page, "the hub as one static page", out={"type": Path, "default": Path("hub.html")})
    add(
        "export",
        export,
        "write a version to one file",
        spec=dict(spec),
        file={"positional": True, "type": Path},
    )
    add(
        "import",
        import_file,
        "take in an exported version",
        file={"positional": True, "type": Path},
    )


def run_hub(options: argparse.Namespace) -> int:
    """``minilora hub``."""
    from ..hub import Hub

    return options.run_action(Hub(options.hub, options.tenant), options) or 0


def push(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub push``."""
    from ..hub import data_hash
    from ..training.data import load_jsonl

    examples = load_jsonl(options.data) if options.data else ()
    metadata: dict[str, Any] = {
        "task": options.task,
        "description": options.description,
        "tags": options.tag,
        "metrics": dict(metric(each) for each in options.metric),
        "data_sha": data_hash(examples) if examples else "",
        "seed": options.seed,
        "parent": options.parent,
    }
    version = hub.push(
        options.name,
        options.folder,
        version=options.version,
        metadata={
            name: value for name, value in metadata.items() if value not in (None, "", [], {})
        },
        examples=[f"{each.instruction} {each.input}" for each in examples],
    )
    print(f"Pushed {version.spec}, {kilobytes(version.manifest.bytes)}. Next:")
    print(f"  minilora hub {where(options)}show {version.spec}")
    if version.manifest.parent:
        print(f"  minilora hub {where(options)}compare {version.manifest.parent} {version.spec}")
    print(f"  minilora hub {where(options)}alias {version.spec} champion")


def pull(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub pull``: the folder alone, for ``$(…)``."""
    print(hub.pull(options.spec))


def list_versions(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub list``."""
    name, least = metric(options.metric) if "=" in options.metric else (options.metric, -1e308)
    chosen = [
        each
        for each in hub.search(
            base=options.base, task=options.task, tag=options.tag, metric=name, least=least
        )
        if options.name in (None, each.name)
    ]
    if not chosen and options.name:
        names = sorted({each.name for each in hub.list()})
        raise ValueError(
            f"no {options.name!r} here: {did_you_mean(options.name, names, 'nothing is alike')}"
        )
    show_versions(chosen)


def show(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub show``."""
    version = hub.show(options.spec)
    show_version(version, hub.lineage(version.spec), hub.events(version.name))


def compare(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub compare``."""
    print(hub.compare(options.a, options.b))


def alias(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub alias``."""
    expected: Any = {None: ..., "none": None}.get(options.expect, options.expect)
    old = hub.alias(options.spec, options.alias, expected)
    target = hub.show(f"{options.spec.partition('@')[0]}@{options.alias}")
    print(f"{target.name}@{options.alias} is {target.version} now (before: {old or 'not set'}).")
    if old:
        print(f"Back: minilora hub {where(options)}alias {target.name}@{old} {options.alias}")


def route(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub route``."""
    router = hub.router()
    answer = router.route(options.question)
    margins = f"margin {answer.margin:.2f}, needed {router.threshold:.2f}"
    print(f"{answer.name or 'none of these: the base answers'} ({margins})")
    print("  ".join(f"{name} {score:.2f}" for name, score in answer.ranking))
    reasons = [ngram for ngram, share in router.explain(options.question) if share > 0]
    print(f"{answer.ranking[0][0]} because of: {', '.join(map(repr, reasons)) or 'nothing in it'}")


def compress(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub compress``."""
    old = hub.show(options.spec)
    new = hub.compress(options.spec, options.kind)
    tensors = old.manifest.files["adapter_model.safetensors"][1]
    sizes = (
        f"{kilobytes(tensors)} -> {kilobytes(new.manifest.files[f'{options.kind}.safetensors'][1])}"
    )
    print(f"Stored {new.spec}: {sizes}. It answers a little differently: measure it.")


def verify(hub: Any, options: argparse.Namespace) -> int:
    """``minilora hub verify``."""
    damages = hub.verify()
    print("\n".join(map(str, damages)) or "Everything is as it was stored.")
    return 1 if damages else 0


def gc(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub gc``."""
    swept = hub.gc()
    print(f"Removed {swept.files} files, {kilobytes(swept.bytes)}.")


def prune(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub prune``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", options.unused_for)
    if match is None:
        raise ValueError(f"expected a time such as 30d or 12h, got {options.unused_for!r}")
    pruned = hub.prune(float(match[1]) * UNITS[match[2]])
    print(
        f"Pruned {len(pruned)}: {', '.join(pruned) or 'everything else is in use or has an alias'}"
    )


def page(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub page``."""
    from ..hub.page import write_page

    print(f"Wrote {write_page(hub, options.out)}: open it in a browser")


def export(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub export``."""
    print(
        f"Wrote {hub.export(options.spec, options.file)}. There: minilora hub import {options.file}"
    )


def import_file(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub import``."""
    print(f"Imported {hub.import_file(options.file).spec}.")


def metric(text: str) -> tuple[str, float]:
    """``NAME=NUMBER``. Raises ``ValueError`` for anything else.

    >>> metric("exact_match=0.97")
    ('exact_match', 0.97)
    """
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(
            f"expected a score as NAME=NUMBER, such as exact_match=0.97, got {text!r}"
        ) from None


def where(options: argparse.Namespace) -> str:
    """The options that the next command needs to find this hub again."""
    hub = f"--hub {options.hub} " if options.hub != Path("hub") else ""
    return hub + (f"--tenant {options.tenant} " if options.tenant != "default" else "")

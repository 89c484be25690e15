"""``minilora hub push | pull | list | show | compare | alias | verify | gc | …``: adapters by name
and version.

Each sub-command prints what it did and what comes next; the work is in ``minilora/hub``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from ..text import did_you_mean, size_text
from .hub_tables import show_version, show_versions
from .quantities import duration_with_unit

EPILOG = """examples:
  minilora hub push naval mine/adapter --data my.jsonl --metric exact_match=0.97
  minilora train --data my.jsonl --out mine --push naval   the same, with its lineage
  minilora generate --adapter naval@champion "…"           wherever a folder is asked for
  minilora hub list naval                     minilora hub show naval@champion
  minilora hub compare naval@1.0 naval@1.1    what changed, and by how much
  minilora hub alias naval@1.1.0 champion     promote; the same with 1.0.0 rolls back
  minilora hub pull naval@champion            prints the folder, checked to the bit
  minilora hub route "Hull status?"           which adapter the question is for, and why
  minilora hub prune --unused-for 30d         never what an alias names"""
SPEC = "naval, naval@1.2, naval@1.2.0 or naval@champion"
PURPOSES = {
    "push": "store an adapter's folder as a new version, for good",
    "pull": "print a version's folder, checked",
    "list": "all versions, or those of a name",
    "show": "where a version comes from: data, base, parent, scores",
    "compare": "settings, data, scores and the two ΔW side by side",
    "alias": "let a name such as champion mean a version",
    "route": "which adapter is a question for, and why",
    "compress": "a smaller copy as a version of its own",
    "verify": "read everything; status 1 if a bit is wrong",
    "gc": "remove what no version has",
    "prune": "delete versions that nobody used and no alias names",
    "page": "the hub as one static page",
    "export": "write a version to one file",
    "import": "take in an exported version",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options and sub-commands of ``minilora hub``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add_place_options(parser, Path("hub"), "default")
    actions = parser.add_subparsers(dest="action", metavar="push | pull | list | …", required=True)
    made = {
        name: actions.add_parser(name, help=purpose, description=purpose)
        for name, purpose in PURPOSES.items()
    }
    for action in made.values():  # either side of the sub-command; here no default hides that one
        add_place_options(action, argparse.SUPPRESS, argparse.SUPPRESS)
    add_push_options(made["push"])
    add_list_options(made["list"])
    made["pull"].add_argument("spec", help=f"{SPEC}, or https://…")
    for name in ("show", "alias", "compress", "export"):
        made[name].add_argument("spec", help=SPEC)
    made["compare"].add_argument("a", help=SPEC)
    made["compare"].add_argument("b", help="another")
    made["alias"].add_argument("alias")
    expect = "only if the alias means this now; 'none': only if it is new"
    made["alias"].add_argument("--expect", metavar="VERSION", help=expect)
    made["route"].add_argument("question")
    made["compress"].add_argument("--kind", choices=["fp16", "nf4"], default="nf4")
    unused = "a number and s, m, h, d or w"
    made["prune"].add_argument(
        "--unused-for", type=duration_with_unit, required=True, metavar="30d", help=unused
    )
    made["page"].add_argument("--out", type=Path, default=Path("hub.html"))
    for name in ("export", "import"):
        made[name].add_argument("file", type=Path)


def add_place_options(parser: argparse.ArgumentParser, hub: Path | str, tenant: str) -> None:
    """Which hub, and whose part of it."""
    parser.add_argument("--hub", type=Path, default=hub, help="folder (default: hub)")
    parser.add_argument("--tenant", default=tenant, help="whose adapters (default: default)")


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora hub push``."""
    add = parser.add_argument
    add("name")
    add("folder", type=Path)
    add("--version", help="such as 1.2.0 (default: the suggested one)")
    taught = (
        "the file it was trained on: its hash is kept, and it teaches the router (train --push "
        "and jobs keep the hash of what was left after the held-out part)"
    )
    add("--data", type=Path, help=taught)
    add("--task", default="")
    add("--description", default="")
    add("--tag", action="append", default=[], help="any number of times")
    add("--metric", action="append", default=[], metavar="NAME=NUMBER", help="a score")
    add("--seed", type=int)
    add("--parent", help="the version it was made from (default: the newest)")


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora hub list``."""
    add = parser.add_argument
    add("name", nargs="?")
    add("--task", default="")
    add("--tag", default="")
    add("--base", default="", help="either half of the base's fingerprint")
    add("--metric", default="", metavar="NAME[=LEAST]")


def run(options: argparse.Namespace) -> int:
    """``minilora hub``."""
    from ..hub import Hub

    return ACTIONS[options.action](Hub(options.hub, options.tenant), options) or 0


def push(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub push``."""
    from ..hub import data_hash
    from ..training.examples import question_text
    from ..training.readers import read_examples

    examples = read_examples(options.data).examples if options.data else ()
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
        examples=map(question_text, examples),
    )
    print(f"Pushed {version.spec}, {size_text(version.manifest.bytes)}. Next:")
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
    sizes = f"{size_text(old.manifest.bytes)} -> {size_text(new.manifest.bytes)}"
    print(f"Stored {new.spec}: {sizes}. It answers a little differently: measure it.")


def verify(hub: Any, options: argparse.Namespace) -> int:
    """``minilora hub verify``."""
    damages = hub.verify()
    print("\n".join(map(str, damages)) or "Everything is as it was stored.")
    return 1 if damages else 0


def gc(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub gc``."""
    swept = hub.gc()
    print(f"Removed {swept.files} files, {size_text(swept.bytes)}.")


def prune(hub: Any, options: argparse.Namespace) -> None:
    """``minilora hub prune``."""
    pruned = hub.prune(options.unused_for)
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
    hub = f"--hub {quote(str(options.hub))} " if options.hub != Path("hub") else ""
    return hub + (f"--tenant {options.tenant} " if options.tenant != "default" else "")


ACTIONS: dict[str, Callable[[Any, argparse.Namespace], int | None]] = {
    "push": push,
    "pull": pull,
    "list": list_versions,
    "show": show,
    "compare": compare,
    "alias": alias,
    "route": route,
    "compress": compress,
    "verify": verify,
    "gc": gc,
    "prune": prune,
    "page": page,
    "export": export,
    "import": import_file,
}

"""Adapters by name where a command takes a folder, and ``train --push``: the way into the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import check_out

HUB = Path("hub")  # where it is looked for when nobody says so
NAMED = "a folder, or a name of the hub such as naval@champion"


def add_adapter_option(parser: argparse.ArgumentParser, none: str = "") -> None:
    """``--adapter`` and ``--hub``; ``none`` says what happens without an adapter (else it is
    required).
    """
    about = f"{NAMED} (default: {none})" if none else NAMED
    parser.add_argument("--adapter", required=not none, metavar="FOLDER|NAME", help=about)
    add_hub_option(parser)


def add_hub_option(parser: argparse.ArgumentParser) -> None:
    """``--hub``: where names are looked up."""
    parser.add_argument(
        "--hub", type=Path, default=HUB, help="where adapters have names (default: hub)"
    )


def adapter_folder(name_or_folder: str, hub: Path) -> Path:
    """The folder of an adapter, pulled from the hub if it is a name; a folder is taken as it is.

    Raises ``ValueError`` when it is neither.
    """
    from ..hub import resolve

    return resolve(name_or_folder, hub)


def check_push(options: argparse.Namespace) -> str:
    """Refuse a name that cannot be pushed, before hours of training; returns the parent's spec.

    The version that ``--adapter`` means now, since an alias may move meanwhile; "" for a folder.
    """
    from ..hub import Hub
    from ..hub.semver import check_name
    from ..hub.transport import is_address

    if options.push is None:
        return ""
    if options.full:
        raise ValueError("--push stores an adapter, and --full makes none: leave one of them out")
    check_name(options.push)
    check_out(options.hub, "--hub")
    before = options.adapter
    if not before or Path(before).is_dir() or is_address(before):
        return ""
    return Hub(options.hub).show(before).spec


def push_trained(
    options: argparse.Namespace,
    folder: Path,
    task: Any,
    config: Any,
    metrics: dict[str, float],
    parent: str,
) -> str:
    """Store a run's adapter with its lineage: data hash, scores, seed, settings, the adapter it
    goes on from and what was replayed; returns ``naval@1.0.0``.
    """
    from ..hub import Hub
    from ..hub.lineage import lineage
    from ..training.examples import question_text

    more: dict[str, Any] = {"adapter": parent or str(options.adapter)} if options.adapter else {}
    if options.replay is not None:
        more |= {"replay": options.replay, "replay_from": str(options.replay_from)}
    version = Hub(options.hub).push(
        options.push,
        folder,
        metadata=lineage(task, config, metrics, parent, **more),
        examples=map(question_text, task.train),
    )
    return version.spec

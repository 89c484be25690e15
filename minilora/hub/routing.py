"""The hub's router: fitted on the newest examples of every name, again when those have changed.

The fitted weights are kept beside the hub under a name made of what they were fitted on and of
their own hash, so an adapter that comes or goes makes another name, and a damaged file is not used
but made again. Nothing here is the truth: the folder ``router/`` may be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .blobs import digest, write_durably
from .ngrams import load_counts
from .registry import Version
from .router import Router, load_router, save_router
from .semver import newest
from .stored_files import ROUTES


def routed(versions: Iterable[Version]) -> dict[str, str]:
    """Name -> hash of the examples, of the newest version of each name that came with some."""
    taught: dict[str, dict[str, Version]] = {}
    for each in versions:
        if ROUTES in each.manifest.files:
            taught.setdefault(each.name, {})[each.version] = each
    last = {name: known[newest(known) or max(known)] for name, known in sorted(taught.items())}
    return {name: each.manifest.files[ROUTES][0] for name, each in last.items()}


def router_of(examples: dict[str, str], read: Callable[[str], bytes], folder: Path) -> Router:
    """The router for these examples (name -> hash), from ``folder`` or fitted now and kept there if
    that can be written.

    Raises ``ValueError`` where fewer than two adapters have examples.
    """
    if len(examples) < 2:
        raise ValueError(
            f"a router chooses between two adapters or more, and {len(examples)} here came with "
            "examples: push them with their data"
        )
    key = digest(repr(sorted(examples.items())).encode())[:16]
    for file in sorted(folder.glob(f"{key}-*")):
        with suppress(ValueError, OSError):  # damaged, or another process has just deleted it
            stat = file.stat()
            return kept_router(file, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    router = Router.fit({name: load_counts(read(sha)) for name, sha in examples.items()})
    content = save_router(router)
    try:
        write_durably(folder / f"{key}-{digest(content)}", content)
    except OSError:
        return router
    for file in folder.glob("*-*"):
        if not file.name.startswith(key):
            file.unlink(missing_ok=True)
    return router


@lru_cache(maxsize=4)
def kept_router(file: Path, identity: tuple[int, ...]) -> Router:
    """A router from its file, read once for as long as ``identity`` (inode, size, time) is the
    same. Raises ``ValueError`` for one whose content is not what its name says.
    """
    content = file.read_bytes()
    if digest(content) != file.name.partition("-")[2]:
        raise ValueError(f"{file} is damaged: its content is not what its name says")
    return load_router(content)

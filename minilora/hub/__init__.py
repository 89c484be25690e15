"""Adapters by name and version, with where they come from, and the router that chooses one.

In reading order:

    semver.py        names and versions: what ``naval@1.2`` means
    adapter.py       an adapter's folder read strictly, and its identity
    blobs.py         files named by their content
    manifest.py      what is known of a version, and which number a new one should have
    database.py      its tables
    registry.py      the rows of one tenant
    lineage.py       where a trained adapter comes from, for its card and its version
    compression.py   A and B in half precision or four bits
    stored_files.py  what is stored, what is given out, and what may come in
    transport.py     between hubs: one file, or any static server
    upkeep.py        damage, garbage, what nobody uses
    compare.py       two adapters side by side, from A and B alone
    ngrams.py        texts as hashed character n-grams
    router.py        which adapter for this question, or none
    routing.py       the hub's own router, fitted again when adapters come and go
    catalog.py       what can be asked of a hub
    store.py         ``Hub``: what can be changed too
    page.py          the hub as a static page

Imports the library's wings and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .blobs import DamageError
    from .compare import Comparison
    from .manifest import Manifest, data_hash
    from .registry import Version
    from .router import Route, Router
    from .store import Hub, resolve
    from .upkeep import Damage

__all__ = [
    "Comparison",
    "Damage",
    "DamageError",
    "Hub",
    "Manifest",
    "Route",
    "Router",
    "Version",
    "data_hash",
    "resolve",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)

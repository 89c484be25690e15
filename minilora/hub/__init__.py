"""Adapters by name and version, each with where it comes from, and the router that chooses one for
a question.

In reading order: ``semver`` (what ``naval@1.2`` means), ``adapter`` (identity), ``blobs`` (files by
their hash), ``manifest`` (what is known of a version), ``database`` and ``registry`` (the rows),
``catalog`` and ``store`` (the hub), ``upkeep`` (damage, garbage), ``compression``,
``stored_files``, ``transport`` (between hubs), ``compare``; then ``ngrams``, ``router``,
``routing``, and ``page``.
"""

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

"""Many adapters on one base, each request with its own, answered together.

In reading order:

    layer.py          a Linear whose rows have adapters of their own, and the rows of a model
    adapter_cache.py  adapters in memory, by content, the least recently used ones dropped
    adapter_store.py  adapters by name, read strictly
    bank.py           ``AdapterBank``: a base, its adapters, and answers

Imports ``hub`` and the library.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .bank import AdapterBank

__all__ = ["AdapterBank"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)

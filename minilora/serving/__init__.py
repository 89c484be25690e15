"""Many adapters on one base, each request with its own, answered together.

In reading order:

    layer.py  a Linear whose rows have adapters of their own, and the rows of a whole model

Imports ``hub`` and the library.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .layer import AdapterRows

__all__ = ["AdapterRows"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)

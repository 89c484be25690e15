"""Bugs that LoRA code has had or invites, and what catches each (``minilora zoo``).

In reading order:

    catalog.py  each bug as one wrong line of this package, with its story
    release.py  show a bug; let it loose for a moment

Imports ``text``; a bug's module is imported when the bug is let loose.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .catalog import BUGS, Bug
    from .release import describe, describe_all, find_bug

__all__ = ["BUGS", "Bug", "describe", "describe_all", "find_bug"]
__getattr__, __dir__ = lazy_imports(__name__)

"""From data to a registered adapter without a person at the keyboard, resumable from any kill.

In reading order:

    audit.py       secrets and licences, which must not be learnt
    gate.py        may the new adapter take the old one's place?
    correction.py  what a user said of an answer
    feedback.py    the store of those: quarantine, dedupe, caps, rotated held-out examples
    recipe.py      what the loop keeps good, and what of two models is compared
    adapt.py       ``Loop``: due, train, gate, promote, watch, roll back

Imports ``hub``, ``serving``, the library's wings and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .adapt import Loop
    from .correction import Feedback
    from .feedback import FeedbackStore
    from .gate import Measured, Pairs, Rules, decide
    from .recipe import Recipe

__all__ = ["Feedback", "FeedbackStore", "Loop", "Measured", "Pairs", "Recipe", "Rules", "decide"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)

"""The lessons' engine: one script in percent cells is run, walked in the terminal, graded, and made a page or a notebook.

What a lesson or a checker needs is here; the rooms are ``cells`` (the parser), ``course`` (where the lessons lie),
``run`` (a lesson from start to end), ``prove`` (is it a good lesson?), ``judge`` (a learner's answer, in its own process),
``record`` (progress), ``walk`` (the terminal), ``grade``, ``notebook`` and ``book``.
"""

from .checking import Wrong, cases, check, close
from .figures import show

__all__ = ["Wrong", "cases", "check", "close", "show"]

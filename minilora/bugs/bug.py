"""One entry of the zoo."""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """One bug: ``right`` stands once in the source of ``where``, and ``wrong`` takes its place.

    >>> from minilora.bugs import find_bug
    >>> find_bug("two zeros").wrong
    'nn.init.zeros_(self.lora_A)'
    """

    name: str
    where: str  # module:function
    right: str
    wrong: str
    story: str
    thread: str
    caught_by: str  # a test, from tests/ on

"""The short form of a lesson: fewer steps and seeds, for tests that ask whether it still runs.

    steps, seeds = full_or_short((300, 5), (20, 2))

``MINILORA_SHORT=1`` chooses the short form; a reader and the book see the full one. Numbers differ
between the two, so an assertion that needs the full run stands under ``if not is_short():``.
"""

from __future__ import annotations

import os
from typing import TypeVar

Choice = TypeVar("Choice")


def is_short() -> bool:
    """Whether the environment asks for the short form.

    >>> from unittest.mock import patch
    >>> with patch.dict("os.environ", MINILORA_SHORT="1"):
    ...     is_short()
    True
    """
    return os.environ.get("MINILORA_SHORT") == "1"


def full_or_short(full: Choice, short: Choice) -> Choice:
    """The first, or the second in the short form.

    >>> from unittest.mock import patch
    >>> with patch.dict("os.environ", MINILORA_SHORT="1"):
    ...     full_or_short(300, 20)
    20
    """
    return short if is_short() else full

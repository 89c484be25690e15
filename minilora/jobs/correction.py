"""One correction by a user: what was asked, what was answered, what should have been.

The hash of a question decides whether its examples are held out: the same on every machine, and all
corrections of one question stand on one side.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..text import hash_of_texts
from ..training.examples import Example, check_text

OWNER = "owner"  # source of the questions that the loop's owner reserved; no user's name
FIELDS = "source, adapter, request, correction, answer, context, topic, tenant"


@dataclass(frozen=True)
class Feedback:
    """One correction: ``request`` (and ``context``) got ``answer`` and should have got
    ``correction``; equal texts say that the answer was right.

    >>> Feedback("ann", "3f2a", "Status?", "Hull 90%.", context="Log: Hull 90%.").example.output
    'Hull 90%.'
    """

    source: str
    adapter: str
    request: str
    correction: str
    answer: str = ""
    context: str = ""
    topic: str = ""
    tenant: str = "default"

    def __post_init__(self) -> None:
        for name in FIELDS.split(", "):
            check_text(getattr(self, name), name)
        for name in ("source", "request", "correction"):
            if not getattr(self, name).strip():
                raise ValueError(f"feedback needs a {name}, got an empty one")

    @property
    def example(self) -> Example:
        """What it teaches."""
        return Example(self.request, self.correction, self.context)

    @property
    def failed(self) -> bool:
        """Whether the answer was another than the correction."""
        return self.answer.strip() != self.correction.strip()

    @property
    def question(self) -> str:
        """The hash of what was asked."""
        return hashed(self.request, self.context)

    @property
    def digest(self) -> str:
        """The hash of what it teaches."""
        return hashed(self.request, self.context, self.correction)

    @property
    def heldout(self) -> bool:
        """Whether it judges instead of teaching: one question in five."""
        return is_heldout(self.question)


@dataclass(frozen=True)
class Slice:
    """How a topic of a source fared: ``failed`` of ``count`` answers were corrected."""

    topic: str
    source: str
    failed: int
    count: int


def hashed(*texts: str) -> str:
    """The hash of some texts, spaces aside. Stored: it may not change."""
    return hash_of_texts(" ".join(text.split()) for text in texts).hex()


def is_heldout(question: str) -> bool:
    """Whether the examples of a question, by its hash, judge instead of teaching.

    >>> [is_heldout(f"{n:08x}") for n in (0, 1, 5)]
    [True, False, True]
    """
    return int(question[:8], 16) % 5 == 0

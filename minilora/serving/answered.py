"""What a server tells whoever learns from it: one answer, and who gave it.

``service.on_answer`` gets one of these when a request has been answered whole, and before the
response ends, so that feedback under the request's id always finds it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answered:
    """One answered request. ``adapter`` and ``content`` are empty where the base answered.

    ``question`` is the user's text where it is all that was asked, and can be learnt alone: a chat
    of one message, answered once. Else it is empty.
    """

    tenant: str
    request: str
    adapter: str
    content: str
    user: str
    question: str
    answer: str

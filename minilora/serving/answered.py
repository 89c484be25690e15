"""What a server tells whoever learns from it: one answer, and who gave it.

``service.on_answer`` gets one of these when a request has been answered whole, and before the
response ends, so that feedback under the request's id always finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .protocol import ChatRequest, CompletionRequest
from .requests import Finished


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


def answered(
    tenant: str,
    request: str,
    asked: ChatRequest | CompletionRequest,
    target: Any,
    ends: Sequence[Finished],
) -> Answered:
    """What to tell of a request that ``target``, a ``service.Target``, has answered."""
    messages = asked.messages if isinstance(asked, ChatRequest) else []
    alone = len(messages) == len(ends) == 1 and messages[0].role == "user"
    who = target.adapter or "", target.digest or "", asked.user or ""
    return Answered(tenant, request, *who, asked.question if alone else "", ends[0].text)

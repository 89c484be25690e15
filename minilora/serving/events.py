"""Server-sent events, the form of a stream of answers (html.spec.whatwg.org, section 9.2).

No torch: the gateway writes them too.
"""

from __future__ import annotations

import json
from typing import Any

DONE = "data: [DONE]\n\n"  # OpenAI's end of a stream


def event(data: Any) -> str:
    """One event.

    >>> event({"a": 1})
    'data: {"a":1}\\n\\n'
    """
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"

"""What a request is answered when it cannot be done: OpenAI's shape of an error, as an exception.

    {"error": {"message": …, "type": …, "param": …, "code": …}}      and an HTTP status

Every part of the server raises ``Refused``; the app turns it into a response in one place, with the
headers it names. What the official client does with it follows from the status: it retries 408,
409, 429 and 5xx, after as many seconds as ``retry-after`` says (openai-python, ``_base_client.py``,
``_should_retry``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not done, and what its sender is told.

    ``param`` names the field that is wrong, ``code`` is for programs. ``type`` follows from the
    status unless it is given.

    >>> error = Refused(400, "expected n from 1 to 8, got 99", param="n")
    >>> error.body()["error"]["type"], error.body()["error"]["param"]
    ('invalid_request_error', 'n')
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        usual = "server_error" if status >= 500 else "invalid_request_error"
        self.type = type or TYPES.get(status, usual)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """The response's JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def unknown_model(name: str) -> Refused:
    """404, the same for a model that does not exist and for one that this key may not use.

    >>> unknown_model("naval").body()["error"]["code"]
    'model_not_found'
    """
    message = f"the model {name[:80]!r} does not exist or you do not have access to it"
    return Refused(404, message, param="model", code="model_not_found")


def wait_first(
    seconds: float, message: str, status: int = 429, code: str = "rate_limit_exceeded"
) -> Refused:
    """429 or 503 that says after how many seconds it is worth asking again.

    >>> wait_first(1.2, "too many requests").headers
    {'retry-after': '2'}
    """
    headers = {"retry-after": str(max(1, math.ceil(seconds)))}
    return Refused(status, message, code=code, headers=headers)

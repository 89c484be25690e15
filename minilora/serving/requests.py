"""What is asked of an engine, checked before anything is done, and the answer as it comes.

    request    prompt ids, adapter, tenant, how to choose tokens, what ends the text
    answer     tokens from the engine's thread; pieces of text, or the whole, for whoever asked

The engine's thread only passes tokens on; the text is made in the thread that reads it
(growing_text.py), so a slow reader costs the engine nothing.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from ..checks import is_number
from ..model.own_forms import question
from ..model.sampling import Sampling
from .adapter_store import Chosen
from .growing_text import GrowingText

MOST_STOPS = 16


class RequestFailed(RuntimeError):
    """This request has no answer; the message says why. The others go on."""


class Busy(RuntimeError):
    """Too many requests are waiting: ask again later."""


@dataclass(frozen=True)
class Request:
    """A request that was checked; ``prompt`` are token ids, ``stops`` end the text before them.

    ``logprobs``: how many tokens to list beside each chosen one; None: the answer has none.
    ``raw``: it goes on with a text, so its spaces at both ends are kept.
    """

    prompt: tuple[int, ...]
    adapter: Chosen
    tenant: str
    sampling: Sampling
    stops: tuple[str, ...]
    logprobs: int | None = None
    raw: bool = False

    @property
    def cost(self) -> int:
        """The most tokens that it can take."""
        return len(self.prompt) + self.sampling.max_new_tokens


class TokenLogprob(NamedTuple):
    """log p of a token, and of the likeliest ones in its place, before temperature and cuts."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: Tensor, token: int, most: int) -> TokenLogprob:
    """log softmax of one row of logits (vocab,) at a token and at the ``most`` likeliest.

    >>> import torch
    >>> round(token_logprob(torch.tensor([0.0, 0.0]), 1, most=1).logprob, 4)
    -0.6931
    """
    logprobs = logits.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(min(most, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)


@dataclass(frozen=True)
class Finished:
    """An answer at its end.

    ``reason`` is ``stop`` (an end token or a stop string), ``length`` or ``cancelled``. ``key`` are
    the contents and weights of the adapters that computed it. Seconds from ``submit``: ``waited``
    to the first token, ``took`` to the end.
    """

    text: str
    ids: tuple[int, ...]
    reason: str
    key: tuple[tuple[str, float], ...]
    waited: float | None
    took: float


Event = Finished | RequestFailed | int  # what an engine says of an answer: a token, or the end
Known = tuple[Finished, tuple[TokenLogprob, ...]]  # an answer that was given before


class Answer:
    """The answer to a request: iterate for pieces of text, or wait for ``result``. One reader."""

    def __init__(
        self,
        request: Request,
        tokenizer: Any,
        cancel: Callable[[Answer], None],
        notify: Callable[[Event], None] | None = None,
    ):
        self.request, self.tokenizer = request, tokenizer
        self.key: tuple[tuple[str, float], ...] = ()
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.cancelling, self.notify = cancel, notify
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []  # of the ids, if the request asks for them
        self.end: Finished | RequestFailed | None = None
        self.replayed = False

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, together the result's; leaving the loop cancels the rest.

        Raises ``RequestFailed`` as ``result``.
        """
        text = self.text()
        try:
            while not isinstance(event := self.next_event(), Finished):
                if piece := text.push(event):
                    yield piece
            if rest := event.text[len(text.shown) :]:
                yield rest
        finally:
            self.cancel()

    def result(self, timeout: float | None = None) -> Finished:
        """The whole answer. Raises ``RequestFailed``, and ``queue.Empty`` after ``timeout``
        seconds without a token. An engine that nobody starts or steps never answers."""
        while not isinstance(event := self.next_event(timeout), Finished):
            pass
        return event

    def next_event(self, timeout: float | None = None) -> int | Finished:
        """The next token, or the end, again and again. Raises ``RequestFailed``."""
        event = self.end or self.events.get(timeout=timeout)
        if isinstance(event, int):
            return event
        self.end = event
        if isinstance(event, RequestFailed):
            raise event
        return event

    def cancel(self) -> None:
        """Free the row at the next step; nothing happens to an answer that has ended."""
        if self.end is None:
            self.cancelling(self)

    def text(self) -> GrowingText:
        """An empty text, for tokens of this answer."""
        request = self.request
        return GrowingText(self.tokenizer, list(request.prompt), request.stops, request.raw)

    def whole_text(self) -> str:
        """The text of all tokens so far."""
        text = self.text()
        text.ids = self.ids
        return text.finish()

    def put(self, event: Event) -> None:
        """The engine's side: pass on a token or the end."""
        if self.first_token is None and isinstance(event, int):
            self.first_token = time.monotonic()
        self.events.put(event)
        try:
            if self.notify is not None:
                self.notify(event)
        except Exception:  # who asked cannot hear any more; the engine's thread goes on
            self.notify = None
            self.cancelling(self)

    def finish(self, reason: str) -> None:
        """The engine's side: the end."""
        try:
            text = "" if self.tokenizer is None else self.whole_text()
        except Exception as error:
            self.fail(error)
            return
        waited = None if self.first_token is None else self.first_token - self.submitted
        took = time.monotonic() - self.submitted
        self.put(Finished(text, tuple(self.ids), reason, self.key, waited, took))

    def replay(self, known: Known | None) -> bool:
        """Instead of the engine: the tokens and the end of an equal request's answer, if any."""
        if known is None:
            return False
        finished, logprobs = known
        self.ids, self.logprobs, self.key = list(finished.ids), list(logprobs), finished.key
        self.replayed = True
        for token in finished.ids:
            self.put(token)
        self.put(replace(finished, waited=0.0, took=0.0))
        return True

    def fail(self, error: BaseException) -> None:
        """The engine's side: the end, with an error."""
        failed = RequestFailed(str(error) or type(error).__name__)
        failed.__cause__ = error
        self.put(failed)


def checked_request(
    model: Any,
    prompt: Any,
    chosen: Chosen,
    tenant: str,
    stop: str | Sequence[str],
    ends: Sequence[int] | None,
    settings: tuple[int, float, int | None, int],
    top_p: float | None,
    logprobs: int | None = None,
    raw: bool = False,
) -> Request:
    """A request, for no more tokens than there are positions left. Raises ``ValueError``.

    ``settings``: ``max_new_tokens``, ``temperature``, ``top_k``, ``seed``.
    """
    if not isinstance(tenant, str):
        raise ValueError(f"expected a text for the tenant, got {tenant!r:.80}")
    ends = tuple(model.tokenizer.eos_ids) if ends is None else checked_ends(ends)
    sampling = Sampling(*settings, ends, True, top_p)
    if logprobs is not None and (not is_number(logprobs, int) or logprobs < 0):
        raise ValueError(f"logprobs: expected a number from 0 on, or None, got {logprobs!r}")
    positions = model.config.max_position_embeddings
    ids = prompt_ids(model.tokenizer, prompt, positions)
    most = min(sampling.max_new_tokens, positions - len(ids))
    sampling = replace(sampling, max_new_tokens=most)
    return Request(ids, chosen, tenant, sampling, checked_stops(stop), logprobs, raw)


def prompt_ids(tokenizer: Any, prompt: Any, positions: int) -> tuple[int, ...]:
    """Token ids of a text, (instruction, context), messages or ids. Raises ``ValueError``.

    A text is an instruction without context.
    """
    if isinstance(prompt, str):
        prompt = (prompt, "")
    if isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[0], str):
        if not prompt[0].strip():
            raise ValueError("the prompt is empty: expected at least one token")
        prompt = question(*prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise ValueError(
            "expected a text, (instruction, context), messages or token ids as the prompt, "
            f"got {prompt!r:.80}"
        )
    if not prompt:
        raise ValueError("the prompt is empty: expected at least one token")
    if isinstance(prompt[0], int):
        ids = tuple(prompt)
        size = len(tokenizer)
        if wrong := [each for each in ids if type(each) is not int or not 0 <= each < size]:
            raise ValueError(f"expected token ids from 0 to {size - 1}, got {wrong[0]!r}")
    else:
        ids = tuple(tokenizer.apply_chat_template(prompt, add_generation_prompt=True))
    if len(ids) >= positions:
        raise ValueError(
            f"a prompt of {len(ids)} tokens leaves no room for an answer: the base has "
            f"{positions} positions"
        )
    return ids


def checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple. Raises ``ValueError`` for an empty one, or for too many."""
    stops = (stop,) if isinstance(stop, str) else stop
    listed = isinstance(stops, list | tuple) and len(stops) <= MOST_STOPS
    if not listed or not all(isinstance(each, str) and each for each in stops):
        raise ValueError(
            f"stop: expected up to {MOST_STOPS} texts that are not empty, got {stop!r}"
        )
    return tuple(stops)


def checked_ends(ends: Sequence[int]) -> tuple[int, ...]:
    """Token ids that end an answer, as a tuple. Raises ``ValueError``."""
    if not isinstance(ends, list | tuple) or not all(type(each) is int for each in ends):
        raise ValueError(f"ends: expected a list of token ids, or None, got {ends!r:.80}")
    return tuple(ends)

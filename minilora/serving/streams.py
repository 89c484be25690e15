"""From the engine's thread into an event loop: answers as they come, and clients that leave.

The engine's thread must never wait for a client, and the event loop must never wait for the engine.
Between them stands a bell (``Doorbell``): the engine rings it after each token, which only notes
the request and wakes the loop; the loop then takes all tokens that are there. With 64 streams a
step of the engine rings 64 times and wakes the loop once. A loop that is late takes several tokens
at once, so a slow machine sends longer pieces instead of falling behind.

**A token is cheap, an event of a stream is not**: its JSON, its frame and its way into the socket
cost the event loop as much as a small model's token. So a first token and an end are sent at once,
and what comes between waits for ``PAUSE``, or longer where that would be more than ``MOST`` events
a second of all streams together: with 64 streams a tenth of a second. A stream is as long as ever,
in fewer pieces. An answer that is sent whole wakes nobody before its end. (vLLM's
``stream_interval`` counts tokens instead, so a slow model's reader waits for longer.)

**Who has left is noticed while waiting.** A server that looks only when it sends goes on computing
an answer in JSON to the end for nobody (vllm-project/vllm #9428, #54947; sgl-project/sglang
#36552). Here one task waits for ``http.disconnect`` beside the answer, in both forms, and cancels
the rows, which the engine frees in its next step.

Left out: threads for slow readers. What a client does not read waits in the socket and in
``Answer.events``, at most ``max_tokens`` numbers; the row is free as soon as it has computed them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request

from .growing_text import GrowingText
from .requests import Answer, Event, Finished, TokenLogprob

PAUSE = 0.05  # seconds; a reader's eye sees no difference, and first tokens do not wait
MOST = 640  # events a second


class Doorbell:
    """Rung in any thread; sets events of one event loop, many with one call into it.

    It is answered at most once in ``pause`` seconds, and sets at most ``most`` events a second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pause: float = 0.0, most: float = math.inf):
        self.loop, self.pause, self.most = loop, pause, most
        self.due = -math.inf  # when it may be answered again
        self.rung: deque[asyncio.Event] = deque()
        self.called = False

    def press(self, event: asyncio.Event) -> None:
        """Have an event set in the loop soon."""
        self.rung.append(event)
        if not self.called:  # else the loop will find this event too: it lowers the flag first
            self.called = True
            self.loop.call_soon_threadsafe(self.hear)

    def hear(self) -> None:
        """The loop's side: answer now, or when the pause is over."""
        wait = self.due - self.loop.time()
        if wait > 0:
            self.loop.call_later(wait, self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        """Set all events that it was rung for."""
        self.called, events = False, dict[asyncio.Event, None]()  # each once, in order
        while self.rung:
            events[self.rung.popleft()] = None
        self.due = self.loop.time() + max(self.pause, len(events) / self.most)
        for event in events:
            event.set()


class Doorbells:
    """Of one event loop: one for what is sent at once, one for what may wait for ``PAUSE``."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.at_once, self.soon = Doorbell(loop), Doorbell(loop, PAUSE, MOST)

    def button(self, event: asyncio.Event, stream: bool) -> Callable[[Event], None]:
        """What to press for an answer's events: its ``notify``; without ``stream``, for its end."""
        begun = False

        def press(what: Event) -> None:
            nonlocal begun
            first, begun = not begun, True
            if not isinstance(what, int) or (stream and first):
                self.at_once.press(event)
            elif stream:
                self.soon.press(event)

        return press


@dataclass(frozen=True)
class Part:
    """What is new of an answer: text, the tokens' log probabilities, and its end if it has come."""

    index: int
    text: str
    logprobs: Sequence[TokenLogprob]
    end: Finished | None


class Reader:
    """Reads one answer for one client."""

    def __init__(self, index: int, answer: Answer):
        self.index, self.answer = index, answer
        self.text: GrowingText = answer.text()
        self.read = 0  # log probabilities

    def new_part(self) -> Part | None:
        """What has come since the last call; None if nothing. Raises ``RequestFailed``."""
        tokens, events = [], self.answer.events
        while not events.empty():
            event = self.answer.next_event()
            if isinstance(event, Finished):
                rest = event.text[len(self.text.shown) :]
                return Part(self.index, rest, self.new_logprobs(), event)
            tokens.append(event)
        if not tokens:
            return None
        text = self.text.push(*tokens)
        return Part(self.index, text, self.new_logprobs() if text else (), None)

    def new_logprobs(self) -> Sequence[TokenLogprob]:
        """Of the tokens since the last part that had text."""
        new = self.answer.logprobs[self.read :]
        self.read += len(new)
        return new


async def parts_of(answers: Sequence[Answer], rung: asyncio.Event) -> AsyncIterator[Part]:
    """The parts of several answers as they come, until all have ended. Raises ``RequestFailed``."""
    readers = [Reader(index, answer) for index, answer in enumerate(answers)]
    while readers:
        await rung.wait()
        rung.clear()
        for reader in list(readers):
            part = reader.new_part()
            if part is not None:
                if part.end is not None:
                    readers.remove(reader)
                yield part


@contextmanager
def cancelled_when_gone(request: Request, answers: list[Answer]) -> Iterator[None]:
    """Inside, a client that leaves cancels the answers; so does leaving the block, whatever for."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    task = asyncio.create_task(wait())
    try:
        yield
    finally:
        task.cancel()
        cancel()

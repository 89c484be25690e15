"""When an adapter fails: who answers instead, and when the adapter is tried again.

One breaker an adapter (Nygard, *Release It!*, 2nd ed., chapter 5, "Circuit Breaker")::

    closed      requests pass; ``failures`` of the last ``window`` results open it
    open        nobody passes for ``cooldown`` seconds, and twice as long after each relapse
    half-open   one probe at a time; ``successes`` in a row close it, one failure opens it

Two thresholds instead of one, and an empty window after closing: an adapter that was just let back
in is not thrown out by one more failure, and one success does not let it in. A failure is an error
of the server's, or a first token later than ``budget`` seconds; a client that left or asked for
nonsense says nothing about the adapter. A late result of before the opening does not count.

Quality is different: a probe that succeeds is no sign of it. An adapter that an experiment has
shown to be worse (E ≥ 1/α, experiments.py) stays out for as long as that experiment runs; where
nobody may step in, as for a champion, it answers and says so: a worse answer is better than none.

**Who answers instead**: the champion of the same name, if it is another version; the base only
where the caller allowed it (``x-minilora-fallback: base``); else nobody, which is a 503 that says
when to ask again. The response names who answered and why. Never after the first byte: the
beginning of one model's answer and the end of another's are no answer.

Left out: breakers that several processes share. Each worker learns for itself; the gateway sends an
adapter's requests to the same one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from .refusals import wait_first

LONGEST = 64  # cool-downs: the most that one grows to


@dataclass(frozen=True)
class Limits:
    """When a breaker opens and closes; seconds. ``budget``: None asks for no speed."""

    failures: int = 5
    window: int = 20
    cooldown: float = 5.0
    successes: int = 3
    budget: float | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.failures <= self.window and self.successes >= 1 and self.cooldown > 0):
            raise ValueError(f"expected 1 ≤ failures ≤ window, successes ≥ 1, cooldown > 0: {self}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"a first token takes time: expected seconds, got {self.budget}")


class Breaker:
    """One adapter's; ``clock`` gives seconds and never goes back.

    >>> now = [0.0]
    >>> breaker = Breaker(Limits(failures=2, window=4, cooldown=5), clock=lambda: now[0])
    >>> for ok in (False, True, False):
    ...     breaker.report(breaker.enter(), ok)
    >>> breaker.enter() is None, breaker.reason
    (True, '2 of its last 3 answers failed')
    >>> now[0] = 5.0
    >>> probe = breaker.enter()
    >>> probe is not None, breaker.enter() is None  # one at a time
    (True, True)
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits, self.clock = limits, clock
        self.results: deque[bool] = deque(maxlen=limits.window)
        self.is_open, self.reason = False, ""
        self.round = 0  # how often it has opened or closed: a ticket of before counts no more
        self.relapses = self.successes = 0
        self.opened = self.closed = -float("inf")
        self.probe_since: float | None = None

    @property
    def cooldown(self) -> float:
        """Seconds, of the present opening."""
        return self.limits.cooldown * min(2**self.relapses, LONGEST)

    @property
    def wait(self) -> float:
        """Seconds until a probe may pass."""
        return max(0.0, self.opened + self.cooldown - self.clock()) if self.is_open else 0.0

    def enter(self) -> int | None:
        """A ticket for a request to this adapter; None: not now."""
        if self.is_open:
            now = self.clock()
            lost = self.probe_since is not None and now >= self.probe_since + self.cooldown
            if self.wait or not (self.probe_since is None or lost):
                return None
            self.probe_since = now
        return self.round

    def report(self, ticket: int, ok: bool | None, seconds: float = 0.0) -> None:
        """How it went; None: nothing that says anything about the adapter."""
        if ticket != self.round:
            return
        self.probe_since = None
        if ok is None:
            return
        budget = self.limits.budget
        ok = ok and (budget is None or seconds <= budget)
        if self.is_open:
            self.successes += ok
            if not ok:
                self.relapses += 1
                self.open("a probe failed")
            elif self.successes >= self.limits.successes:
                self.close()
            return
        self.results.append(ok)
        failures = self.results.count(False)
        if failures >= self.limits.failures:
            calm = self.clock() - self.closed > 2 * self.cooldown
            self.relapses = 0 if calm else self.relapses + 1
            self.open(f"{failures} of its last {len(self.results)} answers failed")

    def open(self, reason: str) -> None:
        """Let nobody in, from now on for the cool-down."""
        self.is_open, self.reason, self.opened = True, reason, self.clock()
        self.successes, self.round, self.probe_since = 0, self.round + 1, None

    def close(self) -> None:
        """Let everybody in, with an empty window."""
        self.is_open, self.closed, self.round = False, self.clock(), self.round + 1
        self.results.clear()


@dataclass(frozen=True)
class Choice:
    """Who is to answer: None is the base. ``why`` is empty for the adapter that was asked for."""

    adapter: str | None
    ticket: int
    why: str = ""


class Failover:
    """A breaker for each adapter, and who answers in its place. Any thread may call.

    ``worse(adapter)``: why it must not answer though it works, or None (``Experiments.worse``).

    >>> failover = Failover(Limits(failures=1, window=1))
    >>> failover.report(failover.choose("naval@1.1.0"), False)
    >>> failover.choose("naval@1.1.0", ["naval@1.0.0"]).why
    'naval@1.0.0 answers for naval@1.1.0: 1 of its last 1 answers failed'
    """

    def __init__(
        self,
        limits: Limits | None = None,
        worse: Callable[[str], str | None] = lambda adapter: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limits, self.worse, self.clock = limits or Limits(), worse, clock
        self.breakers: dict[str | None, Breaker] = {}
        self.lock = threading.Lock()

    def choose(
        self,
        adapter: str | None,
        others: Iterable[str | None] = (),
        failed: Sequence[str | None] = (),
    ) -> Choice:
        """The first that may answer: the adapter, else one of ``others``, looked at when needed.

        ``failed``: who has been tried for this request. Every choice must be reported. Raises
        ``Refused`` (503) when nobody is left.
        """
        reasons: list[str] = []
        worse: dict[str, str] = {}
        seen: set[str | None] = set()
        waits = [1.0]
        for name in chain([adapter], others):
            if name in seen:
                continue
            seen.add(name)
            if name in failed:
                reasons.append("it failed just now")
            elif name is not None and (bad := self.worse(name)):
                reasons.append(bad)
                worse[name] = bad
            else:
                ticket, wait, reason = self.enter(name)
                if ticket is not None:
                    instead = f"{name or 'the base'} answers for {adapter}: "
                    return Choice(name, ticket, instead + reasons[0] if reasons else "")
                reasons.append(reason)
                waits.append(wait)
        for name, bad in worse.items():
            ticket, wait, reason = self.enter(name)
            if ticket is not None:
                why = f"{name} answers, since nobody may step in: {bad}"
                if name != adapter:
                    why = f"{name} answers for {adapter}: {reasons[0]}; nobody better may: {bad}"
                return Choice(name, ticket, why)
            reasons.append(reason)
            waits.append(wait)
        message = f"{adapter or 'the base'} cannot answer now: {'; '.join(reasons)}"
        raise wait_first(min(waits[1:] or waits), message, 503, "failing")

    def enter(self, name: str | None) -> tuple[int | None, float, str]:
        """A breaker's ticket, or how long to wait and why."""
        with self.lock:
            breaker = self.breaker(name)
            return breaker.enter(), breaker.wait, breaker.reason

    def report(self, choice: Choice, ok: bool | None, seconds: float = 0.0) -> None:
        """How a choice went: ``seconds`` to its first token; None says nothing, as a client that
        left.
        """
        with self.lock:
            self.breaker(choice.adapter).report(choice.ticket, ok, seconds)

    def breaker(self, name: str | None) -> Breaker:
        """An adapter's, made when it is first needed: names are checked before they come here."""
        return self.breakers.setdefault(name, Breaker(self.limits, self.clock))

    def states(self) -> dict[str, str]:
        """Each adapter that is open, and why; for people."""
        with self.lock:
            return {str(name): b.reason for name, b in self.breakers.items() if b.is_open}

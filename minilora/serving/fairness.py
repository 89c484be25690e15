"""Who comes next: deficit round robin among tenants, so that nobody's backlog holds others up.

Each tenant has a queue and a credit of tokens. The tenants take turns. On a turn a tenant serves
requests for as long as its credit covers their cost; then it gets ``quantum`` more credit and goes
to the end. A thousand requests of one tenant so cost another, who comes with one, a single turn,
and over time all tenants that wait get the same number of tokens, whatever the sizes of their
requests (Shreedhar and Varghese, 1996, section 3; a request here is a packet there). A small
quantum lets a newcomer in sooner. A tenant with nothing waiting loses its credit, so nobody saves
up.

Within a tenant the order is that of arrival. Nothing is ordered by adapter: a server that prefers
the adapters it has already loaded starves the others (vllm-project/vllm #15422, #16876).

Left out: weights of tenants, and taking a row away from a request in progress.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")
LATELY = 10.0  # seconds


class Shares:
    """How many of ``slots`` rows a tenant may hold: its part of those who asked lately.

    A row costs all others time in every step, and a prompt holds up all rows, so whoever fills the
    batch slows down who asks for one row. While a tenant is alone it may have all rows, and its
    requests begin at any time. Beside others it has its share, and its further prompts wait until
    the rows have got a few tokens since anybody's last further ones; the first row of a tenant
    waits for nothing, and nobody waits for it.

    >>> shares = Shares(slots=64, clock=lambda: 0.0)
    >>> shares.asks("max")
    >>> shares.full(["max"] * 40)
    set()
    >>> shares.asks("ann")
    >>> shares.full(["max"] * 40)
    {'max'}
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic):
        self.slots, self.clock = slots, clock
        self.last: dict[str, float] = {}  # when each tenant asked

    def asks(self, tenant: str) -> None:
        """A tenant asks for something."""
        self.last[tenant] = self.clock()

    def full(self, holders: Iterable[str], several: bool = True) -> set[str]:
        """Who gets no further row now; ``holders``: the tenant of each row.

        Without ``several`` that is whoever has one, unless it is alone.
        """
        rows, now = Counter(holders), self.clock()
        self.last = {each: at for each, at in self.last.items() if now - at < LATELY or rows[each]}
        if len(self.last) < 2:
            share = self.slots
        else:
            share = max(1, self.slots // len(self.last)) if several else 1
        return {tenant for tenant, held in rows.items() if held >= share}


class DeficitRoundRobin(Generic[Item]):
    """Queues by tenant; ``pop`` takes turns. ``quantum`` is the credit of a turn, in tokens.

    >>> waiting = DeficitRoundRobin(quantum=10)
    >>> for name in ("a1", "a2", "a3"):
    ...     waiting.push("a", name, cost=10)
    >>> waiting.push("b", "b1", cost=10)
    >>> [waiting.pop() for _ in range(4)]
    ['a1', 'b1', 'a2', 'a3']
    """

    def __init__(self, quantum: int = 32):
        self.quantum = quantum
        self.queues: OrderedDict[str, deque[tuple[Item, int]]] = OrderedDict()
        self.credit: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def push(self, tenant: str, item: Item, cost: int) -> None:
        """Queue an item behind its tenant's others."""
        self.queues.setdefault(tenant, deque()).append((item, cost))
        self.credit.setdefault(tenant, 0)

    def pop(self, blocked: Container[str] = ()) -> Item | None:
        """The next item of a tenant that is not ``blocked``; None when there is none."""
        turns = deque(tenant for tenant in self.queues if tenant not in blocked)
        self.skip_idle_rounds(turns)
        while turns:
            tenant = turns[0]
            item, cost = self.queues[tenant][0]
            if cost <= self.credit[tenant]:
                self.queues[tenant].popleft()
                self.credit[tenant] -= cost
                self.forget_if_empty(tenant)
                return item
            self.credit[tenant] += self.quantum
            self.queues.move_to_end(tenant)
            turns.rotate(-1)
        return None

    def skip_idle_rounds(self, turns: Iterable[str]) -> None:
        """Give at once the credit of the rounds in which none of these could be served."""
        turns = list(turns)
        short = [self.queues[tenant][0][1] - self.credit[tenant] for tenant in turns]
        rounds = -(-max(0, min(short, default=0)) // self.quantum)
        for tenant in turns:
            self.credit[tenant] += rounds * self.quantum

    def refund(self, tenant: str, tokens: int) -> None:
        """Give back what a request did not use, if its tenant still waits for something.

        No more than up to one turn's credit: who asks for much and uses little buys no queue.
        """
        if tenant in self.credit:
            credit = self.credit[tenant]
            self.credit[tenant] = max(credit, min(credit + tokens, self.quantum))

    def remove(self, item: Item) -> bool:
        """Take an item out; False if it does not wait here."""
        for tenant, queue in self.queues.items():
            for entry in queue:
                if entry[0] is item:
                    queue.remove(entry)
                    self.forget_if_empty(tenant)
                    return True
        return False

    def forget_if_empty(self, tenant: str) -> None:
        """A tenant that waits for nothing has no credit."""
        if not self.queues[tenant]:
            del self.queues[tenant], self.credit[tenant]

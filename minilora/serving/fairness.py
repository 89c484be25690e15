"""Who comes next: deficit round robin among tenants, so that nobody's backlog holds others up.

Each tenant has a queue and a credit of tokens. The tenants take turns. On a turn a tenant serves
requests for as long as its credit covers their cost; then it gets ``quantum`` more credit and goes
to the end. A thousand requests of one tenant so cost another, who comes with one, a single turn,
and over time all tenants that wait get the same number of tokens, whatever the sizes of their
requests (Shreedhar and Varghese, 1996, section 3; a request here is a packet there). A small
quantum lets a newcomer in sooner. Who has nothing waiting loses the credit, so nobody saves up.

Within a tenant the order is that of arrival. Nothing is ordered by adapter: a server that prefers
the adapters it has already loaded starves the others (vllm-project/vllm #15422, #16876).

Left out: weights of tenants, and taking a row away from a request in progress.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


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

    def pop(self) -> Item | None:
        """The next item; None when nothing waits."""
        self.skip_idle_rounds()
        while self.queues:
            tenant, queue = next(iter(self.queues.items()))
            item, cost = queue[0]
            if cost <= self.credit[tenant]:
                queue.popleft()
                self.credit[tenant] -= cost
                self.forget_if_empty(tenant)
                return item
            self.credit[tenant] += self.quantum
            self.queues.move_to_end(tenant)
        return None

    def skip_idle_rounds(self) -> None:
        """Give at once the credit of the rounds in which nobody could be served."""
        short = [queue[0][1] - self.credit[tenant] for tenant, queue in self.queues.items()]
        rounds = -(-max(0, min(short, default=0)) // self.quantum)
        for tenant in self.queues:
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

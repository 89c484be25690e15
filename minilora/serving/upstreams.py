"""Where the gateway may send a request: servers, whether they are well, and which comes first.

**Rendezvous hashing** (Thaler and Ravishankar, *Using name-based mappings to increase hit rates*,
IEEE/ACM Transactions on Networking 6(1), 1998): every server draws a number for every adapter, and
an adapter's servers are ranked by it::

    rank(adapter) = servers sorted by blake2b(server, adapter), the largest first

So an adapter lives in the memory of few servers, its first ``PLACES``; of those the less busy one
gets the request. When a server is gone, only what it had first moves, each adapter to its own next
one; when it is back, exactly that returns. Versions of an adapter stay together.

**Health**: ``/ready`` once a second; three misses in a row and a server is down, one answer and it
is up. What waits for a server that goes down does not go on waiting (``down``).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpx

PLACES = 2  # servers that an adapter's requests are spread over
MISSES, HOPELESS = 3, 30  # misses in a row: it is down; it is hung, and is killed
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)


class Upstream:
    """One server. ``name`` is what the hash sees; it stays when a restart changes the address.

    ``models``: the adapters that it alone answers, as the service of a domain; none: any other's.
    """

    def __init__(self, name: str, address: str | None = None, models: Iterable[str] = ()):
        self.name, self.address, self.models = name, address, frozenset(models)
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.busy = self.misses = 0
        self.kill: Callable[[], None] = lambda: None
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=2.0), limits=LIMITS, trust_env=False
        )

    def come_up(self) -> None:
        """It may be sent requests."""
        self.misses = 0
        self.down.clear()
        self.up.set()

    def go_down(self) -> None:
        """It may not; what waits for it is told."""
        self.up.clear()
        self.down.set()

    async def check(self, prepare: Callable[[Upstream], Awaitable[None]]) -> None:
        """Ask it once whether it is ready; ``prepare`` it before its first request."""
        if self.address is None:
            return
        try:
            answer = await self.client.get(f"{self.address}/ready", timeout=5.0)
            well = answer.status_code == 200
            if well and not self.up.is_set():
                await prepare(self)
        except httpx.HTTPError:
            well = False
        if well:
            self.come_up()
            return
        self.misses += 1
        if self.misses >= MISSES:
            self.go_down()
        if self.misses >= HOPELESS:
            self.misses = 0
            self.kill()


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """Names in the order in which they answer for a key.

    >>> ranked("naval", ["w0", "w1", "w2"]), ranked("naval", ["w0", "w2"])
    (['w2', 'w0', 'w1'], ['w2', 'w0'])
    """

    def draw(name: str) -> bytes:
        return hashlib.blake2b(f"{len(name)}:{name}{key}".encode(), digest_size=8).digest()

    return sorted(names, key=draw, reverse=True)


def candidates(upstreams: Sequence[Upstream], model: str | None) -> list[Upstream]:
    """The servers that are up and may answer for a model, the best first.

    Without a model, or for ``auto``, any may, and the least busy comes first.
    """
    adapter = (model or "").partition("@")[0]
    pool = of_domain(upstreams, adapter)
    well = {upstream.name: upstream for upstream in pool if upstream.up.is_set()}
    if adapter in ("", "auto"):
        return sorted(well.values(), key=lambda upstream: upstream.busy)
    order = [well[name] for name in ranked(adapter, well)]
    return sorted(order[:PLACES], key=lambda upstream: upstream.busy) + order[PLACES:]


def of_domain(upstreams: Sequence[Upstream], adapter: str) -> list[Upstream]:
    """The adapter's own service where it has one, else those of no domain."""
    own = [upstream for upstream in upstreams if adapter in upstream.models]
    return own or [upstream for upstream in upstreams if not upstream.models]

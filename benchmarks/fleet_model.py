"""A fleet of adapter servers as a discrete-event simulation: a heap of events, LRU at each level.

A request goes through these steps, and each has a queue or a cache of its own:

    router      rendezvous hashing among a region's servers (the less busy of ``places``), or random
    bank        adapters in a server's memory: LRU
    host        adapters on the server's disk: LRU; behind it a reader, as in adapter_store.py
    store       the region's copy: LRU; ``hop`` seconds and the region's line
    registry    all adapters, in one place: ``far`` seconds and its own line out
    slots       rows of the engine; who finds none waits in order
    rows        a prompt stops the rows while it goes in; n rows get a token each every
                ``step + n · row`` seconds

Tokens are not events. A server keeps a clock of tokens, V, that runs at 1 / (step + n · row) while
no prompt goes in; an answer of L tokens, admitted at V, ends at V + L. So a request makes three or
four events, whatever its length, and a million take a minute.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK = 50_000  # adapters whose hashes are made at once


class Times(NamedTuple):
    """Seconds, as measured by fleet_check.py: what one server needs for what."""

    step: float  # of a decode pass, without its rows
    row: float  # more for each row
    prompt: float  # of one prompt that goes in alone
    more: float  # of another prompt in the same pass
    read: float  # of an adapter from disk, checked
    nbytes: int  # of an adapter


@dataclass(frozen=True)
class Fleet:
    """What is assumed of the machines. Capacities are numbers of adapters."""

    servers: int = 32  # of a region
    regions: int = 1
    slots: int = 64
    bank: int = 1_000
    host: int = 20_000
    store: int = 300_000
    places: int = 2  # servers of an adapter; 0: any server, at random
    readers: int = 2
    hop: float = 0.001  # seconds to the region's store and back
    far: tuple[float, ...] = (0.002, 0.080, 0.200)  # from each region to the registry and back
    line: float = 1.25e9  # bytes a second of a store, and of the registry


class Trace(NamedTuple):
    """Requests in order: when, which adapter, how many tokens, in which region."""

    at: Floats
    adapter: NDArray[np.int64]
    tokens: NDArray[np.int64]
    region: NDArray[np.int64]


def zipf(count: int, exponent: float) -> Floats:
    """Popularity of ``count`` adapters: p(k) in proportion to 1 / k^exponent.

    >>> zipf(2, 1.0)
    array([0.66666667, 0.33333333])
    """
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def draw_trace(
    popularity: Floats, requests: int, rate: float, tokens: tuple[int, int], regions: int, seed: int
) -> Trace:
    """Independent requests, ``rate`` of them a second, with answers of uniform length."""
    draw = np.random.default_rng(seed)
    at = np.cumsum(draw.exponential(1 / rate, requests))
    adapter = np.searchsorted(np.cumsum(popularity), draw.random(requests)).clip(
        max=len(popularity) - 1
    )
    lengths = draw.integers(tokens[0], tokens[1] + 1, requests)
    return Trace(at, adapter, lengths, draw.integers(0, regions, requests))


def che(popularity: Floats, capacity: int, before: float = 0.0) -> tuple[float, float]:
    """(hit rate, characteristic time in requests) of LRU by Che's approximation.

    An adapter stays for T requests after its last one, with Σ (1 - e^(-p T)) = capacity; so it is
    hit with 1 - e^(-p T) (Che, Tung and Wang, JSAC 20(7), 2002). With ``before`` = T of a cache in
    front, the rate is of requests that this cache missed: the last request lies in [before, T].

    >>> round(che(np.full(10, 0.1), 5)[0], 2)
    0.5
    """
    if capacity >= len(popularity):
        return 1.0, math.inf
    passed = popularity * np.exp(-popularity * before)  # what reaches this cache
    low, high = 0.0, 1.0
    while (1 - np.exp(-passed * high)).sum() < capacity:
        high *= 2
        if high > 1e15:
            return 1.0, math.inf
    for _ in range(60):
        middle = (low + high) / 2
        full = (1 - np.exp(-passed * middle)).sum() > capacity
        low, high = (low, middle) if full else (middle, high)
    hit = 1 - np.exp(-passed * max(0.0, high - before))
    return float((passed * hit).sum() / passed.sum()), high


def lru_hits(requests: Sequence[int], capacities: Sequence[int], warm: int) -> list[float]:
    """Hit rates of LRU caches one behind the other, after the first ``warm`` requests.

    Each sees what the one before it missed.

    >>> lru_hits([1, 2, 1, 3, 2], [2, 3], warm=2)
    [0.3333333333333333, 0.5]
    """
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]
    asked, hits = [0] * len(capacities), [0] * len(capacities)
    for number, adapter in enumerate(requests):
        for level, (cache, capacity) in enumerate(zip(caches, capacities, strict=True)):
            counts = number >= warm
            asked[level] += counts
            if adapter in cache:
                cache.move_to_end(adapter)
                hits[level] += counts
                break
            cache[adapter] = None
            if len(cache) > capacity:
                cache.popitem(last=False)
    return [hit / max(1, count) for hit, count in zip(hits, asked, strict=True)]


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64 bits (splitmix64's last step), in place of the gateway's blake2b."""
    with np.errstate(over="ignore"):
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def rendezvous(adapters: NDArray[np.int64], servers: int, places: int) -> NDArray[np.int64]:
    """The ``places`` best servers of each adapter, (adapters, places): the largest hashes first."""
    keys = adapters.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    salts = mixed(np.arange(1, servers + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03))
    best = np.empty((len(adapters), places), dtype=np.int64)
    for start in range(0, len(adapters), BLOCK):
        draws = mixed(keys[start : start + BLOCK] ^ salts[None])
        best[start : start + BLOCK] = np.argsort(draws, axis=1)[:, ::-1][:, :places]
    return best


class LRU(OrderedDict[int, None]):
    """The last ``capacity`` different keys."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.asked, self.hits = capacity, 0, 0

    def hit(self, key: int) -> bool:
        """Whether it is there; then it is the newest."""
        self.asked += 1
        if key not in self:
            return False
        self.move_to_end(key)
        self.hits += 1
        return True

    def put(self, key: int) -> None:
        """Insert, and drop the oldest for it."""
        self[key] = None
        self.move_to_end(key)
        if len(self) > self.capacity:
            self.popitem(last=False)

    @property
    def rate(self) -> float:
        """Hits over all that was asked."""
        return self.hits / max(1, self.asked)


@dataclass
class Line:
    """What passes one thing at a time: a reader, a network line. ``busy``: seconds in use."""

    free: float = 0.0
    busy: float = 0.0

    def take(self, now: float, seconds: float) -> float:
        """When something that comes now is through."""
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free


@dataclass
class Server:
    """Rows, a clock of tokens, caches."""

    bank: LRU
    host: LRU
    readers: list[Line]
    clock: float = 0.0  # V: tokens that a row has got since the start
    last: float = 0.0  # when it was looked at
    stall: float = 0.0  # seconds of prompts that must go in first
    enters: float = 0.0  # when the prompts that wait begin to go in
    used: float = 0.0  # Σ over its rows of the seconds in use
    rows: list[tuple[float, int]] = field(default_factory=list)  # (V at its end, request)
    waiting: deque[int] = field(default_factory=deque)
    loading: dict[int, list[int]] = field(default_factory=dict)
    version: int = 0
    busy: int = 0  # requests that it has and has not answered

    def advance(self, now: float, times: Times) -> None:
        """Let prompts and tokens go on until now."""
        passed, self.last = now - self.last, now
        if self.rows:
            self.used += passed * len(self.rows)
            prompts = min(self.stall, passed)
            self.stall -= prompts
            self.clock += (passed - prompts) / (times.step + times.row * len(self.rows))

    def next_end(self, times: Times) -> float:
        """Seconds from ``last`` until the next row ends."""
        left = max(0.0, self.rows[0][0] - self.clock)
        return self.stall + left * (times.step + times.row * len(self.rows))

    def rest_of_step(self, times: Times) -> float:
        """Seconds until the engine looks at what has come, and has adapters read."""
        if not self.rows:
            return 0.0
        left = math.ceil(self.clock - 1e-9) - self.clock
        return self.stall + left * (times.step + times.row * len(self.rows))


LOADED, END, ARRIVED = range(3)
CHUNK = 1_000_000  # requests that are drawn at once to fill the caches


class Simulation:
    """One run; ``first`` and ``end`` are seconds after arrival, a request each."""

    def __init__(self, trace: Trace, fleet: Fleet, times: Times, seed: int = 0):
        self.trace, self.fleet, self.times = trace, fleet, times
        self.random, self.count = random.Random(seed), itertools.count()
        self.servers = [
            [
                Server(LRU(fleet.bank), LRU(fleet.host), [Line() for _ in range(fleet.readers)])
                for _ in range(fleet.servers)
            ]
            for _ in range(fleet.regions)
        ]
        self.stores = [LRU(fleet.store) for _ in range(fleet.regions)]
        self.coming: list[dict[int, list[Server]]] = [{} for _ in range(fleet.regions)]
        self.lines, self.registry = [Line() for _ in range(fleet.regions)], Line()
        self.first, self.end = np.full(len(trace.at), np.nan), np.full(len(trace.at), np.nan)
        self.level = np.zeros(len(trace.at), dtype=np.int8)  # where the adapter was found
        self.events: list[tuple[float, int, int, Any]] = []
        if fleet.places:
            seen, self.index = np.unique(trace.adapter, return_inverse=True)
            self.places = rendezvous(seen, fleet.servers, min(fleet.places, fleet.servers)).tolist()

    def run(self) -> Simulation:
        """All requests, to their end."""
        arrivals = self.trace.at.tolist()
        number, events = 0, self.events
        while number < len(arrivals) or events:
            if events and (number == len(arrivals) or events[0][0] < arrivals[number]):
                now, kind, _, what = heapq.heappop(events)
                if kind == LOADED:
                    self.loaded(now, *what)
                elif kind == ARRIVED:
                    self.arrived(now, *what)
                elif what[0].version == what[1]:
                    self.ended(now, what[0])
            else:
                self.arrive(arrivals[number], number)
                number += 1
        return self

    def warm(self, popularity: Floats, requests: int, seed: int) -> Simulation:
        """Fill the caches with so many requests a region that came before, without a clock."""
        fleet, draw = self.fleet, np.random.default_rng(seed)
        places, heap = min(fleet.places, fleet.servers), np.cumsum(popularity)
        table = rendezvous(np.arange(len(popularity)), fleet.servers, places) if places else None
        for servers, store in zip(self.servers, self.stores, strict=True):
            caches = [(server.bank, server.host, store) for server in servers]
            for start in range(0, requests, CHUNK):
                count = min(CHUNK, requests - start)
                adapters = np.searchsorted(heap, draw.random(count)).clip(max=len(popularity) - 1)
                chosen = draw.integers(0, places or fleet.servers, count)
                if table is not None:
                    chosen = table[adapters, chosen]
                for adapter, number in zip(adapters.tolist(), chosen.tolist(), strict=True):
                    for cache in caches[number]:
                        if adapter in cache:
                            cache.move_to_end(adapter)
                            break
                        cache.put(adapter)
        return self

    def warm_as(self, other: Simulation) -> Simulation:
        """Fill the caches as those of another simulation, of the same fleet, are filled."""
        pairs = zip(self.caches(), other.caches(), strict=True)
        for own, filled in pairs:
            own.update(filled)
        return self

    def caches(self) -> list[LRU]:
        """All of them, always in one order."""
        servers = [server for region in self.servers for server in region]
        return [*self.stores, *(cache for each in servers for cache in (each.bank, each.host))]

    def choose(self, number: int, region: int) -> Server:
        """The router: the less busy of an adapter's places, or any server."""
        servers = self.servers[region]
        if not self.fleet.places:
            return servers[self.random.randrange(len(servers))]
        return min((servers[i] for i in self.places[self.index[number]]), key=lambda s: s.busy)

    def arrive(self, now: float, number: int) -> None:
        """Find the adapter, or have it fetched."""
        region, adapter = int(self.trace.region[number]), int(self.trace.adapter[number])
        server = self.choose(number, region)
        server.busy += 1
        if server.bank.hit(adapter):
            self.ready(now, server, number)
        elif adapter in server.loading:
            self.level[number] = self.level[server.loading[adapter][0]]  # it waits for the same
            server.loading[adapter].append(number)
        else:
            server.loading[adapter] = [number]
            server.advance(now, self.times)
            self.fetch(now + server.rest_of_step(self.times), server, region, adapter, number)

    def fetch(self, now: float, server: Server, region: int, adapter: int, number: int) -> None:
        """From the disk, the region's store, or the registry: when the bank will have it."""
        if server.host.hit(adapter):
            self.level[number] = 1
            reader = min(server.readers, key=lambda line: line.free)
            self.tell(reader.take(now, self.times.read), LOADED, server, adapter)
        elif adapter in self.coming[region]:
            self.level[number] = 3
            self.coming[region][adapter].append(server)
        elif self.stores[region].hit(adapter):
            self.level[number] = 2
            self.pass_on(now, server, region, adapter)
        else:
            self.level[number] = 3
            self.coming[region][adapter] = [server]
            there = self.registry.take(now, self.times.nbytes / self.fleet.line)
            self.tell(there + self.fleet.far[region], ARRIVED, region, adapter)

    def arrived(self, now: float, region: int, adapter: int) -> None:
        """The registry's copy is in the region's store; who waits for it gets one."""
        self.stores[region].put(adapter)
        for server in self.coming[region].pop(adapter):
            self.pass_on(now, server, region, adapter)

    def pass_on(self, now: float, server: Server, region: int, adapter: int) -> None:
        """The region has an adapter: over its line to the server's disk, and into memory.

        What comes over the line is checked as it comes, so it needs no reader.
        """
        there = self.lines[region].take(now, self.times.nbytes / self.fleet.line) + self.fleet.hop
        server.host.put(adapter)
        self.tell(there + self.times.read, LOADED, server, adapter)

    def tell(self, when: float, kind: int, *what: Any) -> None:
        """Put an event into the heap."""
        heapq.heappush(self.events, (when, kind, next(self.count), what))

    def loaded(self, now: float, server: Server, adapter: int) -> None:
        """The bank has it; who waited may go on."""
        server.bank.put(adapter)
        for number in server.loading.pop(adapter):
            self.ready(now, server, number)

    def ready(self, now: float, server: Server, number: int) -> None:
        """A row, or the queue for one."""
        server.advance(now, self.times)
        if len(server.rows) < self.fleet.slots:
            self.admit(now, server, number)
            self.plan_end(server)
        else:
            server.waiting.append(number)

    def admit(self, now: float, server: Server, number: int) -> None:
        """The prompt goes in at the end of the step; then the row counts tokens.

        It joins prompts that wait for the same end, and comes a step after those that go in now.
        """
        others, times = len(server.rows), self.times
        boundary = math.ceil(server.clock - 1e-9) if others else server.clock
        step = times.step + times.row * others
        wait = (boundary - server.clock) * step
        if server.stall > 0 and now > server.enters:
            boundary, wait = boundary + 1, wait + step
            server.stall += times.prompt
            server.enters = now + wait + server.stall - times.prompt
        elif server.stall > 0:
            server.stall += times.more
        else:
            server.stall += times.prompt
            server.enters = now + wait
        self.first[number] = now + wait + server.stall - self.trace.at[number]
        heapq.heappush(server.rows, (boundary + int(self.trace.tokens[number]) - 1, number))

    def ended(self, now: float, server: Server) -> None:
        """The rows of a step end; the next requests get them."""
        server.advance(now, self.times)
        server.stall = 0.0  # whatever rounding has left of it
        server.clock = max(server.clock, server.rows[0][0])
        while server.rows and server.rows[0][0] <= server.clock + 1e-9:
            _, number = heapq.heappop(server.rows)
            self.end[number] = now - self.trace.at[number]
            server.busy -= 1
        while server.waiting and len(server.rows) < self.fleet.slots:
            self.admit(now, server, server.waiting.popleft())
        self.plan_end(server)

    def plan_end(self, server: Server) -> None:
        """Tell the heap when the next row ends; what it was told before is void."""
        server.version += 1
        if server.rows:
            due = server.last + server.next_end(self.times)
            self.tell(due, END, server, server.version)

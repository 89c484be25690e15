"""A million adapters on paper: which caches hit, which router, and what breaks first?

    python -m benchmarks.fleet [--adapters 1000000] [--requests 100000] [--parts check hits …]

A simulation (fleet_model.py) fed with times that were measured at its start (fleet_check.py), on
the shipped base with adapters of rank 8 on q and v:

    check     one real engine beside the simulation, at three loads, the same requests
    server    the server without its socket beside it, HTTP's part included (fleet_server.py)
    hits      LRU by capacity, and bank, host, store one behind the other, beside Che's formula
    routing   rendezvous hashing against random, from 4 to 64 servers
    load      a region under more and more requests: first tokens, and how busy each part is
    breaks    64 servers for half a minute, and the servers of the most popular adapter among them
    sizes     adapters as large as those of an 8B base: which line is full first
    regions   three regions, the registry in one: where adapters are found, and how long that takes
    ladder    cold starts, from a machine that is not there to a row

Measured: the engine's steps, prompts, readings. Assumed: everything in ``Fleet`` and ``BOOT``,
Zipf popularity, independent requests at random times, equal adapters, no failures.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minilora import ledger

from .common import Row, kept_rows, options, save
from .fleet_check import RealServer, Step, explained, filled_bank, fitted_times, read_seconds
from .fleet_model import Fleet, Simulation, Times, Trace, che, draw_trace, lru_hits, zipf
from .fleet_server import Overhead, RealApplication

PARTS = ["check", "server", "hits", "routing", "load", "breaks", "sizes", "regions", "ladder"]
EXPONENTS, CAPACITIES = (0.8, 1.0, 1.2), (100, 1_000, 10_000, 100_000)
SMALL, TOKENS, SLOTS = 100, (8, 64), 16  # adapters of the check; tokens of an answer; its rows
RATES = (25.0, 40.0, 80.0)  # requests a second of the check: idle, busy, too many
SERVED = (15.0, 25.0, 50.0)  # the same of the server
LENGTHS = ((8, 8), (64, 64))  # tokens of the runs to which HTTP's part is fitted
ROUTERS = {"random": 0, "rendezvous, 2 places": 2, "rendezvous, 8 places": 8}
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
MANY, HALF_MINUTE = 64, 30.0  # servers, and seconds, of the part that shows what breaks
BREAKS = (0.3, 0.4, 0.5, 0.6, 0.8)  # its loads
LARGE, DISK = 84_000_000, 2e9  # bytes of an adapter of an 8B base, r = 16; bytes a second of a disk
RATES_LARGE = (10.0, 20.0, 50.0, 100.0, 200.0)  # requests a second of a region with those
TURNS = 3  # runs of the server, of which the median counts
BOOT = 120.0  # seconds until a rented machine answers: assumed


def summary(first: Any, end: Any, trace: Trace, bank: float) -> dict[str, float]:
    """What is compared of a run."""
    return {
        "bank hits": bank,
        "first token, mean": float(np.mean(first)),
        "end, mean": float(np.mean(end)),
        "end, 95%": float(np.percentile(end, 95)),
        "requests a second": len(end) / float((trace.at + end).max()),
    }


def apart(value: float, other: float) -> float:
    """How far a value is from another, as a share of the other; of nothing, all of it or nothing.

    >>> apart(1.5, 1.0), apart(0.0, 0.0)
    (0.5, 0.0)
    """
    return value / other - 1 if other else float(value > 0)


def check(folders: list[Path], requests: int) -> list[Row]:
    """Times fitted to one half of the engine's runs, and the simulation beside the other half."""
    read = read_seconds(filled_bank(folders))
    popularity, steps, real = zipf(len(folders), 0.9), list[Step](), {}
    traces = {
        rate: draw_trace(popularity, requests, rate, TOKENS, regions=1, seed=1) for rate in RATES
    }
    for turn in range(2):  # a machine's mood hits both halves alike
        for rate in RATES:
            server = RealServer(filled_bank(folders, len(folders) // 5), SLOTS, read)
            server.run(draw_trace(popularity, requests // 2, rate, TOKENS, 1, seed=7 + turn))
            steps += server.steps
            server = RealServer(filled_bank(folders, len(folders) // 5), SLOTS, read)
            first, end = server.run(traces[rate])
            found = summary(first, end, traces[rate], server.hits / server.asked)
            real.setdefault(rate, []).append(found)
    nbytes = max(known.nbytes for known in server.bank.known.values())
    times = fitted_times(steps, read, nbytes)
    fleet, rows = Fleet(servers=1, slots=SLOTS, bank=len(folders) // 5, places=1), []
    for rate, trace in traces.items():
        run = Simulation(trace, fleet, times).run()
        told = summary(run.first, run.end, trace, run.servers[0][0].bank.rate)
        server = RealServer(filled_bank(folders, len(folders) // 5), SLOTS, read, times)
        first, end = server.run(traces[rate])
        fitted = summary(first, end, trace, server.hits / server.asked)
        for name, value in told.items():
            seen = [each[name] for each in real[rate]]
            row = {"what": "check", "rate": rate, "figure": name, "simulated": value}
            row |= {"fitted clock": fitted[name], "apart": apart(value, fitted[name])}
            row |= {"own clock": seen, "apart, own": apart(value, sum(seen) / len(seen))}
            rows.append(row)
    rows.append({"what": "times", **times._asdict(), "explained": explained(steps, times)})
    return rows


def server(folders: list[Path], requests: int) -> list[Row]:
    """The server's application, several times, beside the simulation with times of other runs."""
    popularity, overhead, rows = zipf(len(folders), 0.9), Overhead(), list[Row]()
    traces = {r: draw_trace(popularity, requests, r, TOKENS, regions=1, seed=1) for r in SERVED}
    real: dict[float, list[dict[str, float]]] = {rate: [] for rate in SERVED}

    def answered(trace: Trace) -> tuple[RealApplication, Any, Any]:
        own = RealApplication(filled_bank(folders, len(folders) // 5), SLOTS)
        return own, *asyncio.run(own.run(trace))

    for turn in range(TURNS):
        for rate, trace in traces.items():
            for tokens in LENGTHS:
                other = draw_trace(popularity, requests // 4, rate, tokens, 1, seed=7 + turn)
                overhead.add(answered(other)[0], other)
            own, first, end = answered(trace)
            real[rate].append(summary(first, end, trace, own.hits / own.asked))
    times, request, token = overhead.times(folders)
    fleet = Fleet(servers=1, slots=SLOTS, bank=len(folders) // 5, places=1)
    for rate, trace in traces.items():
        run = Simulation(trace, fleet, times).run()
        told = summary(run.first, run.end, trace, run.servers[0][0].bank.rate)
        for name, value in told.items():
            seen = [each[name] for each in real[rate]]
            row = {"what": "server", "rate": rate, "figure": name, "simulated": value}
            row |= {"seen": seen, "apart": apart(value, statistics.median(seen))}
            rows.append(row)
    rows.append({"what": "http", "request": request, "token": token, **times._asdict()})
    return rows


def hits(adapters: int, requests: int) -> list[Row]:
    """Hit rates of one LRU and of three in a row, beside Che's approximation."""
    rows = []
    for exponent in EXPONENTS:
        popularity = zipf(adapters, exponent)
        trace = draw_trace(popularity, requests, 1.0, (1, 1), 1, seed=3).adapter.tolist()
        warm = requests // 2
        for capacity in CAPACITIES:
            found = lru_hits(trace, [capacity], warm)[0]
            formula, stays = che(popularity, capacity)
            row = {"exponent": exponent, "capacity": capacity, "simulated": found, "che": formula}
            rows.append({"what": "hits", **row, "steady": stays < warm, "requests": requests})
        levels, before = [1_000, 20_000, 300_000], 0.0
        found_each = lru_hits(trace, levels, warm)
        for name, capacity, found in zip(
            ("bank", "host", "store"), levels, found_each, strict=True
        ):
            formula, stays = che(popularity, capacity, before)
            row = {"level": name, "capacity": capacity, "simulated": found, "che": formula}
            rows.append({"what": "chain", "exponent": exponent, **row, "steady": stays < warm})
            before = stays
    return rows


def capacity_of(times: Times, slots: int) -> float:
    """Requests a second of one server whose rows are all in use."""
    tokens = sum(TOKENS) / 2
    each = times.prompt + (tokens - 1) * (times.step + times.row * slots) / slots
    return 1 / each


class Warmth:
    """The popularity, and caches that were filled once for each kind of fleet."""

    def __init__(self, adapters: int, requests: int):
        self.popularity, self.requests = zipf(adapters, 1.0), requests
        self.filled: dict[Fleet, Simulation] = {}

    def simulation(self, trace: Trace, fleet: Fleet, times: Times) -> Simulation:
        """A simulation whose caches are as after ``requests`` requests a region."""
        if fleet not in self.filled:
            self.filled.clear()  # a filled fleet takes half a gigabyte
            nothing = draw_trace(self.popularity, 1, 1.0, TOKENS, fleet.regions, seed=4)
            empty = Simulation(nothing, fleet, times)
            self.filled[fleet] = empty.warm(self.popularity, self.requests, seed=4)
        return Simulation(trace, fleet, times).warm_as(self.filled[fleet])


def simulated(
    warmth: Warmth, fleet: Fleet, times: Times, rate: float, requests: int
) -> tuple[Simulation, dict[str, Any]]:
    """A run on warm caches, and what it came to."""
    trace = draw_trace(warmth.popularity, requests, rate, TOKENS, fleet.regions, seed=5)
    run = warmth.simulation(trace, fleet, times).run()
    span, half = float(trace.at[-1]), slice(requests // 2, None)
    servers = [server for region in run.servers for server in region]
    used = [min(1.0, server.used / span / fleet.slots) for server in servers]
    return run, {
        "servers": fleet.servers,
        "rate": rate,
        "requests": requests,
        "seconds": span,
        "bank": float(np.mean(run.level[half] == 0)),
        "registry": float(np.mean(run.level[half] == 3)),
        "first, median": float(np.median(run.first[half])),
        "first, 99%": float(np.percentile(run.first[half], 99)),
        "end, 99%": float(np.percentile(run.end[half], 99)),
        "rows": float(np.mean(used)),
        "readers": max(line.busy for server in servers for line in server.readers) / span,
        "region's line": max(line.busy for line in run.lines) / span,
        "registry's line": run.registry.busy / span,
    }


def routing(warmth: Warmth, times: Times, requests: int) -> list[Row]:
    """Rendezvous against random, by the number of servers, at half the load they can take."""
    rows = []
    for servers in (4, 16, 64):
        for name, places in list(ROUTERS.items())[:2]:
            fleet = Fleet(servers=servers, places=places)
            rate = 0.5 * servers * capacity_of(times, fleet.slots)
            _, found = simulated(warmth, fleet, times, rate, requests)
            memory = (
                [fleet.bank * servers // places, fleet.bank * servers] if places else [fleet.bank]
            )
            formulas = [che(warmth.popularity, together)[0] for together in memory]
            rows.append({"what": "routing", "router": name, **found, "che": formulas})
    return rows


def load(warmth: Warmth, times: Times, requests: int) -> list[Row]:
    """32 servers under more and more requests."""
    rows = []
    for name, places in ROUTERS.items():
        for share in LOADS:
            fleet = Fleet(places=places)
            rate = share * fleet.servers * capacity_of(times, fleet.slots)
            _, found = simulated(warmth, fleet, times, rate, requests)
            rows.append({"what": "load", "router": name, "load": share, **found})
    return rows


def breaks(warmth: Warmth, times: Times, seconds: float) -> list[Row]:
    """64 servers for a while: the servers of the most popular adapter beside the others."""
    rows = []
    for name, places in list(ROUTERS.items())[1:]:
        for share in BREAKS:
            fleet = Fleet(servers=MANY, places=places)
            rate = share * fleet.servers * capacity_of(times, fleet.slots)
            run, found = simulated(warmth, fleet, times, rate, int(rate * seconds))
            row = {"what": "breaks", "router": name, "load": share, **found}
            rows.append(row | hottest(run))
    return rows


def hottest(run: Simulation) -> dict[str, float]:
    """The most popular adapter's servers, and its requests in the second and the last quarter."""
    at, end = run.trace.at, float(run.trace.at[-1])
    mine = run.trace.adapter == 0
    among = [run.servers[0][i] for i in run.places[run.index[np.argmax(mine)]]]
    quarter = np.floor(4 * at / end)
    medians = {
        name: float(np.median(run.first[mine & (quarter == number)]))
        for name, number in (("hottest, early", 1), ("hottest, late", 3))
    }
    rows = [min(1.0, each.used / end / run.fleet.slots) for each in among]
    others = float(np.percentile(run.first[~mine & (quarter == 3)], 99))
    return {
        "hottest's rows": float(np.mean(rows)),
        **medians,
        "others, 99%": others,
        "waiting": float(np.sum(mine & (at + run.first > end))),
    }


def sizes(warmth: Warmth, times: Times, requests: int) -> list[Row]:
    """The same fleet with adapters of an 8B base: what is full first."""
    large = times._replace(nbytes=LARGE, read=LARGE / DISK)
    rows = []
    for rate in RATES_LARGE:
        _, found = simulated(warmth, Fleet(), large, rate, requests)
        rows.append({"what": "sizes", "nbytes": LARGE, **found})
    return rows


def regions(warmth: Warmth, times: Times, requests: int) -> list[Row]:
    """Three regions; the registry stands in the first."""
    fleet = Fleet(servers=8, regions=3)
    rate = 0.5 * fleet.servers * fleet.regions * capacity_of(times, fleet.slots)
    run, _ = simulated(warmth, fleet, times, rate, requests)
    rows: list[Row] = []
    for region, far in enumerate(fleet.far):
        mine = run.trace.region == region
        for level, name in enumerate(("bank", "host", "store", "registry")):
            there = mine & (run.level == level)
            if there.any():
                first = float(np.median(run.first[there]))
                share = float(there.sum() / mine.sum())
                row = {"region": region, "far": far, "level": name, "share": share}
                rows.append({"what": "regions", **row, "first": first})
    return rows


def ladder(times: Times) -> list[Row]:
    """Cold starts in seconds: measured, or arithmetic on what is assumed."""
    code = "import time, minilora; minilora.load_base(); print(time.process_time())"
    process = float(subprocess.check_output([sys.executable, "-c", code], text=True))
    fleet = Fleet()
    sizes = {name: ledger.plan_serving(name).base for name in ("llama-3.1-405b", "llama-3-8b")}
    wire = times.nbytes / fleet.line
    steps = {
        "405B base over 1 Gbit/s": ("assumed", sizes["llama-3.1-405b"] / 0.125e9),
        "a machine is rented and boots": ("assumed", BOOT),
        "8B base over 10 Gbit/s": ("assumed", sizes["llama-3-8b"] / 1.25e9),
        "a server's process, small base": ("measured", process),
        "adapter from the registry, far away": (
            "assumed", fleet.far[-1] + fleet.hop + 2 * wire + times.read,
        ),
        "adapter from the region's store": ("assumed", fleet.hop + wire + times.read),
        "adapter from disk": ("measured", times.read),
    }  # fmt: skip
    return [
        {"what": "ladder", "start": name, "kind": kind, "seconds": seconds}
        for name, (kind, seconds) in steps.items()
    ]


def main() -> None:
    """Measure, simulate, save; parts that were not asked for stay as they were."""
    asked = {"adapters": 1_000_000, "requests": 100_000, "warm": 6_000_000, "small": 300}
    asked |= {"seconds": HALF_MINUTE, "parts": PARTS}
    settings = options(__doc__, **asked)
    asked_for = {*settings.parts, *(("times",) if "check" in settings.parts else ())}
    asked_for |= {"chain"} if "hits" in settings.parts else set()
    asked_for |= {"http"} if "server" in settings.parts else set()
    kept = [
        row
        for row in kept_rows("fleet", settings)
        if row["what"] not in asked_for and row.get("part") not in asked_for
    ]
    found = next((row for row in kept if row["what"] == "times"), None)
    times: Any = found and Times(*(found[name] for name in Times._fields))
    count, requests = settings.adapters, settings.requests
    warmth = Warmth(count, settings.warm)
    works = {
        "check": lambda: measured(check, settings.small),
        "server": lambda: measured(server, settings.small),
        "hits": lambda: hits(count, 20 * requests),
        "routing": lambda: routing(warmth, times, requests),
        "load": lambda: load(warmth, times, requests // 2),
        "breaks": lambda: breaks(warmth, times, settings.seconds),
        "sizes": lambda: sizes(warmth, times, requests // 4),
        "regions": lambda: regions(warmth, times, 3 * requests),
        "ladder": lambda: ladder(times),
    }
    for part in [part for part in PARTS if part in settings.parts]:
        if times is None and part not in ("check", "server", "hits"):
            raise ValueError(f"{part} needs measured times: --parts check {part}")
        begun = time.process_time()
        rows = works[part]()
        if part == "check":
            times = Times(*(rows[-1][name] for name in Times._fields))
        took = time.process_time() - begun
        kept += [*rows, {"what": "took", "part": part, "seconds": took}]
        print(f"{part}: {took:.0f} s of processor time", flush=True)
        print(save("fleet", kept, settings))


def measured(part: Callable[[list[Path], int], list[Row]], requests: int) -> list[Row]:
    """The rows of a part that needs adapters in folders."""
    from .serving_runs import make_adapters  # the peers come with it

    with tempfile.TemporaryDirectory() as folder:
        return part(make_adapters(SMALL, Path(folder)), requests)


if __name__ == "__main__":
    main()

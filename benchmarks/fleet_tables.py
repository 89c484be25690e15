"""docs/fleet.md and its picture, from ``results/cpu/fleet.json``: nothing in them is typed.

python -m benchmarks.fleet_tables
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minilora.files import write_text
from minilora.plots.style import hue, in_house_style, label_ends, save_figure

from .common import RESULTS
from .fleet_model import Fleet, che, zipf
from .tables import table

DOCS = Path(__file__).parent.parent / "docs"
Rows = list[dict[str, Any]]


def rows_of(rows: Rows, what: str, **setting: Any) -> Rows:
    """The rows of one part, with these settings."""
    wanted = {"what": what, **setting}
    return [row for row in rows if wanted.items() <= row.items()]


def percent(share: float) -> str:
    """A share with a digit behind the point."""
    return f"{100 * share:.1f}%"


def in_time(seconds: float) -> str:
    """Seconds in the unit that suits.

    >>> in_time(0.0021), in_time(12.84), in_time(6494)
    ('2.1 ms', '13 s', '1.8 h')
    """
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            digits = 2 if seconds / size < 100 else 3
            return f"{seconds / size:.{digits}g} {unit}"
    return f"{1000 * seconds:.3g} ms" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def check_table(rows: Rows) -> str:
    """The simulation beside the engine."""
    return table(
        (
            "requests a second",
            "",
            "simulated",
            "engine, fitted steps",
            "apart",
            "its own clock, twice",
        ),
        (
            (
                f"{row['rate']:g}",
                row["figure"],
                f"{row['simulated']:.3g}",
                f"{row['fitted clock']:.3g}",
                f"{100 * row['apart']:+.0f}%",
                " and ".join(f"{value:.3g}" for value in row["own clock"]),
            )
            for row in rows_of(rows, "check")
        ),
    )


def server_table(rows: Rows) -> str:
    """The simulation beside the server."""
    lines = (
        (
            f"{row['rate']:g}",
            row["figure"],
            f"{row['simulated']:.3g}",
            ", ".join(f"{value:.3g}" for value in row["seen"]),
            f"{100 * row['apart']:+.0f}%",
        )
        for row in rows_of(rows, "server")
    )
    head = ("requests a second", "", "simulated", "the server, three runs", "apart, of the median")
    return table(head, lines)


def within(rows: Rows, key: str = "apart", limit: float = 0.15, what: str = "check") -> str:
    """How many comparisons are within the limit, and which are not."""
    checks = rows_of(rows, what)
    outside = [row for row in checks if abs(row[key]) > limit]
    sentence = f"{len(checks) - len(outside)} of {len(checks)} are within {100 * limit:.0f}%"
    if not outside:
        return sentence
    exceptions = [f"{row['figure']} at {row['rate']:g} ({100 * row[key]:+.0f}%)" for row in outside]
    return f"{sentence}, not {', '.join(exceptions)}"


def apart(row: dict[str, Any]) -> float:
    """The largest of a figure's runs over the smallest, which may be 0 on a starved machine."""
    low, high = min(row["seen"]), max(row["seen"])
    return float(high / low) if low else math.inf


def singles(rows: Rows, limit: float = 0.15) -> str:
    """How many of the single runs' values are within the limit, and how far runs are apart."""
    pairs = [(row["simulated"], value) for row in rows_of(rows, "server") for value in row["seen"]]
    close = sum(abs(simulated - value) <= limit * value for simulated, value in pairs)
    widest = max(rows_of(rows, "server"), key=apart)
    ratio = apart(widest)
    first_tokens = [
        row for row in rows_of(rows, "server") if row["figure"].startswith("first token")
    ]
    sentence = (
        f"of the single values, {close} of {len(pairs)}. Others used this machine too, and\n"
        f"the three runs differ by up to {ratio:.1f} times "
        f"({widest['figure']} at {widest['rate']:g})."
    )
    if all(row["apart"] < 0 for row in first_tokens):
        sentence += " At every rate the simulated first\ntoken is earlier than the median."
    return sentence


def hits_table(rows: Rows) -> str:
    """Three caches in a row."""
    lines = (
        (
            f"{row['exponent']:g}",
            row["level"],
            f"{row['capacity']:,}",
            percent(row["simulated"]),
            percent(row["che"]) if row["steady"] else "not steady yet",
        )
        for row in rows_of(rows, "chain")
    )
    return table(("Zipf exponent", "level", "adapters", "hits of what it is asked", "Che"), lines)


def routing_table(rows: Rows) -> str:
    """Rendezvous and random by servers."""
    lines = (
        (
            str(row["servers"]),
            row["router"],
            percent(row["bank"]),
            " to ".join(map(percent, row["che"])),
            in_time(row["first, median"]),
            in_time(row["first, 99%"]),
        )
        for row in rows_of(rows, "routing")
    )
    head = ("servers", "router", "found in the bank", "Che", "first token, median", "99%")
    return table(head, lines)


def load_table(rows: Rows) -> str:
    """What is how busy, by load and router."""
    lines = (
        (
            row["router"],
            percent(row["load"]),
            in_time(row["first, 99%"]),
            in_time(row["end, 99%"]),
            percent(row["rows"]),
            percent(row["readers"]),
            percent(row["registry's line"]),
        )
        for row in rows_of(rows, "load")
    )
    head = ("router", "load", "first token, 99%", "end, 99%", "rows in use", "busiest reader")
    return table((*head, "registry's line"), lines)


def breaks_table(rows: Rows) -> str:
    """The servers of the most popular adapter beside the others."""
    lines = (
        (
            row["router"],
            percent(row["load"]),
            percent(row["rows"]),
            percent(min(1.0, row["hottest's rows"])),
            f"{in_time(row['hottest, early'])}, {in_time(row['hottest, late'])}",
            f"{row['waiting']:,.0f}",
            in_time(row["others, 99%"]),
        )
        for row in rows_of(rows, "breaks")
    )
    head = ("router", "load", "rows in use", "of its servers", "its first token, early and late")
    return table((*head, "of it waiting at the end", "the others' first token, 99%"), lines)


def growing(rows: Rows, router: str) -> str:
    """At which loads the hottest adapter's requests wait longer and longer."""
    by_load = rows_of(rows, "breaks", router=router)
    growing_loads = [
        row["load"] for row in by_load if row["hottest, late"] > 2 * row["hottest, early"]
    ]
    if not growing_loads:
        return "at none of these loads"
    last_calm = max(
        (row["load"] for row in by_load if row["load"] < min(growing_loads)), default=0.0
    )
    return f"from {percent(min(growing_loads))} on, at {percent(last_calm)} not yet"


def sizes_table(rows: Rows) -> str:
    """What is how full, with large adapters."""
    lines = (
        (
            f"{row['rate']:g}",
            percent(row["rows"]),
            percent(row["readers"]),
            percent(row["region's line"]),
            percent(row["registry's line"]),
            in_time(row["first, median"]),
            in_time(row["first, 99%"]),
        )
        for row in rows_of(rows, "sizes")
    )
    head = ("requests a second", "rows in use", "busiest reader", "region's line")
    return table((*head, "registry's line", "first token, median", "99%"), lines)


def regions_table(rows: Rows) -> str:
    """Where an adapter was found, by region."""
    lines = (
        (f"{1000 * row['far']:g} ms", row["level"], percent(row["share"]), in_time(row["first"]))
        for row in rows_of(rows, "regions")
    )
    return table(("to the registry", "found in", "of the requests", "first token, median"), lines)


def hottest_pair(adapters: int, servers: int, places: int) -> float:
    """The load at which the servers of the most popular adapter have no time for another.

    >>> round(float(hottest_pair(1_000_000, 32, 2)), 2)
    0.9
    """
    return places / (servers * zipf(adapters, 1.0)[0])


def ladder_table(rows: Rows) -> str:
    """Cold starts."""
    lines = (
        (row["start"], in_time(row["seconds"]), row["kind"]) for row in rows_of(rows, "ladder")
    )
    return table(("cold start", "takes", ""), lines)


def outage(rows: Rows) -> str:
    """The share of requests that need the registry, region by region."""
    shares = [percent(row["share"]) for row in rows_of(rows, "regions", level="registry")]
    return ", ".join(shares)


@in_house_style
def fleet_figure(rows: Rows) -> Figure:
    """Hit rates, first tokens by load, memory by servers, cold starts."""
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    (hits, first), (busy, cold) = figure.subplots(2, 2)
    draw_hits(hits, rows_of(rows, "hits"))
    draw_load(first, rows_of(rows, "load"), "first, 99%", "First tokens, the slowest of 100")
    first.set(yscale="log", ylabel="seconds")
    draw_routing(busy, rows_of(rows, "routing"))
    draw_ladder(cold, rows_of(rows, "ladder"))
    return figure


def draw_hits(axes: Any, rows: Rows) -> None:
    """Hit rate by capacity, simulated as points and by Che as lines."""
    ends = {}
    for index, exponent in enumerate(dict.fromkeys(row["exponent"] for row in rows)):
        steady = [row for row in rows if row["exponent"] == exponent and row["steady"]]
        x = [row["capacity"] for row in steady]
        axes.plot(x, [row["che"] for row in steady], color=hue(index))
        axes.plot(x, [row["simulated"] for row in steady], "o", color=hue(index))
        ends[f"exponent {exponent:g}"] = (steady[-1]["che"], hue(index))
    axes.set(title="LRU of a million adapters", xscale="log", ylim=(0, 1))
    axes.set(xlabel="adapters in the cache", ylabel="hit rate: points simulated, lines Che")
    label_ends(axes, ends)


def draw_load(axes: Any, rows: Rows, figure: str, title: str) -> None:
    """One number by load, a line a router."""
    ends = {}
    for index, router in enumerate(dict.fromkeys(row["router"] for row in rows)):
        of_router = [row for row in rows if row["router"] == router]
        y = [row[figure] for row in of_router]
        axes.plot([row["load"] for row in of_router], y, color=hue(index), marker="o", markersize=4)
        ends[router.replace(", ", ",\n")] = (y[-1], hue(index))
    axes.set(title=title, xlabel="requests, as a share of what all engines can do")
    label_ends(axes, ends)


def draw_routing(axes: Any, rows: Rows) -> None:
    """Requests that find their adapter in memory, by servers."""
    ends = {}
    for index, router in enumerate(dict.fromkeys(row["router"] for row in rows)):
        of_router = [row for row in rows if row["router"] == router]
        x, y = [row["servers"] for row in of_router], [row["bank"] for row in of_router]
        axes.plot(x, y, color=hue(index), marker="o")
        axes.fill_between(
            x,
            [row["che"][0] for row in of_router],
            [row["che"][-1] for row in of_router],
            color=hue(index),
            alpha=0.15,
            linewidth=0,
        )
        ends[router.replace(", ", ",\n")] = (y[-1], hue(index))
    axes.set(title="Found in memory (band: Che)", xscale="log", ylim=(0, 1))
    axes.set(xlabel="servers, 1,000 adapters in the memory of each", ylabel="share of requests")
    axes.set_xticks(x, [str(each) for each in x])
    axes.minorticks_off()
    label_ends(axes, ends)


def draw_ladder(axes: Any, rows: Rows) -> None:
    """Cold starts on a logarithmic axis."""
    for y, row in enumerate(reversed(rows)):
        color = hue(0) if row["kind"] == "measured" else hue(5)
        axes.barh(y, row["seconds"], left=0, color=color, height=0.6)
        place = (row["seconds"], y)
        axes.annotate(in_time(row["seconds"]), place, (4, 0), "data", "offset points", va="center")
    axes.set_yticks(range(len(rows)), [row["start"] for row in reversed(rows)])
    axes.set(title="Cold starts (dark: measured)", xscale="log", xlabel="seconds")
    axes.set_xlim(5e-4, 5e5)
    axes.grid(axis="y", visible=False)


def page(results: dict[str, Any]) -> str:
    """docs/fleet.md."""
    rows, fleet = results["rows"], Fleet()
    times = rows_of(rows, "times")[0]
    settings = results["settings"]
    adapters = settings["adapters"]
    popular, http = zipf(adapters, 1.0)[0], rows_of(rows, "http")[0]
    limits = [hottest_pair(adapters, *each) for each in ((32, 2), (64, 2), (64, 8))]
    full_load = rows_of(rows, "load", load=1.0)[0]
    load_seconds = full_load["seconds"]
    hit_rate, stays = che(zipf(adapters, 1.0), min(fleet.store, adapters - 1))
    miss_rate, hot, sizes = 1 - hit_rate, rows_of(rows, "breaks")[0], rows_of(rows, "sizes")[0]
    requests = rows_of(rows, "hits")[0]["requests"]
    cpu_seconds = sum(row["seconds"] for row in rows_of(rows, "took"))
    full_rate = 1 / (
        times["prompt"] + 35 * (times["step"] + times["row"] * fleet.slots) / fleet.slots
    )
    return f"""# A million adapters, on paper

What does a fleet of adapter servers do that no laptop can hold? `benchmarks/fleet.py` simulates it,
event by event, with times that it measured on the engine of this repository. This page is written
from its results by `benchmarks/fleet_tables.py`.

![Hit rates, first tokens by load and router, cold starts](fleet.png)

## What is measured, and what is assumed

Measured, on one thread of this machine, the shipped base with adapters of rank 8 on q and v: a
decode pass takes {in_time(times["step"])} and {in_time(times["row"])} for each row; a prompt of 32
tokens {in_time(times["prompt"])}, another in the same pass {in_time(times["more"])}; an adapter of
{times["nbytes"]:,} bytes from disk, checked, {in_time(times["read"])}. A server with
{fleet.slots} rows so answers {full_rate:.0f} requests a second of {8} to {64} tokens.

Assumed: {settings["adapters"]:,} adapters, all of one size; Zipf popularity, exponent 1 where none
is given; requests independent, at random times; {fleet.servers} servers a region; room for
{fleet.bank:,} adapters in a server's memory, {fleet.host:,} on its disk, {fleet.store:,} in the
region's store, all LRU; {fleet.readers} readers a server; {1000 * fleet.hop:g} ms to the region's
store, {", ".join(f"{1000 * far:g}" for far in fleet.far)} ms from three regions to the registry;
lines of {fleet.line / 1.25e8:g} Gbit/s; nothing fails. A hash of 64 bits stands for the gateway's
blake2b. Real popularity drifts and comes in bursts, which an LRU likes and a hot server does not.

## Is the simulation right?

One real engine with its bank, with room for a fifth of the adapters, answers the same requests. Its
steps, admissions, cache and readers are its own; its clock moves with each step by the time that
was fitted for so many rows and prompts, to other runs (the fit explains
{percent(times["explained"])} of the variance of a step's processor time). So this checks queue,
rows and caches, not the times: {within(rows)}. On the clock of its own
processor time, the mean of two runs, {within(rows, "apart, own")}.

{check_table(rows)}

The last column is the engine on its own clock. The two runs differ from each other, because others
used this machine too. At 80 requests a second more come than the engine can answer, so the queue
grows to the end, and a few percent in the time of a step become many in the wait.

**Beside the server.** The application of `minilora serve`, everything but the socket, answers the
requests as streams; its clock is the processor time of its process. What HTTP takes beside the
engine was fitted to other runs, {in_time(http["request"])} a request and {in_time(http["token"])} a
token, and the simulation was given it. Of the medians of three runs, {within(rows, what="server")};
{singles(rows)} The real server, with its socket, was not compared.

{server_table(rows)}

## Which caches hit?

Each level sees what the one before it missed. Che's approximation is the oracle.

{hits_table(rows)}

*Not steady yet*: the cache was not full for long enough in {requests:,} requests.
Where the exponent is 0.8, memory hardly helps, and the store and the registry carry the traffic;
where it is 1.2, a server's memory is nearly all that is needed.

## Rendezvous or random?

At half of what the engines can do. At random every server caches the same hot adapters. By
rendezvous hashing each adapter has two servers, and the second gets requests only while the
first is busier, so memory adds up. *Che* is the formula for one server's memory at random, and for
half of all servers' memory (both places always used) to all of it (one place).

{routing_table(rows)}

## What breaks first?

Neither the registry nor the disks: see the last two columns.

{load_table(rows)}

*Load* is a share of what {fleet.servers} engines can do together. Each row is some
{load_seconds:.0f} seconds of traffic on warm caches.

It is the rows of a few servers. The most popular adapter gets {percent(popular)} of all requests at
exponent 1. By arithmetic its two servers have no time for another adapter from {percent(limits[0])}
of the load on where there are 32 servers, and from {percent(limits[1])} on with 64; eight places
move that to {percent(limits[2])} with 64 servers. The arithmetic lets every prompt go in alone;
where many wait, several go in together, which is cheaper. In the simulation of {hot["servers"]}
servers for {hot["seconds"]:.0f} seconds the first tokens of that adapter come later and later with
two places {growing(rows, "rendezvous, 2 places")}; with eight places
{growing(rows, "rendezvous, 8 places")}.

{breaks_table(rows)}

*Early* is the second quarter of the time, *late* the last; medians. The choice of the less busy
place sends every other adapter away from the two servers, so its own users notice first, and the
rest of the fleet does not. The gateway here has two places (`PLACES` in
`minilora/serving/upstreams.py`), which is right for a handful of servers.

With large adapters it is another part. An adapter of rank 16 beside every Linear of an 8B base has
{sizes["nbytes"] / 1e6:,.0f} MB in bfloat16. The same {fleet.servers} servers, disks of 2 GB a
second, the same lines and the same engine (an 8B base is slower, so its rows in use say nothing
here):

{sizes_table(rows)}

So there the lines are full long before the rows are: larger disks and a faster line to the store
are what helps.

## Regions

{regions_table(rows)}

Caches are warm: {settings["warm"]:,} requests a region came before, {settings["warm"] / stays:.1f}
times the {stays / 1e6:.1f} million for which Che's formula lets an adapter stay in a store of
{fleet.store:,}. By the formula a store alone would leave the registry {percent(miss_rate)} of the
requests; the disks of the servers hold more than that.

If the registry is away, the requests of its rows fail and no other: {outage(rows)} of the three
regions' requests. Everything that was asked for lately goes on.

## From hours to milliseconds

{ladder_table(rows)}

*Assumed* are times that follow from the lines and the distances above, and the
{BOOT_TEXT} of a machine that boots. What must not be on a request's way is the base.

It took {cpu_seconds / 60:.1f} minutes of processor time, the engine's own runs included.
"""


BOOT_TEXT = "two minutes"


def main() -> None:
    """Write the page and the picture."""
    found = json.loads((RESULTS / "cpu" / "fleet.json").read_text(encoding="utf-8"))
    save_figure(fleet_figure(found["rows"]), DOCS / "fleet.png")
    print(write_text(DOCS / "fleet.md", page(found)))


if __name__ == "__main__":
    main()

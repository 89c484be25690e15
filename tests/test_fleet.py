"""The fleet's simulation against formulas that it does not contain; its benchmark, its page."""

import json
import sys
from collections import OrderedDict

import numpy as np
import pytest

from benchmarks import fleet, fleet_check, fleet_tables
from benchmarks.fleet_model import (
    Fleet,
    Simulation,
    Times,
    Trace,
    che,
    draw_trace,
    lru_hits,
    mixed,
    rendezvous,
    zipf,
)

INSTANT = Times(step=1e-9, row=0.0, prompt=1e-9, more=1e-9, read=0.0, nbytes=0)


def run(rate, times, tokens=(1, 1), requests=40_000, adapters=1, **settings):
    """A simulation of one region."""
    trace = draw_trace(zipf(adapters, 1.0), requests, rate, tokens, 1, seed=0)
    return trace, Simulation(trace, Fleet(**{"servers": 1, "places": 1, **settings}), times).run()


def test_one_row_and_equal_answers_wait_as_pollaczek_and_khinchine_say():
    """M/D/1: the mean wait is ρ / (2 (1 - ρ)) services."""
    service = 0.7
    _, found = run(1.0, INSTANT._replace(prompt=service, more=service), slots=1)
    waited = (found.end - service).mean()
    assert waited == pytest.approx(service * 0.7 / (2 * 0.3), rel=0.06)


def test_rows_that_cost_nothing_more_never_wait():
    """M/D/∞ in steps: an answer takes its steps, whoever stands beside it."""
    times = INSTANT._replace(step=0.01)
    _, found = run(100.0, times, tokens=(20, 20), requests=3000, slots=10_000)
    assert found.end.min() >= 0.19 - 1e-6
    assert found.end.max() <= 0.20 + 1e-6


def test_rows_share_a_step_that_grows_with_them():
    """Little's law holds between what is in the server and how long it stays."""
    trace, found = run(40.0, Times(2e-3, 5e-4, 1e-3, 5e-4, 0.0, 0), tokens=(8, 64), requests=8000)
    assert not np.isnan(found.end).any()
    assert (found.first <= found.end + 1e-9).all()
    leaves = trace.at + found.end
    times = np.linspace(trace.at[100], trace.at[-1], 4000)
    inside = np.searchsorted(trace.at, times) - np.searchsorted(np.sort(leaves), times)
    assert inside.mean() == pytest.approx(40.0 * found.end.mean(), rel=0.05)


@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_lru_is_near_che_s_formula(exponent):
    popularity = zipf(5000, exponent)
    trace = draw_trace(popularity, 120_000, 1.0, (1, 1), 1, seed=2).adapter.tolist()
    first, second = lru_hits(trace, [100, 1000], warm=60_000)
    formula, stays = che(popularity, 100)
    assert first == pytest.approx(formula, abs=0.01)
    assert second == pytest.approx(che(popularity, 1000, stays)[0], abs=0.02)


def test_lru_drops_the_least_recently_used_as_a_plain_list_does():
    draw = np.random.default_rng(0)
    trace, kept, hit = draw.integers(0, 30, 2000).tolist(), [], 0
    for key in trace:
        hit += key in kept
        kept = [*[each for each in kept if each != key][-9:], key]
    assert lru_hits(trace, [10], warm=0)[0] == hit / len(trace)


def test_by_rendezvous_memory_adds_up_and_at_random_it_does_not():
    popularity, settings = zipf(10_000, 1.0), {"servers": 8, "bank": 100, "slots": 10_000}
    for places, together in ((1, 8 * 100), (2, 8 * 100), (0, 100)):
        trace = draw_trace(popularity, 25_000, 100.0, (1, 1), 1, seed=5)
        found = Simulation(trace, Fleet(places=places, **settings), INSTANT)
        found.warm(popularity, 25_000, seed=6).run()
        # where nobody is busy, the second of two places gets nothing
        assert (found.level == 0).mean() == pytest.approx(che(popularity, together)[0], abs=0.03)


def test_a_server_that_goes_moves_only_what_it_had():
    adapters = np.arange(5000)
    before, after = rendezvous(adapters, 10, 10), rendezvous(adapters, 9, 9)
    firsts = before[:, 0]
    assert (after[firsts != 9, 0] == firsts[firsts != 9]).all()
    assert np.bincount(firsts, minlength=10) == pytest.approx(np.full(10, 500), abs=90)
    assert len(np.unique(mixed(np.arange(100_000, dtype=np.uint64)))) == 100_000


def test_a_miss_waits_for_each_level_on_its_way():
    trace = Trace(np.array([0.0, 1.0]), np.array([0, 0]), np.array([1, 1]), np.array([1, 1]))
    times = Times(1e-9, 0.0, 0.010, 0.010, 0.002, 1000)
    settings = Fleet(servers=1, regions=2, places=1, hop=0.1, far=(0.0, 0.5), line=1e5)
    found = Simulation(trace, settings, times).run()
    assert found.first[0] == pytest.approx(0.01 + 0.5 + 0.01 + 0.1 + 0.002 + 0.010)
    assert found.first[1] == pytest.approx(0.010)
    assert found.level.tolist() == [3, 0]
    assert isinstance(found.stores[1], OrderedDict)
    assert 0 in found.stores[1]
    assert 0 not in found.stores[0]


def test_what_the_store_has_passes_what_is_on_its_way_from_the_registry():
    trace = Trace(np.array([0.0, 0.1, 1.0]), np.array([0, 1, 1]), np.ones(3, int), np.zeros(3, int))
    times = Times(1e-9, 0.0, 0.010, 0.010, 0.002, 1000)
    settings = Fleet(servers=1, bank=1, host=1, places=1, hop=0.1, far=(5.0,), line=1e5)
    simulation = Simulation(trace, settings, times)
    simulation.stores[0].put(1)
    found = simulation.run()
    assert found.level.tolist() == [3, 2, 0]
    assert found.first[1] == pytest.approx(0.01 + 0.1 + 0.002 + 0.010)


def test_a_second_server_waits_for_what_is_on_its_way_from_the_registry():
    """Where the region asked for it already, it does not ask again, and has it no sooner."""
    trace = Trace(np.array([0.0, 0.1]), np.array([0, 0]), np.ones(2, int), np.zeros(2, int))
    times = Times(1e-9, 0.0, 0.010, 0.010, 0.002, 1000)
    settings = Fleet(servers=2, places=0, hop=0.1, far=(5.0,), line=1e5)
    for seed in range(20):  # until the two go to two servers
        found = Simulation(trace, settings, times, seed).run()
        if sum(len(server.bank) for server in found.servers[0]) == 2:
            break
    assert found.level.tolist() == [3, 3]
    assert found.registry.busy == pytest.approx(0.01)
    arrives = 0.01 + 5.0
    assert found.first[0] == pytest.approx(arrives + 0.01 + 0.1 + 0.002 + 0.010)
    assert found.first[1] == pytest.approx(arrives - 0.1 + 2 * 0.01 + 0.1 + 0.002 + 0.010)


def test_warm_caches_are_those_after_a_long_time():
    """What each level is asked for: plain LRUs in a row say it nearly exactly, Che's formula so."""
    popularity = zipf(20_000, 1.0)
    settings = Fleet(servers=1, places=1, bank=200, host=1000, store=5000, slots=10_000)
    trace = draw_trace(popularity, 30_000, 100.0, (1, 1), 1, seed=8)
    filled = Simulation(trace, settings, INSTANT).warm(popularity, 200_000, seed=9)
    found = Simulation(trace, settings, INSTANT).warm_as(filled).run()
    capacities = [200, 1000, 5000]
    long = draw_trace(popularity, 150_000, 1.0, (1, 1), 1, seed=10).adapter.tolist()
    plain, left, formula, before = lru_hits(long, capacities, warm=100_000), 1.0, 1.0, 0.0
    for level, capacity in enumerate(capacities):
        hit, before = che(popularity, capacity, before)
        left, formula = left * (1 - plain[level]), formula * (1 - hit)
        assert (found.level > level).mean() == pytest.approx(left, abs=0.01)
        assert (found.level > level).mean() == pytest.approx(formula, abs=0.02)
    assert found.caches()[0] is not filled.caches()[0]


def test_the_most_popular_adapter_s_servers_are_full_first():
    """One adapter gets half of all: its one server is full while the other three have time."""
    popularity = np.array([0.5, *np.full(50, 0.01)])
    times = Times(0.01, 0.0, 0.001, 0.001, 0.0, 0)
    trace = draw_trace(popularity, 6000, 90.0, (10, 10), 1, seed=3)
    run = Simulation(trace, Fleet(servers=4, places=1, slots=4), times).run()
    found = fleet.hottest(run)
    assert found["hottest's rows"] > 0.7
    assert found["hottest, late"] > 2 * found["hottest, early"] > 20 * 0.01
    assert found["waiting"] > 0


def test_the_fit_finds_the_times_that_made_the_steps():
    steps = [
        fleet_check.Step(rows, prompts, (0.004 + 1e-4 * rows) * (rows > 0) + cost)
        for rows in range(0, 40, 3)
        for prompts, cost in ((0, 0.0), (1, 0.005), (3, 0.008))
        if rows or prompts
    ]
    found = fleet_check.fitted_times(steps, 0.002, 86016)
    assert found == pytest.approx((0.004, 1e-4, 0.005, 0.0015, 0.002, 86016))
    falling = [fleet_check.Step(rows, 0, 0.004 - 1e-3 * rows) for rows in (1, 2, 3)]
    assert min(fleet_check.fitted_times(falling, 0.002, 86016)) >= 0


@pytest.mark.slow
def test_the_benchmark_runs_and_its_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "SMALL", 10)
    monkeypatch.setattr(fleet, "CAPACITIES", (10, 100))
    monkeypatch.setattr(fleet, "LOADS", (0.3, 1.0))
    monkeypatch.setattr(fleet, "MANY", 8)
    monkeypatch.setattr(fleet, "BREAKS", (0.5, 0.8))
    monkeypatch.setattr(fleet, "TURNS", 2)
    monkeypatch.setattr(fleet, "SERVED", (50.0,))
    sizes = "--adapters 2000 --requests 300 --small 6 --threads 1 --warm 3000 --seconds 2"
    monkeypatch.setattr(sys, "argv", ["fleet", *sizes.split(), "--out", str(tmp_path)])
    monkeypatch.setattr(fleet, "EXPONENTS", (1.0,))
    fleet.main()
    found = json.loads((tmp_path / "cpu" / "fleet.json").read_text())
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--parts", "hits"])
    fleet.main()
    again = json.loads((tmp_path / "cpu" / "fleet.json").read_text())
    assert len(again["rows"]) == len(found["rows"])
    assert "A million adapters" in fleet_tables.page(found)
    assert len(fleet_tables.fleet_figure(found["rows"]).axes) == 4


def test_the_page_says_what_the_results_say():
    found = json.loads((fleet_tables.RESULTS / "cpu" / "fleet.json").read_text(encoding="utf-8"))
    assert (fleet_tables.DOCS / "fleet.md").read_text(encoding="utf-8") == fleet_tables.page(found)
    hits = [row for row in found["rows"] if row["what"] in ("hits", "chain") and row["steady"]]
    assert len(hits) > 8
    assert max(abs(row["simulated"] - row["che"]) for row in hits) < 0.02

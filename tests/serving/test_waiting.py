"""Who fills the batch makes room for who asks for a row; alone it may have everything."""

import threading
import time
from collections import Counter
from itertools import pairwise

import pytest

from minilora.serving import Engine
from minilora.serving.engine import BETWEEN_PREFILLS
from minilora.serving.fairness import LATELY, Shares
from minilora.serving.waiting import READINGS

from .adapters import make_adapter
from .small import finish, generated, small_bank, small_base

PROMPT = [5, 6, 7]


def rows(engine):
    """How many rows each tenant has."""
    return Counter(slot.answer.request.tenant for slot in engine.batch.in_use)


def flood(engine, count, tokens=30):
    """So many requests of one tenant."""
    settings = {"max_new_tokens": tokens, "ends": [], "tenant": "max"}
    return [engine.submit(PROMPT, **settings) for _ in range(count)]


def test_alone_a_tenant_has_all_rows_at_once():
    engine = Engine(small_bank(), slots=8)
    flood(engine, 20)
    engine.step()
    assert rows(engine) == {"max": 8}
    finish(engine)


def test_beside_another_it_has_its_share_and_the_other_waits_for_nothing():
    engine = Engine(small_bank(), slots=8)
    answers = flood(engine, 40, tokens=10)
    engine.submit(PROMPT, tenant="ann", max_new_tokens=40, ends=[])
    engine.step()
    assert rows(engine)["ann"] == 1, "its first row comes at once"
    began = []
    while engine.step():
        assert rows(engine)["max"] <= 4 or not rows(engine)["ann"]
        began.append(sum(bool(answer.ids) for answer in answers))
    assert all(answer.result().reason == "length" for answer in answers), "nobody starves"
    joins = [step for step, (a, b) in enumerate(pairwise(began)) if a < b]
    beside = [step for step in joins if step < 38]
    pauses = [b - a for a, b in pairwise(beside)]
    assert pauses
    assert min(pauses) >= BETWEEN_PREFILLS, "prompts beside others come together"


def test_a_tenant_that_asked_long_ago_has_no_share():
    now = [0.0]
    shares = Shares(8, clock=lambda: now[0])
    shares.asks("ann")
    shares.asks("max")
    assert shares.full(["max"] * 4) == {"max"}
    assert shares.full(["max"], several=False) == {"max"}
    now[0] = LATELY + 1
    assert shares.full(["max"] * 7 + ["ann"]) == {"max"}, "who has a row is still there"
    assert shares.full(["max"] * 7, several=False) == set()


def step_until(engine, holds):
    """Step until it holds, or for three seconds; whether it does."""
    until = time.monotonic() + 3
    while not holds() and time.monotonic() < until:
        engine.step()
        time.sleep(0.001)
    return holds()


def test_who_only_misses_a_row_keeps_no_adapter_in_memory_for_it(monkeypatch):
    room = max(known.nbytes for known in small_bank("ae").known.values())
    engine = Engine(small_bank("ae", memory=room), slots=4)
    engine.waiting.shares.asks("ann")
    settings = {"tenant": "max", "max_new_tokens": 80, "ends": []}
    engine.bank.cache.residents.clear()
    go = gated(engine, monkeypatch, "a")
    flood = [engine.submit(PROMPT, "a", **settings) for _ in range(6)]
    engine.step()
    assert len(engine.waiting.loading) == 6
    go.set()
    assert step_until(engine, lambda: rows(engine)["max"] == 2)
    assert engine.bank.cache.pins, "two have their share, four have their adapter and no row"
    ann = engine.submit(PROMPT, "e", tenant="ann", max_new_tokens=4, ends=[])
    step_until(engine, lambda: ann.ids or flood[0].end)
    assert ann.ids
    assert len(flood[0].ids) < 60
    finish(engine)
    for answer in (ann, *flood):
        assert answer.result().reason == "length"
        assert answer.ids == generated(answer)[1]
    assert not engine.bank.cache.pins
    engine.close()


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """Folders of twenty adapters."""
    root = tmp_path_factory.mktemp("cold")
    made = {f"n{n}": make_adapter(root / f"n{n}", n, base=small_base(), r=1) for n in range(20)}
    return made


def cold_engine(cold, slots=4):
    """An engine whose bank knows them and has none in memory, beside a tenant that asked lately."""
    engine = Engine(small_bank("e"), slots)
    for name, folder in cold.items():
        engine.bank.load(name, folder)
    engine.bank.cache.residents.clear()
    engine.waiting.shares.asks("ann")
    return engine


def gated(engine, monkeypatch, names):
    """Reading one of these adapters waits for the event."""
    go, read = threading.Event(), engine.bank.read_again

    def slow(name, known):
        assert name not in names or go.wait(10)
        return read(name, known)

    monkeypatch.setattr(engine.bank, "read_again", slow)
    return go


def test_nothing_is_read_while_the_memory_is_full(cold, monkeypatch):
    """Each step read four adapters a tenant, only to hear that there was no room."""
    engine = cold_engine(cold)
    cache, read, readings = engine.bank.cache, engine.bank.read_again, []
    cache.memory = engine.bank.known["n0"].nbytes
    monkeypatch.setattr(engine.bank, "read_again", lambda *a: readings.append(a) or read(*a))
    pinned = engine.bank.hold("n0")
    answers = [engine.submit(PROMPT, f"n{n}", tenant="max", max_new_tokens=2) for n in range(1, 7)]
    for _ in range(30):
        engine.step()
        time.sleep(0.001)
    assert len(readings) == 1, "the pinned one"
    assert engine.reads_only(), "so that the engine's thread may sleep"
    engine.bank.release(pinned)
    finish(engine)
    assert all(answer.result() for answer in answers)
    assert not cache.pins
    engine.close()


def test_adapters_are_read_ahead_for_a_few_requests_only(cold, monkeypatch):
    """Twenty adapters in memory for who has two rows would be the others' memory."""
    engine = cold_engine(cold)
    go, most = gated(engine, monkeypatch, cold), 0
    settings = {"tenant": "max", "max_new_tokens": 60, "ends": []}
    flood = [engine.submit(PROMPT, name, **settings) for name in cold]
    engine.step()
    go.set()
    assert step_until(engine, lambda: rows(engine)["max"] == 2)
    for _ in range(20):
        engine.step()
        time.sleep(0.002)
        most = max(most, len(engine.bank.cache.pins))
    assert most <= 2 + READINGS
    finish(engine)
    assert all(len(answer.result().ids) == 60 for answer in flood)
    assert not engine.bank.cache.pins
    engine.close()


def test_one_adapter_on_disk_does_not_wait_for_anothers_twenty(cold, monkeypatch):
    engine = cold_engine(cold)
    go = gated(engine, monkeypatch, cold)
    flood = [engine.submit(PROMPT, name, tenant="max", max_new_tokens=2) for name in cold]
    engine.step()
    ann = engine.submit(PROMPT, "e", tenant="ann", max_new_tokens=2, ends=[])
    assert step_until(engine, lambda: ann.ids)
    go.set()
    finish(engine)
    assert all(answer.result() for answer in flood)
    engine.close()


def test_the_first_rows_of_others_do_not_hold_a_tenant_back():
    engine = Engine(small_bank(), slots=16)
    engine.submit(PROMPT, tenant="ann", max_new_tokens=60, ends=[])
    engine.step()
    flood(engine, 40, tokens=60)
    held = []
    for number in range(30):  # a newcomer in every second step
        if number % 2:
            engine.submit(PROMPT, tenant=f"small {number % 6}", max_new_tokens=1, ends=[])
        engine.step()
        held.append(rows(engine)["max"])
    assert max(held) > 1
    engine.close()


def test_what_an_answer_did_not_need_is_its_tenants_again(monkeypatch):
    engine = Engine(small_bank(), slots=2)
    credited = []
    monkeypatch.setattr(engine.waiting.turns, "refund", lambda *given: credited.append(given))
    settings = {"tenant": "max", "ends": []}
    short = engine.submit(PROMPT, max_new_tokens=9, **settings)
    whole = engine.submit(PROMPT, max_new_tokens=4, **settings)
    for _ in range(2):
        engine.step()
    short.cancel()
    finish(engine)
    assert 0 < len(short.ids) < 9
    assert len(whole.ids) == 4
    assert sorted(credited) == [("max", 0), ("max", 9 - len(short.ids))]
    engine.close()


def test_who_leaves_while_the_adapter_is_read_is_told_and_holds_nothing(cold, monkeypatch):
    engine = cold_engine(cold)
    go = gated(engine, monkeypatch, cold)
    answer = engine.submit(PROMPT, "n0", tenant="max", max_new_tokens=2)
    engine.step()
    assert len(engine.waiting) == 1
    answer.cancel()
    engine.step()
    assert answer.result(timeout=1).reason == "cancelled"
    assert len(engine.waiting) == 0
    go.set()
    engine.bank.readers.pool.shutdown()
    assert not engine.bank.cache.pins
    engine.close()

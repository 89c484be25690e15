"""Who fills the batch makes room for who asks for a row; alone it may have everything."""

from collections import Counter
from itertools import pairwise

from minilora.serving import Engine
from minilora.serving.engine import BETWEEN_PREFILLS
from minilora.serving.fairness import LATELY, Shares

from .small import finish, small_bank

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
    assert shares.full(["max"], rested=False) == {"max"}
    now[0] = LATELY + 1
    assert shares.full(["max"] * 7 + ["ann"]) == {"max"}, "who has a row is still there"
    assert shares.full(["max"] * 7, rested=False) == set()

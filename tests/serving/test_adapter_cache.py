"""The cache: bytes, pins, one reader an adapter."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.serving.adapter_cache import AdapterCache, NoRoom, Resident
from minilora.serving.layer import Factors


def resident(nbytes=10):
    return Resident({"q": Factors(torch.ones(1, 1), torch.ones(1, 1))}, nbytes)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=40))
def test_the_least_recently_used_go_and_the_bytes_hold(asked):
    """Against a list that is searched from its old end."""
    cache, model = AdapterCache(memory=60), []
    sizes = {}
    for content, size in asked:
        size = sizes.setdefault(content, size)
        got = cache.hold(content, lambda size=size: resident(size))
        cache.release(content)
        assert got.nbytes == size
        if content in model:
            model.remove(content)
        while sum(sizes[each] for each in model) + size > 60:
            model.pop(0)
        model.append(content)
        assert list(cache.residents) == model
        assert cache.nbytes == sum(sizes[each] for each in model) <= 60


def test_a_pinned_adapter_stays_and_a_full_memory_is_an_error_for_the_newcomer():
    cache = AdapterCache(memory=25)
    cache.hold("a", resident)
    cache.hold("b", resident)
    with pytest.raises(ValueError, match="an adapter of 10 bytes has no room: memory=25, of which"):
        cache.hold("c", resident)
    cache.release("b")
    cache.hold("c", resident)
    assert list(cache.residents) == ["a", "c"]  # a is older, and in use
    cache.drop("a")  # pinned: it stays
    assert "a" in cache
    cache.release("a")
    cache.drop("a")
    assert "a" not in cache
    with pytest.raises(ValueError, match="has no room"):
        AdapterCache(memory=9).hold("a", resident)


def test_who_may_ask_again_is_told_apart_from_who_never_fits():
    cache = AdapterCache(memory=20)
    cache.hold("a", lambda: resident(1))
    with pytest.raises(NoRoom, match="ask again later"):
        cache.hold("b", lambda: resident(20))
    with pytest.raises(ValueError, match="has no room") as never:
        cache.hold("c", lambda: resident(21))
    assert not isinstance(never.value, NoRoom)
    cache.release("a")
    assert cache.hold("b", lambda: resident(20)).nbytes == 20


def test_each_who_holds_an_adapter_pins_it():
    cache = AdapterCache(memory=10)
    for _ in range(3):
        cache.hold("a", resident)
    for _ in range(2):
        cache.release("a")
        with pytest.raises(NoRoom):
            cache.hold("b", resident)
    cache.release("a")
    cache.hold("b", resident)
    assert list(cache.residents) == ["b"]
    assert cache.pins == {"b": 1}


def test_room_is_what_pinned_adapters_leave():
    assert AdapterCache().has_room({"a": 10**12})
    cache = AdapterCache(memory=30)
    cache.hold("a", resident)
    cache.hold("free", resident)
    cache.release("free")
    assert cache.has_room({"b": 20})
    assert not cache.has_room({"b": 21})
    assert cache.has_room({"a": 10, "b": 20}), "what is pinned is there already"
    assert not cache.has_room({"b": 20, "c": 1})


def test_lru_what_was_just_read_is_not_dropped_for_its_own_sake():
    cache = AdapterCache(memory=10)
    for content in ("a", "b", "a"):
        cache.hold(content, resident)
        assert content in cache
        cache.release(content)


def test_one_reader_an_adapter_and_the_others_wait_for_it():
    cache, reads, begin = AdapterCache(), [], threading.Event()

    def read():
        reads.append(threading.get_ident())
        begin.wait(5)
        return resident()

    got = []
    threads = [threading.Thread(target=lambda: got.append(cache.hold("a", read))) for _ in range(6)]
    for thread in threads:
        thread.start()
    while not reads:
        time.sleep(0.001)
    assert cache.hold("b", resident) is not None  # another adapter waits for nobody
    begin.set()
    for thread in threads:
        thread.join(5)
    assert len(reads) == 1
    assert len(got) == 6
    assert cache.pins["a"] == 6


def test_gateway_584_an_adapter_that_cannot_be_read_stops_only_those_who_ask_for_it():
    """kubernetes-sigs/gateway-api-inference-extension #584: one bad adapter kept the rest out."""
    cache = AdapterCache()

    def broken():
        raise ValueError("damaged")

    for _ in range(2):  # an error is not remembered: the file may be whole again
        with pytest.raises(ValueError, match="damaged"):
            cache.hold("bad", broken)
    assert cache.hold("good", resident).nbytes == 10
    assert cache.hold("bad", resident).nbytes == 10
    assert not cache.readings

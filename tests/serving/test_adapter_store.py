"""Adapters by name: strict, known by content, in memory or on disk."""

import shutil
from types import SimpleNamespace

import pytest
import torch

import minilora
from minilora.hub.adapter import read_adapter
from minilora.serving.adapter_cache import NoRoom
from minilora.serving.adapter_store import AdapterStore, is_ready

from .adapters import adapted, make_adapter

SIZE = 6 * 4 * (128 + 128 + 128 + 64) * 4  # bytes of r=4 on q and v of six layers


@pytest.fixture
def store():
    return AdapterStore(minilora.load_base())


def test_names_come_and_go_and_the_content_is_the_hubs(store, folders):
    for name, folder in folders.items():
        assert store.load(name, folder) == read_adapter(folder).content_id
    assert store.names() == ["mlp", "qv", "rs"]
    assert store.load("qv", folders["qv"]) == store.known["qv"].content  # again: no change
    store.unload("mlp")
    assert store.names() == ["qv", "rs"]
    assert len(store.cache.residents) == 2


def test_tgi_2505_an_unknown_name_is_an_error_with_the_nearest_names(store, folders):
    """huggingface/text-generation-inference #2505, peft #2090: the base answered instead."""
    with pytest.raises(ValueError, match="there is no adapter 'qv'; known are: none; bank.load"):
        store.hold("qv")
    store.load("naval", folders["qv"])
    with pytest.raises(ValueError, match="there is no adapter 'navel'; did you mean 'naval'"):
        store.hold("navel")
    with pytest.raises(ValueError, match="there is no adapter 'zzz'; known are: naval"):
        store.unload("zzz")


def test_vllm_42125_other_weights_under_an_old_name_are_another_content(store, folders, tmp_path):
    """vllm-project/vllm #42125, #30931, sgl-project/sglang #8263: a name stood for the weights."""
    folder = make_adapter(tmp_path / "a", seed=7)
    old = store.load("naval", folder)
    held = store.hold("naval")
    with pytest.raises(ValueError, match="'naval' is the name of other weights"):
        store.load("naval", folders["qv"])
    new = store.load("naval", folders["qv"], replace=True)
    assert new != old
    again = store.hold("naval")
    assert (held.key, again.key) == (((old, 1.0),), ((new, 1.0),))
    path = next(iter(held.parts[0][0]))
    assert not torch.equal(held.parts[0][0][path].A, again.parts[0][0][path].A)
    # the same bytes under two names are one content, in memory once
    store.load("copy", folders["qv"])
    assert store.hold("copy").key == again.key


def test_sglang_7808_a_rank_above_the_banks_is_refused_whatever_came_first(folders):
    store = AdapterStore(minilora.load_base(), max_rank=4)
    store.load("small", folders["rs"])
    with pytest.raises(ValueError, match=r"mlp: model.layers.\S+ has rank 8, the bank max_rank=4"):
        store.load("mlp", folders["mlp"])
    store.load("qv", folders["qv"])
    assert store.names() == ["qv", "small"]
    with pytest.raises(ValueError, match="qv, small: ranks of 6 together, the bank has max"):
        store.hold([("qv", 1.0), ("small", 0.5)])


def test_llama_cpp_19153_a_hundred_adapters_take_the_memory_that_was_given(tmp_path, folders):
    """ggml-org/llama.cpp #19153: memory grew with every adapter."""
    store = AdapterStore(minilora.load_base(), memory=3 * SIZE)
    folder = tmp_path / "one"
    for number in range(8):
        store.load(f"user-{number}", make_adapter(folder / str(number), seed=number))
        assert store.cache.nbytes <= 3 * SIZE
    assert store.cache.nbytes == 3 * SIZE
    assert len(store.names()) == 8
    before = store.known["user-0"].content
    assert before not in store.cache
    assert store.hold("user-0").key == ((before, 1.0),)  # read again


def test_an_adapter_that_is_gone_or_changed_on_disk_is_an_error_for_who_needs_it(tmp_path):
    store = AdapterStore(minilora.load_base(), memory=SIZE)
    one, two = (make_adapter(tmp_path / str(seed), seed=seed) for seed in range(2))
    store.load("one", one)
    held = store.hold("one")
    shutil.rmtree(one)
    assert store.hold("one").key == held.key  # in memory: nothing is read
    store.release(held)
    store.release(held)
    store.load("two", two)
    with pytest.raises(ValueError, match="adapter_model.safetensors does not exist"):
        store.fetch(store.check("one")).result()
    make_adapter(one, seed=5)
    with pytest.raises(ValueError, match="one: the files in .* are no longer those that were load"):
        store.hold("one")
    assert store.hold("two").parts
    store.load("one", one, replace=True)  # two is pinned, so one is not in memory yet
    with pytest.raises(ValueError, match="has no room"):
        store.hold("one")
    assert store.names() == ["one", "two"]
    assert not store.cache.readings


def test_what_is_in_memory_is_held_at_once(store, folders):
    """Without waiting for its turn among what has to be read."""
    store.load("qv", folders["qv"])
    store.load("rs", folders["rs"])
    chosen = store.check([("qv", 1.0), ("rs", 0.5)])
    store.readers.submit = None  # never reached
    held = store.fetch(chosen)
    assert held.done()
    assert [weight for _, weight in held.result().key] == [1.0, 0.5]
    store.release(held.result())


def test_bad_banks_and_choices_are_refused(folders):
    with pytest.raises(ValueError, match="expected a base without adapters, got one at model.lay"):
        AdapterStore(adapted(0))
    for memory in (0, -5):
        with pytest.raises(ValueError, match=f"memory must be a positive number .* got {memory}"):
            AdapterStore(minilora.load_base(), memory=memory)
    assert AdapterStore(minilora.load_base(), memory=1).cache.memory == 1
    with pytest.raises(ValueError, match="r must be"):
        AdapterStore(minilora.load_base(), max_rank=0)
    store = AdapterStore(minilora.load_base())
    store.load("qv", folders["qv"])
    for weight in (float("nan"), "1", None):
        with pytest.raises(ValueError, match="qv: expected a finite weight"):
            store.hold([("qv", weight)])
    with pytest.raises(ValueError, match="expected an adapter and its weight, got 'qv'"):
        store.hold(["qv"])
    for choice in ([], (), 5, {"qv": 1.0}):
        with pytest.raises(ValueError, match="expected an adapter's name, a list of names with"):
            store.check(choice)
    assert not store.cache.pins


@pytest.mark.parametrize(
    ("done", "error", "ready"),
    [(False, None, False), (True, None, True), (True, OSError(), True), (True, NoRoom(), False)],
    ids=["still read", "read", "failed", "no room"],
)
def test_a_reading_is_ready_when_it_has_ended_unless_there_was_no_room(done, error, ready):
    assert is_ready(SimpleNamespace(done=lambda: done, exception=lambda: error)) == ready

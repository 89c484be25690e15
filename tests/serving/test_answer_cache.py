"""The cache of greedy answers: every part of the key counts, the bytes hold, tenants are apart."""

import sys
from dataclasses import is_dataclass, replace

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st

from minilora.model.sampling import Sampling
from minilora.serving import Engine
from minilora.serving.adapter_store import Known
from minilora.serving.answer_cache import AnswerCache, hash_of_parts, key_of
from minilora.serving.requests import Answer, Finished, Request, TokenLogprob

from .live import serving, small_service
from .small import FOLDERS, finish, small_bank

texts = st.text(max_size=3) | st.sampled_from(["tenant", "adapter", "a", ""])
ADAPTER = (("a", Known(None, "c0", {}, 8), 1.0),)


def sampling(most=8, temperature=0.0, seed=0, ends=(2,)):
    return Sampling(most, temperature, None, seed, ends, True, None)


BASIC = Request((1, 2, 3), ADAPTER, "acme", sampling(), ("x",))


@limited(max_examples=40)
@given(*[st.lists(st.tuples(texts, texts), max_size=4)] * 2)
def test_two_lists_of_parts_have_one_key_only_if_they_are_equal(one, other):
    assert (hash_of_parts(one) == hash_of_parts(other)) == (one == other)


def test_vllm_44701_one_text_in_two_places_has_two_keys():
    assert hash_of_parts([("tenant", "naval")]) != hash_of_parts([("adapter", "naval")])


OTHERS = {
    "tenant": replace(BASIC, tenant="zeta"),
    "prompt": replace(BASIC, prompt=(1, 2)),
    "shifted prompt": replace(BASIC, prompt=(1, 2, 3 << 8)),
    "no adapter": replace(BASIC, adapter=()),
    "digest": replace(BASIC, adapter=(("a", Known(None, "c1", {}, 8), 1.0),)),
    "weight": replace(BASIC, adapter=(("a", Known(None, "c0", {}, 8), 0.5),)),
    "twice": replace(BASIC, adapter=ADAPTER * 2),
    "tokens": replace(BASIC, sampling=sampling(9)),
    "ends": replace(BASIC, sampling=sampling(ends=(2, 3))),
    "stop": replace(BASIC, stops=("y",)),
    "two stops": replace(BASIC, stops=("x", "x")),
    "no stop": replace(BASIC, stops=()),
    "logprobs": replace(BASIC, logprobs=0),
}


@pytest.mark.parametrize("case", OTHERS)
def test_whatever_an_answer_depends_on_is_in_its_key(case):
    assert key_of(OTHERS[case], "base") != key_of(BASIC, "base")
    assert key_of(BASIC, "another base") != key_of(BASIC, "base")


def test_what_a_greedy_answer_does_not_depend_on_is_not():
    renamed = replace(BASIC, adapter=(("other name", Known(None, "c0", {}, 8), 1.0),))
    seeded = replace(BASIC, sampling=sampling(seed=7))
    assert key_of(BASIC, "base") == key_of(renamed, "base") == key_of(seeded, "base")


def answer_to(request, text="x" * 100, reason="stop"):
    answer = Answer(request, None, lambda _: None)
    return answer, Finished(text, (1,), reason, (), 0.1, 0.2)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 900)), max_size=40)
)
def test_the_bytes_hold_for_each_tenant_and_one_never_pushes_out_another(steps):
    cache, together = AnswerCache("base", memory=6000), {}
    for tenant, prompt, size in steps:
        request = replace(BASIC, tenant=tenant, prompt=(prompt,))
        alone = together.setdefault(tenant, AnswerCache("base", memory=6000))
        for each in (cache, alone):
            if each.find(request) is None:
                each.keep(*answer_to(request, "x" * size))
        for name, order in cache.order.items():
            assert sum(order.values()) <= 6000
            assert list(order) == list(together[name].order[name]), "as if it were alone"
        assert set(cache.kept) == {key for order in cache.order.values() for key in order}


def test_the_answer_that_was_not_asked_for_the_longest_makes_room():
    cache = AnswerCache("base", memory=2500)  # for two of these
    requests = [replace(BASIC, prompt=(number,)) for number in range(3)]
    for request in requests:
        cache.keep(*answer_to(request))
        cache.find(requests[0])  # which is asked for again and again
    assert [cache.find(request) is not None for request in requests] == [True, False, True]


def test_what_is_drawn_cancelled_or_too_large_is_not_kept():
    assert AnswerCache("base", memory=1).memory == 1
    cache = AnswerCache("base", memory=1500)
    drawn = replace(BASIC, sampling=sampling(temperature=0.5))
    too_large = {"text": "x" * 900}
    for request, fields in [(drawn, {}), (BASIC, {"reason": "cancelled"}), (BASIC, too_large)]:
        cache.keep(*answer_to(request, **fields))
        assert cache.find(request) is None
    assert cache.kept == {}
    with pytest.raises(ValueError, match="memory: expected a positive number"):
        AnswerCache("base", 0)


def bytes_of(value, seen):
    """What a value and all that it holds take in memory."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    inner = (
        value if isinstance(value, tuple) else vars(value).values() if is_dataclass(value) else ()
    )
    own = sys.getsizeof(value) + (sys.getsizeof(vars(value)) if is_dataclass(value) else 0)
    return own + sum(bytes_of(each, seen) for each in inner)


@pytest.mark.parametrize("tokens", [0, 1, 500])
@pytest.mark.parametrize("top", [None, 0, 1, 20])
def test_an_answer_counts_what_it_takes_in_memory(tokens, top):
    logprobs = [
        TokenLogprob(300 + n, -0.5 - n, tuple((900 + n, n + k / 30) for k in range(top)))
        for n in range(tokens if top is not None else 0)
    ]
    answer = Answer(BASIC, None, lambda _: None)
    answer.logprobs = logprobs
    finished = Finished("字" * tokens, tuple(range(300, 300 + tokens)), "stop", (), 0.1, 0.2)
    cache = AnswerCache("base")
    cache.keep(answer, finished)
    ((key, counted),) = cache.order["acme"].items()
    taken = bytes_of(cache.kept[key], set()) + sys.getsizeof(key)
    assert taken <= counted <= 1000 + 2 * taken


@pytest.mark.parametrize("settings", [{}, {"stop": ["e"]}, {"logprobs": 2}, {"max_new_tokens": 5}])
def test_a_kept_answer_is_the_computed_one_in_text_pieces_tokens_and_logprobs(settings):
    bank = small_bank()
    engine = Engine(bank, slots=2)
    cache = AnswerCache(bank.fingerprint.tensors)
    first = engine.submit("Hull status?", "a", **settings, find_answer=cache.find)
    finish(engine)
    result = first.result()
    cache.keep(first, result)
    for adapter in ("a", "b"):
        again = engine.submit("Hull status?", adapter, **settings, find_answer=cache.find)
        assert again.replayed == (adapter == "a")
        finish(engine)
        if adapter == "a":
            assert "".join(again) == result.text
            assert (again.ids, again.logprobs, again.key) == (first.ids, first.logprobs, first.key)
            assert again.end.reason == result.reason
    assert all(isinstance(each, TokenLogprob) for each in first.logprobs)


ASKED = {"messages": [{"role": "user", "content": "Hull status?"}], "max_tokens": 6}


def ask(address, **more):
    body = {"model": "a", "temperature": 0, **ASKED, **more}
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    return response.headers["x-minilora-cache"], response


def test_over_http_the_second_time_is_a_hit_whole_and_streamed_and_says_so():
    service = small_service(answers=AnswerCache("base"))
    with serving(service) as address:
        assert ask(address)[0] == "miss"
        (hit, first), (_, computed) = ask(address), ask(address, model="b")
        assert hit == "hit"
        again = ask(address)[1].json()
        assert again["choices"] == first.json()["choices"] != computed.json()["choices"]
        assert again["usage"] == first.json()["usage"]
        hit, streamed = ask(address, stream=True, stream_options={"include_usage": True})
        assert hit == "hit"
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert ask(address, max_tokens=5)[0] == "miss"
        assert ask(address, temperature=0.5)[0] == ask(address, temperature=0.5)[0] == "miss"
        assert ask(address, n=2)[0] == "hit", "greedy answers are alike"


def test_vllm_42125_new_weights_under_the_name_are_computed_not_remembered():
    service = small_service(answers=AnswerCache("base"), root=FOLDERS["a"].parent)
    with serving(service) as address:
        before = ask(address)[1]
        load = {"lora_name": "a", "lora_path": "b", "load_inplace": True}
        assert httpx.post(f"{address}/v1/load_lora_adapter", json=load).status_code == 200
        missed, after = ask(address)
        assert missed == "miss"
        assert after.headers["x-minilora-digest"] != before.headers["x-minilora-digest"]
        assert after.json()["choices"] == ask(address, model="b")[1].json()["choices"]
        load["lora_path"] = "a"
        assert httpx.post(f"{address}/v1/load_lora_adapter", json=load).status_code == 200
        hit, again = ask(address)
        assert hit == "hit"
        assert again.json()["choices"] == before.json()["choices"]

"""Whatever stands beside it, a request gets what it gets alone; what fails, fails alone."""

import shutil
import threading
import time
from collections import deque

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from minilora.serving import AdapterBank, Engine
from minilora.serving.exactness import rows_are_exact
from minilora.serving.requests import Busy, Finished, RequestFailed

from .. import profiles
from ..tolerance import assert_as_close, exactly
from .small import FOLDERS, finish, generated, recorded, small_bank, small_base, solo

EXACT = rows_are_exact(small_base(), max_rank=16)
CHOICES = [None, "a", "b", "c", [("a", 1.0), ("b", -0.5)], [("c", 1.0)]]


def prompt_of(length, seed=0):
    return torch.randint(3, 1536, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def check_alone(answer, logits):
    """Tokens equal those of the solo run; logits to the bit where the machine allows."""
    end = answer.result(timeout=1)
    alone, alone_logits = solo(answer)
    if end.reason == "cancelled":
        assert tuple(alone.ids[: len(end.ids)]) == end.ids
    else:
        assert alone.result(timeout=1).reason == end.reason
        assert tuple(alone.ids) == end.ids
    for ours, own in zip(logits, alone_logits, strict=False):
        if EXACT:
            assert torch.equal(ours, own)
    return end


def check_against_generate(answer, logits):
    """An independent path: LoRALayer, a batch of one, ``Llama.generate``."""
    model, new = generated(answer)
    ids, ends = answer.ids, answer.request.sampling.ends
    assert ids == new[: len(ids)]
    cancelled = answer.end is not None and answer.end.reason == "cancelled"
    assert cancelled or len(ids) == len(new) or new[len(ids)] in ends
    whole = torch.tensor([[*answer.request.prompt, *ids]])[
        :, : len(answer.request.prompt) - 1 + len(logits)
    ]
    with torch.no_grad():
        peer = model(whole)[0, -len(logits) :]
        assert_as_close(torch.stack(logits), peer, exactly(model, whole)[0, -len(logits) :])


def failure(answer):
    """The error that ended an answer, or None."""
    try:
        answer.result(timeout=1)
    except RequestFailed as error:
        return str(error)
    return None


class Traffic(RuleBasedStateMachine):
    """Requests of any kind come, go, and leave, while adapters are evicted, unloaded, replaced."""

    @initialize(slots=st.integers(1, 6), chunk=st.sampled_from([16, 32, 64]), tight=st.booleans())
    def begin(self, slots, chunk, tight):
        self.bank = small_bank("abc")
        if tight:  # room for about two of three: the others are read again and again
            sizes = sorted(each.nbytes for each in self.bank.cache.residents.values())
            self.bank.cache.memory = sizes[-1] + sizes[-2]
        self.engine = Engine(self.bank, slots, prefill_tokens=chunk)
        self.log, self.answers, self.cancelled = recorded(self.engine), [], set()

    @rule(
        choice=st.sampled_from(CHOICES),
        length=st.integers(1, 70),
        new=st.integers(1, 12),
        temperature=st.sampled_from([0.0, 0.0, 0.7]),
        seed=st.integers(0, 99),
        tenant=st.sampled_from("xyz"),
    )
    def submit(self, choice, length, new, temperature, seed, tenant):
        answer = self.engine.submit(
            prompt_of(length, seed),
            choice,
            tenant=tenant,
            max_new_tokens=new,
            temperature=temperature,
            seed=seed,
            top_p=0.9 if temperature else None,
        )
        answer.request_chunk = self.engine.batch.prefill_tokens
        self.answers.append(answer)

    @rule(steps=st.integers(1, 5))
    def steps(self, steps):
        for _ in range(steps):
            self.engine.step()
        assert len(self.engine.batch.in_use) <= self.engine.batch.slots

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def cancel(self, data):
        answer = data.draw(st.sampled_from(self.answers))
        answer.cancel()
        self.cancelled.add(answer)

    @rule(name=st.sampled_from("ab"), other=st.sampled_from("de"))
    def replace(self, name, other):
        self.bank.load(name, FOLDERS[other], replace=True)

    @rule(name=st.sampled_from("abc"))
    def unload_and_load(self, name):
        """Who waits and who has a row keep what the name meant."""
        self.bank.unload(name)
        self.engine.step()
        self.bank.load(name, FOLDERS[name])

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        finish(self.engine)
        batch = self.engine.batch
        assert not batch.in_use
        assert set(batch.cache.lengths) <= {0}
        assert not self.bank.cache.pins
        for answer in self.answers:
            if error := failure(answer):
                assert "no room" in error
                continue
            reason = answer.result(timeout=1).reason
            assert reason in ("stop", "length") or answer in self.cancelled
            if answer in self.log:
                check_alone(answer, self.log[answer])
        for answer in [each for each in self.answers if each in self.log][:1]:
            if all(weight == 1.0 for _, weight in answer.key):
                check_against_generate(answer, self.log[answer])
        self.engine.close()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=profiles.of(6, 25, 400), stateful_step_count=14, deadline=None
)


@pytest.fixture
def engine():
    made = Engine(small_bank(), slots=6, prefill_tokens=64)
    made.log = recorded(made)
    yield made
    made.close()


def submit(engine, number, choice=None, **more):
    """A request that differs by its number."""
    more = {"max_new_tokens": 3 + number % 7, **more}
    answer = engine.submit(prompt_of(1 + 5 * number % 37, number), choice, **more)
    answer.request_chunk = engine.batch.prefill_tokens
    return answer


def test_vllm_47724_a_load_while_it_decodes_changes_later_requests_only(engine):
    """vllm-project/vllm #47724: a hot load gave requests in flight another adapter's weights."""
    before = submit(engine, 1, "a", max_new_tokens=9)
    for _ in range(4):
        engine.step()
    old, new = before.key, engine.bank.load("a", FOLDERS["d"], replace=True)
    after = submit(engine, 1, "a", max_new_tokens=9)
    finish(engine)
    assert before.key == old
    assert after.key == ((new, 1.0),)
    for answer in (before, after):
        check_alone(answer, engine.log[answer])
        check_against_generate(answer, engine.log[answer])
    assert before.ids != after.ids


def test_vllm_3264_no_keys_or_values_are_shared_between_adapters_or_with_the_base(engine):
    """vllm-project/vllm #3264, #44250: a prefix's cache was found by its tokens alone."""
    choices = [None, "a", "b", "c", None, "a"]
    together = [engine.submit(prompt_of(30), choice, max_new_tokens=8) for choice in choices]
    finish(engine)
    later = [engine.submit(prompt_of(30), choice, max_new_tokens=8) for choice in choices[::-1]]
    finish(engine)
    ids = [answer.ids for answer in together]
    assert ids == [answer.ids for answer in later][::-1]
    assert len({tuple(each) for each in ids}) == 4
    for answer in together[:4]:
        check_against_generate(answer, engine.log[answer])


def test_lorax_62_under_load_every_row_has_its_own_weights(engine):
    """predibase/lorax #62, sgl-project/sglang #28091: wrong segments, but only under load."""
    answers = [submit(engine, n, CHOICES[n % len(CHOICES)], tenant=str(n % 3)) for n in range(40)]
    finish(engine)
    for answer in answers:
        answer.request_chunk = 64
        check_alone(answer, engine.log[answer])


def test_llama_cpp_10994_rows_of_all_adapters_decode_in_one_pass(engine, monkeypatch):
    """ggml-org/llama.cpp #10994, #10374, #10377: one adapter at a time, for the whole server."""
    answers = [submit(engine, n, choice, max_new_tokens=10) for n, choice in enumerate("abc")]
    answers.append(submit(engine, 3, None, max_new_tokens=10))
    engine.step()
    rows = []
    monkeypatch.setattr(
        engine.batch.model,
        "next_logits",
        lambda ids, *more: (
            rows.append(len(ids))
            or type(engine.batch.model).next_logits(engine.batch.model, ids, *more)
        ),
    )
    steps = 0
    while engine.step():
        steps += 1
    assert steps <= 9
    assert len(rows) <= 9
    for answer in answers:
        check_alone(answer, engine.log[answer])


def blocked_reads(engine, monkeypatch):
    """Reading an adapter waits for the event; returns it and the names that were read."""
    go, names, read = threading.Event(), [], engine.bank.read_again

    def slow(name, known):
        names.append(name)
        assert go.wait(10)
        return read(name, known)

    monkeypatch.setattr(engine.bank, "read_again", slow)
    return go, names


def test_vllm_15422_nobody_waits_for_an_adapter_that_is_not_theirs(engine, monkeypatch):
    """vllm-project/vllm #15422, #16876; sgl-project/sglang #15129, #14795: rows of the base, and
    of adapters in memory, waited behind one that was not."""
    del engine.bank.cache.residents[engine.bank.known["c"].content]
    go, _ = blocked_reads(engine, monkeypatch)
    behind = submit(engine, 0, "c", tenant="x")
    others = [submit(engine, n, choice, tenant="x") for n, choice in ((1, None), (2, "a"))]
    for _ in range(12):
        engine.step()
    assert all(answer.result(timeout=1) for answer in others)
    assert not behind.ids
    go.set()
    finish(engine)
    check_alone(behind, engine.log[behind])


@pytest.mark.parametrize("slots", [1, 2, 6])
def test_many_who_wait_for_a_slow_folder_hold_nobody_up(monkeypatch, slots):
    """Neither the base, nor an adapter in memory, nor another one on disk: a reading takes one of
    the readers' threads, however many wait for it (after vllm-project/vllm #15422)."""
    engine = Engine(small_bank(), slots, prefill_tokens=64)
    log = recorded(engine)
    for name in "bc":
        del engine.bank.cache.residents[engine.bank.known[name].content]
    go, read = threading.Event(), engine.bank.read_again

    def slow(name, known):
        assert name != "c" or go.wait(10)
        return read(name, known)

    monkeypatch.setattr(engine.bank, "read_again", slow)
    behind = [submit(engine, n, choice) for n, choice in enumerate(["c", "c", [("c", 1.0)]] * 2)]
    others = [submit(engine, n, choice) for n, choice in enumerate([None, "a", "b", "b"])]
    deadline = time.monotonic() + 10
    while not all(answer.ids for answer in others) and time.monotonic() < deadline:
        engine.step()
    assert all(answer.ids for answer in others)
    assert not any(answer.ids for answer in behind)
    go.set()
    finish(engine)
    for answer in (*behind, *others):
        check_alone(answer, log[answer])
    assert not engine.bank.cache.pins
    engine.close()


def test_a_backlog_of_one_tenant_and_adapter_holds_no_other_up(engine):
    backlog = [submit(engine, n, "a", tenant="many") for n in range(30)]
    for _ in range(3):
        engine.step()
    late = [
        submit(engine, 1, choice, tenant=tenant) for choice, tenant in (("b", "one"), (None, "two"))
    ]
    finish(engine)
    ends = sorted(backlog, key=lambda answer: answer.first_token)
    ahead = [sum(each.first_token < answer.first_token for each in ends) for answer in late]
    assert max(ahead) <= 14  # six had rows; the rest is one turn, not thirty requests


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_vllm_11658_greedy_and_seeded_answers_do_not_depend_on_neighbours(engine, temperature):
    """vllm-project/vllm #11658, #17524, #51226."""
    drawn = {"temperature": temperature, "seed": 5, "max_new_tokens": 12}
    alone = submit(engine, 3, "b", **drawn)
    finish(engine)
    beside = [submit(engine, n, CHOICES[n % 5], temperature=1.0, seed=n) for n in range(5)]
    engine.step()
    again = submit(engine, 3, "b", **drawn)
    more = [submit(engine, n, None, temperature=1.0) for n in range(9)]
    finish(engine)
    assert again.ids == alone.ids
    if EXACT:
        assert all(map(torch.equal, engine.log[again], engine.log[alone]))
    assert all(isinstance(answer.result(timeout=1), Finished) for answer in (*beside, *more))
    check_against_generate(again, engine.log[again])


def test_vllm_9428_who_leaves_frees_the_row():
    """vllm-project/vllm #9428, #54947, sgl-project/sglang #36552: it generated to the end."""
    with Engine(small_bank(), slots=2) as engine:
        answer = engine.submit(prompt_of(5), "a", max_new_tokens=80)
        pieces = iter(answer)
        next(pieces)
        pieces.close()
        end = answer.result(timeout=10)
        assert end.reason in ("cancelled", "length")
        deadline = time.monotonic() + 10
        while engine.batch.in_use and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not engine.batch.in_use


def test_one_bad_adapter_does_not_block_the_good_ones(engine, monkeypatch, tmp_path):
    """kubernetes-sigs/gateway-api-inference-extension #584; SkyRL #1606 read it at each step."""
    folder = shutil.copytree(FOLDERS["d"], tmp_path / "d")
    engine.bank.load("gone", folder)
    shutil.rmtree(folder)
    engine.bank.cache.residents.clear()
    go, names = blocked_reads(engine, monkeypatch)
    go.set()
    answers = [submit(engine, n, name) for n, name in enumerate(["gone", "a", "gone", None, "a"])]
    finish(engine)
    for answer in answers[::2][:2]:
        with pytest.raises(RequestFailed, match="d"):
            answer.result(timeout=1)
    for answer in (answers[1], answers[3], answers[4]):
        check_alone(answer, engine.log[answer])
    assert names.count("a") == 1


def test_production_stack_331_an_adapter_is_there_for_all_as_soon_as_it_is_loaded(engine):
    """vllm-project/production-stack #331: the router did not see an adapter that was loaded."""
    engine.step()
    with pytest.raises(ValueError, match="there is no adapter 'late'"):
        submit(engine, 1, "late")
    engine.bank.load("late", FOLDERS["e"])
    assert "late" in engine.bank.names()
    answer = submit(engine, 1, "late")
    engine.bank.unload("late")
    with pytest.raises(ValueError, match="there is no adapter 'late'"):
        submit(engine, 1, "late")
    finish(engine)
    check_alone(answer, engine.log[answer])


def test_what_can_never_be_answered_is_refused_before_anything(engine):
    bad = [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": [1] * 96}, "a prompt of 96 tokens leaves no room .* the base has 96 positions"),
        ({"prompt": [1, 1536]}, "expected token ids from 0 to 1535, got 1536"),
        ({"adapter": "aa"}, "there is no adapter 'aa'; did you mean 'a'"),
        ({"adapter": [("b", 1.0)] * 9}, "ranks of 18 together"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": [""]}, "stop: expected up to 16 texts"),
    ]
    for request, message in bad:
        with pytest.raises(ValueError, match=message):
            engine.submit(**{"prompt": [1, 2], **request})
    assert not engine.step()


def test_a_stop_string_ends_an_answer_before_it_and_a_stream_never_shows_a_part_of_it(base):
    asked = ("Status?", "Log: Hull 90%, Fuel 12%.")
    whole = base.generate_text(*asked, max_new_tokens=24)
    stop = " percent and"
    assert stop in whole
    with Engine(AdapterBank(base), slots=3) as engine:
        plain = engine.submit(asked, max_new_tokens=24)
        pieces = list(engine.submit(asked, max_new_tokens=24, stop=["never", stop]))
        assert plain.result().text == whole
        assert "".join(pieces) == whole[: whole.index(stop)].rstrip()
        assert len(pieces) > 2
        assert "".join(engine.submit(asked, max_new_tokens=24)) == whole


def test_a_model_that_fails_on_one_prompt_fails_it_alone(engine, monkeypatch):
    decoder = engine.batch.model.model
    forward = decoder.forward

    def failing(ids, segments, cache, *more):
        if (ids == 1234).any():
            raise MemoryError("too much")
        return forward(ids, segments, cache, *more)

    monkeypatch.setattr(decoder, "forward", failing)
    early = submit(engine, 2, "a", max_new_tokens=9)
    engine.step()
    bad = engine.submit([5, 1234], max_new_tokens=2)
    good = [submit(engine, n, "b") for n in (1, 4)]
    finish(engine)
    with pytest.raises(RequestFailed, match="too much") as caught:
        bad.result(timeout=1)
    assert isinstance(caught.value.__cause__, MemoryError)
    monkeypatch.undo()
    for answer in (early, *good):
        check_alone(answer, engine.log[answer])


def test_a_failure_of_a_whole_pass_ends_its_rows_and_the_engine_goes_on(engine, monkeypatch):
    answer = submit(engine, 1, "a", max_new_tokens=9)
    engine.step()
    monkeypatch.setattr(engine.batch, "decode", lambda: 1 / 0)
    waiting = submit(engine, 2, "b")
    engine.step()
    monkeypatch.undo()
    with pytest.raises(RequestFailed, match="division by zero"):
        answer.result(timeout=1)
    again = submit(engine, 3, "b")
    finish(engine)
    assert waiting.end is None
    check_alone(again, engine.log[again])


def test_logits_that_are_not_finite_are_an_error_of_their_row(engine):
    good, bad = submit(engine, 1, "a"), submit(engine, 2, None)
    take, rows = engine.batch.take, []

    def spoiled(first, logits):
        for slot, row in zip(engine.batch.running[first:], logits, strict=True):
            if slot.answer is bad:
                rows.append(row)
                row[7] = torch.nan
        take(first, logits)

    engine.batch.take = spoiled
    finish(engine)
    with pytest.raises(RequestFailed, match="not finite"):
        bad.result(timeout=1)
    check_alone(good, engine.log[good])
    assert len(rows) == 1


def test_a_new_request_gets_its_first_token_within_two_steps_while_others_stream():
    engine = Engine(small_bank(), slots=16)
    streams = [submit(engine, n, "a", max_new_tokens=60) for n in range(15)]
    for _ in range(5):
        engine.step()
    late = submit(engine, 7, "b")
    engine.step()
    assert late.first_token is not None
    assert not any(answer.end for answer in streams)
    engine.close()
    with pytest.raises(RequestFailed, match="the engine was closed"):
        streams[0].result(timeout=1)


def test_too_many_waiting_and_a_closed_engine_say_so():
    engine = Engine(small_bank(), slots=1, most_waiting=2)
    for _ in range(2):
        engine.submit([1, 2])
    with pytest.raises(Busy, match="2 requests are waiting"):
        engine.submit([1, 2])
    engine.close()
    with pytest.raises(Busy, match="closed"):
        engine.submit([1, 2])
    with pytest.raises(ValueError, match="started before"):
        engine.start()
    for wrong in ({"slots": 0}, {"prefill_tokens": 24}):
        with pytest.raises(ValueError, match="expected at least one slot"):
            Engine(small_bank(), **wrong)
    model = small_base()
    model.tokenizer = None
    with pytest.raises(ValueError, match="needs a minilora Llama with a tokenizer"):
        Engine(AdapterBank(model))


def test_what_comes_while_the_thread_finds_nothing_to_do_is_not_slept_on(monkeypatch):
    """A request between the last look and the sleep is seen before anybody sleeps."""
    engine = Engine(small_bank(), slots=2)
    step, asked = engine.step, []

    def late():
        busy = step()
        if not asked:
            asked.append(engine.submit(prompt_of(3), max_new_tokens=2, ends=[]))
        return busy

    monkeypatch.setattr(engine, "step", late)
    with engine:
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(asked[0].result(timeout=10).ids) == 2


def test_who_comes_and_leaves_between_two_looks_is_cancelled():
    """Both happen when the arrivals have been taken in, and the cancels not yet."""
    engine, late = Engine(small_bank(), slots=2), []

    class Arrivals(deque):
        def __bool__(self):
            if len(self) == 0 and not late:
                late.append(engine.submit(prompt_of(3), max_new_tokens=50, ends=[]))
                late[0].cancel()
                return False
            return len(self) > 0

    engine.arrivals = Arrivals()
    while engine.step() or engine.arrivals or engine.cancels:
        pass
    assert late[0].result(timeout=1).reason == "cancelled"


def test_an_engine_with_nothing_to_do_sleeps_and_so_does_one_that_only_reads(monkeypatch):
    engine = Engine(small_bank(), slots=2)
    step, steps = engine.step, []
    monkeypatch.setattr(engine, "step", lambda: steps.append(time.monotonic()) or step())
    engine.bank.cache.residents.clear()
    go, _ = blocked_reads(engine, monkeypatch)
    with engine:
        time.sleep(0.1)
        assert len(steps) <= 2, "nothing was asked"
        asked = time.monotonic()
        answer = engine.submit(prompt_of(3), "a", max_new_tokens=2)
        time.sleep(0.1)
        looked = len(steps)
        most = 10 + 100 * (time.monotonic() - asked)  # a busy machine wakes this thread late
        assert looked <= most, "it looks every hundredth of a second"
        go.set()
        assert answer.result(timeout=10)

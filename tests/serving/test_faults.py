"""What a careless or hostile caller gives: an error of that caller's, never another's answer."""

import shutil
import threading

import pytest

from minilora.commands.generate import read_rows
from minilora.serving import AdapterBank, Engine
from minilora.serving.adapter_cache import AdapterCache
from minilora.serving.fairness import DeficitRoundRobin
from minilora.serving.requests import Busy

from .small import FOLDERS, finish, small_bank, small_base
from .test_adapter_cache import resident

PROMPT = [5, 6, 7]


@pytest.fixture
def engine():
    made = Engine(small_bank(), slots=4, prefill_tokens=64)
    yield made
    made.close()


@pytest.mark.parametrize(
    "choice",
    [[], (), {}, 0, False, 5, zip(["a"], [1.0], strict=True), [(["x"], 1.0)]],
    ids=["list", "tuple", "dict", "0", "False", "5", "iterator", "bad pair"],
)
def test_what_is_no_choice_is_refused_and_never_answered_by_the_base(engine, choice):
    with pytest.raises(ValueError, match="expected an adapter"):
        engine.submit(PROMPT, choice)
    with pytest.raises(ValueError, match="row 0: expected an adapter"):
        engine.bank.generate([(choice, "Status?")])
    assert not engine.step()


def test_a_request_keeps_the_adapters_of_its_submit(engine):
    choice = [("a", 1.0)]
    answer = engine.submit(PROMPT, choice, max_new_tokens=2)
    content = engine.bank.known["a"].content
    choice[0] = ("b", 1.0)
    engine.bank.load("a", FOLDERS["d"], replace=True)
    finish(engine)
    assert answer.result(1).key == ((content, 1.0),)
    assert content not in engine.bank.cache  # no name stands for it any more


def test_a_request_fails_when_its_adapter_was_overwritten_on_disk(engine, tmp_path):
    folder = shutil.copytree(FOLDERS["d"], tmp_path / "d")
    engine.bank.load("mine", folder)
    answer = engine.submit(PROMPT, "mine", max_new_tokens=2)
    shutil.copytree(FOLDERS["e"], folder, dirs_exist_ok=True)
    engine.bank.load("mine", folder, replace=True)
    finish(engine)
    with pytest.raises(RuntimeError, match="no longer those that were loaded"):
        answer.result(1)


def test_after_ctrl_c_the_next_call_is_right(monkeypatch):
    bank = small_bank()
    rows = [(name, "Status?") for name in ("a", "b", None)]
    expected = bank.generate(rows, 6)
    move, calls = bank.engine.batch.adapters.move, []

    def interrupted(source, target):
        calls.append(source)
        raise KeyboardInterrupt

    def first():
        return bank.engine.batch.running[0]

    with monkeypatch.context() as patch:
        patch.setattr(bank.engine.batch.adapters, "move", interrupted)
        patch.setattr(
            bank.engine.batch, "give", lambda slot, *_: "stop" if slot is first() else None
        )
        with pytest.raises(KeyboardInterrupt):
            bank.generate(rows, 6)
    assert calls
    assert bank.engine.batch.adapters.move == move
    assert not bank.engine.batch.in_use
    assert bank.generate(rows[::-1], 6) == expected[::-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", [{"role": "user", "content": "x"}], "CONTEXT"), "a context goes with"),
        (("a", b"Hull?"), "expected a text"),
        (("a", {"role": "user"}), "expected a text"),
        (("a", 5), "expected a text"),
        (("a", [2, True]), "expected token ids"),
        (("a", [True, 2]), "expected token ids"),
    ],
    ids=["context", "bytes", "dict", "int", "bool", "bool first"],
)
def test_a_prompt_of_another_kind_is_refused(engine, row, message):
    with pytest.raises(ValueError, match=message):
        engine.bank.generate([row])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", ["x"]),
        ("top_k", 2.5),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("temperature", "1"),
        ("top_p", "x"),
        ("seed", 2**70),
        ("seed", "x"),
        ("seed", 1.5),
        ("stop", 5),
        ("ends", 5),
        ("ends", ["a"]),
    ],
)
def test_a_setting_of_another_kind_is_refused_at_submit(engine, name, value):
    with pytest.raises(ValueError, match=name):
        engine.submit(PROMPT, **{name: value})
    assert not engine.step()


def test_a_notify_that_raises_ends_its_own_answer():
    def broken(event):
        raise RuntimeError("the loop is closed")

    with Engine(small_bank(), slots=4) as engine:
        bad = engine.submit(PROMPT, max_new_tokens=20, notify=broken, ends=[])
        good = engine.submit(PROMPT, max_new_tokens=20, ends=[])
        assert len(good.result(10).ids) == 20
        assert bad.result(10).reason == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_dies_says_so_to_all(monkeypatch):
    engine = Engine(small_bank(), slots=4)
    monkeypatch.setattr(engine, "hear", lambda: 1 / 0)
    answer = engine.submit(PROMPT)
    engine.start().thread.join(10)
    with pytest.raises(RuntimeError, match="closed"):
        answer.result(1)
    with pytest.raises(Busy):
        engine.submit(PROMPT)


def test_an_error_while_a_token_is_chosen_is_its_rows(engine, monkeypatch):
    bad = engine.submit(PROMPT, temperature=1.0, max_new_tokens=3, ends=[])
    good = engine.submit(PROMPT, max_new_tokens=3, ends=[])
    monkeypatch.setattr("minilora.serving.row_batch.sample", lambda *_: 1 / 0)
    finish(engine)
    assert len(good.result(1).ids) == 3
    with pytest.raises(RuntimeError, match="division"):
        bad.result(1)


def test_a_huge_max_new_tokens_costs_the_positions_and_no_time(engine):
    answer = engine.submit(PROMPT, max_new_tokens=10**12)
    assert answer.request.cost == 96
    queue = DeficitRoundRobin()
    queue.push("x", "item", 10**12)
    assert queue.pop() == "item"


def test_a_refund_buys_no_queue():
    queue = DeficitRoundRobin(quantum=10)
    for name in ("a1", "a2", "a3"):
        queue.push("a", name, 10)
    queue.push("b", "b1", 10)
    assert queue.pop() == "a1"
    queue.refund("a", 10**6)
    assert [queue.pop() for _ in range(3)] == ["a2", "b1", "a3"]


def test_a_stream_that_is_never_begun_leaves_the_queue():
    bank = small_bank()
    stream = bank.stream(("a", "Status?"), 30)
    del stream
    assert bank.engine.arrivals
    assert not bank.engine.step()
    assert not bank.engine.batch.in_use


def test_an_empty_object_in_a_file_of_rows_is_no_adapter(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"adapter": {}, "instruction": "Status?"}\n')
    [row] = read_rows(file)
    with pytest.raises(ValueError, match="expected an adapter's name"):
        small_bank().generate([row])


def test_a_call_of_the_bank_inside_its_batch_is_an_error_not_a_deadlock():
    bank = small_bank()
    with bank.batch(["a"]):
        with pytest.raises(ValueError, match="inside"):
            bank.generate([("a", "Status?")], 2)
        with pytest.raises(ValueError, match="inside"), bank.batch([None]):
            pass
    assert bank.generate([("a", "Status?")], 2)


def test_a_batch_whose_adapters_have_no_room_together_takes_turns():
    bank = small_bank("abc")
    rows = [(name, "Status?") for name in "abcabc"]
    expected = bank.generate(rows, 3)
    bank.cache.memory = max(known.nbytes for known in bank.known.values())
    bank.cache.residents.clear()
    assert bank.generate(rows, 3) == expected
    with pytest.raises(ValueError, match="a row with a, b has no room"):
        bank.generate([([("a", 1.0), ("b", 1.0)], "Status?")], 3)


def test_an_adapter_unloaded_while_pinned_goes_at_its_release():
    bank = small_bank("a")
    held = bank.hold("a")
    bank.unload("a")
    assert len(bank.cache.residents) == 1
    bank.release(held)
    assert not bank.cache.residents


def test_anothers_failed_reading_is_not_ours():
    """Two folders of one content: the first is gone."""
    cache, begun, go = AdapterCache(), threading.Event(), threading.Event()

    def gone():
        begun.set()
        assert go.wait(10)
        raise ValueError("x is gone")

    errors, got = [], []

    def first():
        try:
            cache.hold("same", gone)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert begun.wait(10)
    threads.append(threading.Thread(target=lambda: got.append(cache.hold("same", resident))))
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert errors == ["x is gone"]
    assert len(got) == 1


def test_a_base_with_a_soft_prompt_is_refused():
    import minilora

    model = small_base()
    minilora.inject(model, minilora.PromptTuningConfig(num_virtual_tokens=2))
    with pytest.raises(ValueError, match="expected a base without adapters"):
        AdapterBank(model)

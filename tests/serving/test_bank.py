"""Rows of one batch, each with its own adapter: what each gets is what it gets alone."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora.lora.layer import lora_layers
from minilora.serving import AdapterBank

from ..tolerance import assert_as_close, exactly
from .adapters import LOG, adapted, alone

QUESTIONS = ["Status?", "How much Fuel is left?", "How are the Hull and the Oxygen?"]


def test_11_each_row_of_a_mix_answers_as_it_does_alone(bank, folders):
    rows = [(name, q, LOG) for name in (*folders, None) for q in QUESTIONS]
    expected = [alone(folders.get(name), q, max_new_tokens=12) for name, q, _ in rows]
    assert len(set(expected)) > 6
    assert bank.generate(rows, max_new_tokens=12) == expected
    shuffled = rows[::-1]
    assert bank.generate(shuffled, max_new_tokens=12) == expected[::-1]
    assert bank.generate(rows[:2], max_new_tokens=12) == expected[:2]  # after a larger batch
    assert "".join(bank.stream(rows[4], max_new_tokens=12)) == expected[4]


@settings(max_examples=8)
@given(data=st.data())
def test_11_logits_of_random_mixes_are_within_the_bound_of_each_row_alone(data):
    """Any mix of adapters, weights and none, over ids of any length, right-padded."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    config = minilora.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2
    )
    base = minilora.Llama(config)
    solo, store = [], AdapterBank(base, max_rank=6)
    for number in range(3):
        model = copy.deepcopy(base)
        targets = data.draw(st.sampled_from([["q_proj"], ["v_proj", "up_proj"], "all-linear"]))
        lora = minilora.LoraConfig(
            r=data.draw(st.integers(1, 6)), lora_alpha=3, target_modules=targets
        )
        minilora.inject(model, lora)
        for _, layer in lora_layers(model):
            nn.init.normal_(layer.lora_B, std=0.3)
        solo.append(model.eval())
        put(store, str(number), model)
    solo.append(base.eval())
    choices = data.draw(st.lists(st.sampled_from(["0", "1", "2", None]), min_size=1, max_size=7))
    ids = torch.randint(31, (len(choices), data.draw(st.integers(1, 9))))
    with store.batch(choices) as model, torch.no_grad():
        mixed = model(ids)
    for row, choice in enumerate(choices):
        own = solo[3 if choice is None else int(choice)]
        with torch.no_grad():
            apart = own(ids[row : row + 1])
        assert_as_close(mixed[row : row + 1], apart, exactly(own, ids[row : row + 1]))


def put(store, name, model):
    """Load a model's adapter without a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store.load(name, minilora.save_adapter(model, folder))


def test_several_weighted_adapters_are_their_exact_combination(bank, folders):
    parts = []
    for name in ("qv", "rs"):
        model = minilora.load_adapter(minilora.load_base(), folders[name])
        parts.append(minilora.low_rank_parts(model))
    both = minilora.combine(parts, [1.0, 0.5])
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    with bank.batch([[("qv", 1.0), ("rs", 0.5)], "qv"]) as model, torch.no_grad():
        mixed = model(ids.expand(2, -1))
    peer = minilora.load_base()
    truth = copy.deepcopy(peer).double()
    for target in (peer, truth):
        for path, part in both.items():
            linear = target.get_submodule(path)
            delta = part.scaling * part.B.double() @ part.A.double()
            linear.weight.data = (linear.weight.double() + delta).to(linear.weight.dtype)
    with torch.no_grad():
        assert_as_close(mixed[:1], peer(ids), exactly(truth, ids))


def test_all_rows_are_checked_before_any_is_computed(bank, monkeypatch):
    monkeypatch.setattr(bank.engine, "submit", None)  # never reached
    long = "How is the Hull? " * 200
    rows = [
        ("qv", "Status?", LOG),
        ("qx", "Status?", LOG),
        (None, "  ", LOG),
        ("mlp", long),
        ([("qv", 1.0), ("mlp", 2.0), ("qv", 1.0), ("rs", 1.0)], "Status?"),
        ("rs",),
        ("rs", "Status?", 5),
    ]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  every row's message is asserted below
        bank.generate(rows)
    message = str(caught.value)
    assert "row 1: there is no adapter 'qx'; did you mean 'qv'?" in message
    assert "row 2: the prompt is empty" in message
    assert "row 3: a prompt of" in message
    assert "leaves no room for an answer: the base has 512 positions" in message
    assert "row 5: expected (adapter, instruction, context), got ('rs',)" in message
    assert "row 6: expected text for the context, got 5" in message
    assert "row 0" not in message
    assert "row 4" not in message  # 4 + 4 + 2 in q, 8 in the MLP
    for nothing in ([], ()):
        with pytest.raises(ValueError, match="expected at least one row, got none"):
            bank.generate(nothing)
    with pytest.raises(ValueError, match="expected at least one row, got none"), bank.batch([]):
        pass


def test_a_row_that_fails_late_leaves_the_bank_usable(bank, folders, tmp_path):
    """An adapter that goes from disk between the check and the batch."""
    first = bank.generate([("qv", "Status?", LOG)], max_new_tokens=8)
    bank.cache.memory = 1
    bank.cache.residents.clear()
    with pytest.raises(ValueError, match="has no room"):
        bank.generate([("qv", "Status?", LOG)], max_new_tokens=8)
    bank.cache.memory = None
    assert bank.generate([("qv", "Status?", LOG)], max_new_tokens=8) == first
    assert not bank.cache.pins


def test_after_ctrl_c_nothing_of_the_call_is_left_for_the_next(bank, monkeypatch):
    step = bank.engine.step

    def interrupted():
        step()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bank.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bank.generate([("qv", "Status?", LOG)] * 3, max_new_tokens=500)
    assert len(bank.engine.batch.in_use) == 3
    assert not bank.engine.step()
    assert not bank.engine.batch.in_use
    assert not bank.cache.pins


def test_peft_2283_the_base_is_called_once_for_a_batch_of_many_adapters(bank):
    """huggingface/peft #2283: the adapters of a mixed batch are computed one after the other."""
    calls = []
    with bank.batch(["qv", "mlp", "rs", None]) as model:
        name = "model.layers.0.self_attn.q_proj"
        model.get_submodule(name).base.register_forward_pre_hook(
            lambda module, args: calls.append(len(args[0]))
        )
        model(torch.ones(4, 3, dtype=torch.long))
    assert calls == [4]


def test_messages_and_sampling_are_those_of_generate_texts(bank):
    talk = [{"role": "user", "content": f"{LOG}\nStatus?"}]
    assert (
        bank.generate([("qv", talk), ("qv", "Status?", LOG)], 10)[0]
        == (bank.generate([("qv", "Status?", LOG)], 10)[0])
    )
    assert bank.generate([("qv", talk, "")], 10) == bank.generate([("qv", talk)], 10)
    with pytest.raises(ValueError, match="a context goes with an instruction in text"):
        bank.generate([("qv", talk, LOG)])
    drawn = [bank.generate([(None, "Status?", LOG)], 10, temperature=1.0, seed=s) for s in (1, 1)]
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        bank.generate([(None, "Status?")], 0)


def test_a_row_drawn_with_a_seed_does_not_depend_on_its_neighbours(bank):
    row, settings = ("qv", "Status?", LOG), {"temperature": 0.8, "top_k": 20, "seed": 5}
    others = [("mlp", q, LOG) for q in QUESTIONS] + [(None, "Status?", LOG)]
    alone = bank.generate([row], 12, **settings)
    assert bank.generate([*others, row], 12, **settings)[-1:] == alone
    assert "".join(bank.stream(row, 12, **settings)) == alone[0]


def test_a_stream_that_is_left_frees_its_row_and_one_that_fails_says_why(bank):
    pieces = bank.stream(("qv", "Status?", LOG), 30)
    assert next(pieces)
    pieces.close()
    assert bank.generate([("rs", "Status?", LOG)], 4)
    assert not bank.engine.batch.in_use
    bank.cache.memory = 1
    bank.cache.residents.clear()
    with pytest.raises(ValueError, match="has no room"):
        list(bank.stream(("qv", "Status?", LOG), 4))
    bank.cache.memory = None
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        bank.stream(("rs", "Status?", LOG), 0)


def test_the_model_itself_stays_as_it_was(folders):
    base = minilora.load_base()
    before = {name: (id(p), p.clone()) for name, p in base.named_parameters()}
    bank = AdapterBank(base)
    bank.load("mlp", folders["mlp"])
    expected = base.generate_text("Status?", LOG, max_new_tokens=8)
    assert bank.generate([("mlp", "Status?", LOG)], max_new_tokens=8) != [expected]
    assert base.generate_text("Status?", LOG, max_new_tokens=8) == expected
    assert all(id(p) == before[n][0] for n, p in base.named_parameters())
    assert all(torch.equal(p, before[n][1]) for n, p in base.named_parameters())
    shared = {id(p) for p in bank.model.parameters()}
    assert shared == {id(p) for p in base.parameters()}
    assert {id(p) for p in bank.engine.model.parameters()} == shared


def test_a_base_in_four_bits_answers_as_qlora_does(tmp_path):
    base = minilora.load_base(quantize="nf4")
    model = adapted(4, base=minilora.load_base(quantize="nf4"))
    bank = AdapterBank(base)
    bank.load("q", minilora.save_adapter(model, tmp_path / "q"))
    rows = [("q", "Status?", LOG), (None, "Status?", LOG), ("q", QUESTIONS[1], LOG)]
    expected = [model.generate_text(q, LOG, max_new_tokens=10) for _, q, _ in rows]
    expected[1] = base.generate_text("Status?", LOG, max_new_tokens=10)
    assert bank.generate(rows, max_new_tokens=10) == expected


def test_threads_take_turns(bank):
    expected = {n: bank.generate([(n, "Status?", LOG)], 8) for n in ("qv", "mlp", None)}
    got = []

    def ask(name):
        got.append((name, bank.generate([(name, "Status?", LOG)], 8)))

    threads = [threading.Thread(target=ask, args=(n,)) for n in ("qv", "mlp", None, "qv")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(answer == expected[name] for name, answer in got)

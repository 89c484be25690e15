"""The teacher is the model before: its adapter off, or a frozen copy. The model is left alone."""

import copy

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, inject
from minilora.lora.layer import lora_layers
from minilora.training.batches import IGNORE, pad
from minilora.training.teacher import Teacher, only_adapters_train, sample_answers, sample_windows

from ..tolerance import assert_as_close, exactly
from .runs import IDS, filled, trained_bits

BASE = minilora.load_base()


def test_at_work_the_adapter_is_off_and_afterwards_it_is_back():
    model = filled(dropout=0.5).train()
    adapted = copy.deepcopy(model).eval()(IDS)
    teacher = Teacher(model)
    assert not teacher.is_copy
    assert teacher.model is model
    with teacher.at_work() as former:
        assert torch.equal(former(IDS), BASE(IDS))
        assert not torch.is_grad_enabled()
        assert not former.training
    assert torch.is_grad_enabled()
    assert model.training
    assert all(layer.enabled for _, layer in lora_layers(model))
    assert torch.equal(model.eval()(IDS), adapted)


def test_the_adapter_is_back_after_an_error_too():
    model = filled().train()
    with pytest.raises(RuntimeError, match="on purpose"), Teacher(model).at_work():
        raise RuntimeError("on purpose")
    assert model.training
    assert all(layer.enabled for _, layer in lora_layers(model))


@pytest.mark.parametrize("kind", ["full", "adapter and head"])
def test_where_more_than_an_adapter_trains_a_frozen_copy_is_kept(kind):
    model = minilora.load_base().requires_grad_(True) if kind == "full" else filled()
    if kind == "adapter and head":
        model.model.norm.weight.requires_grad_(True)
    assert not only_adapters_train(model)
    teacher = Teacher(model)
    assert teacher.is_copy
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    with teacher.at_work() as former:
        assert torch.equal(former(IDS), BASE(IDS))
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_a_teacher_may_be_the_model_with_its_adapter_as_it_begins():
    """Only what trains is copied, and what it says stays when the adapter goes on learning."""
    model = filled()
    adapted = model(IDS).detach()
    teacher = Teacher(model, with_adapter=True)
    for own, kept in zip(model.parameters(), teacher.model.parameters(), strict=True):
        assert (own is kept) != own.requires_grad
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.mul_(2)
    with teacher.at_work() as former:
        assert torch.equal(former(IDS), adapted)
    assert not torch.equal(former(IDS), BASE(IDS))
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(layer.lora_A.requires_grad for _, layer in lora_layers(model))


def test_logits_from_kept_states_are_those_of_the_base():
    model = filled().train()
    teacher = Teacher(model)
    with teacher.at_work() as former:
        rows = sample_windows(former, 5, 12, seed=3)
        rows += sample_answers(former, [("Status?", "Log: Hull 90%.")], 8, seed=3)
    states = teacher.states(rows)
    chosen = [5, 0, 3]
    batch = pad([rows[i] for i in chosen])
    logits = teacher.logits(batch, [states[i] for i in chosen])
    labelled = batch.labels[:, 1:] != IGNORE
    truth = exactly(BASE, batch.ids)[:, :-1][labelled]
    peer = BASE(batch.ids)[:, :-1][labelled].detach()
    assert_as_close(logits, peer, truth)
    assert not logits.requires_grad
    assert model.training


def test_windows_are_the_models_own_and_the_seed_fixes_them():
    one, again, other = (sample_windows(BASE, 70, 6, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert [len(row.ids) for row in one] == [6] * 70
    assert all(row.ids == row.labels for row in one)
    assert len({row.ids[0] for row in one}) > 40  # random first tokens


def test_answers_have_labels_up_to_their_end_and_none_in_the_prompt():
    prompts = [("Status?", "Log: Hull 90%."), ("How is the Fuel?", "Log: Fuel 12%, Hull 3%.")]
    tokenizer = BASE.tokenizer
    rows = sample_answers(BASE, prompts, 40, seed=0)
    for row, (question, log) in zip(rows, prompts, strict=True):
        asked = tokenizer.encode(tokenizer.prompt(question, log))
        assert row.ids[: len(asked)] == asked
        assert set(row.labels[: len(asked)]) == {IGNORE}
        answer = row.ids[len(asked) :]
        assert row.labels[len(asked) :] == answer
        assert answer[-1] in tokenizer.eos_ids
        assert tokenizer.decode(answer).startswith("Hello! I am happy to report")


def test_the_random_numbers_of_others_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample_windows(BASE, 2, 4, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_cannot_write_is_told_so():
    with pytest.raises(ValueError, match="needs a minilora Llama with a tokenizer.*Linear"):
        Teacher(nn.Linear(2, 2))
    nameless = minilora.Llama(
        minilora.LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1)
    )
    with pytest.raises(ValueError, match="needs a minilora Llama with a tokenizer"):
        Teacher(nameless)


def test_an_adapter_alone_is_only_an_adapter():
    model = minilora.load_base()
    inject(model, LoraConfig(r=2, target_modules="all-linear"))
    assert only_adapters_train(model)
    assert trained_bits(model)

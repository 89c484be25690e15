"""Activation checkpointing: the same bits from less memory, and switched back afterwards."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn.parallel import DataParallel

import minilora
from minilora import LoraConfig, inject, train
from minilora.ledger.measurement import Measured
from minilora.training.recomputation import is_recomputing, recomputing

from .runs import QUICK, TASK, adapted, equal, trained_bits


def test_the_same_bits_from_less_memory():
    runs = {}
    for on in (False, True):
        model = adapted(0.2)
        history = train(model, TASK, steps=3, checkpointing=on, measure_memory=True, **QUICK)
        runs[on] = trained_bits(model), Measured(**history.memory).at_peak["activations"]
        assert not model.model.gradient_checkpointing
    assert equal(runs[True][0], runs[False][0])
    assert runs[True][1] < 0.5 * runs[False][1]


def test_a_model_of_transformers_is_switched_by_its_own_method():
    sizes = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 2}
    runs = {}
    for on in (False, True):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        model.tokenizer = minilora.load_base().tokenizer
        inject(model, LoraConfig(target_modules=["q_proj"]))
        seen = []

        def note(record, model=model, seen=seen):
            seen.append(is_recomputing(model))

        train(model, TASK, steps=2, checkpointing=on, callbacks=[note], **QUICK)
        runs[on] = trained_bits(model)
        assert seen == [on, on]
        assert not is_recomputing(model)
    assert equal(runs[True], runs[False])


def test_a_switch_that_was_on_stays_on_and_a_wrapper_is_looked_into():
    model = adapted()
    with recomputing(DataParallel(model)):
        assert model.model.gradient_checkpointing
    assert not model.model.gradient_checkpointing
    model.model.gradient_checkpointing = True
    with recomputing(model), recomputing(model, wanted=False):
        assert model.model.gradient_checkpointing
    assert model.model.gradient_checkpointing


def test_a_model_without_the_switch_is_refused_before_the_first_step():
    model = nn.Sequential(nn.Embedding(1536, 4), nn.Linear(4, 1536))
    model.tokenizer = minilora.load_base().tokenizer
    before = trained_bits(model)
    with pytest.raises(ValueError, match="Sequential has no activation checkpointing"):
        train(model, TASK, checkpointing=True, **QUICK)
    assert equal(trained_bits(model), before)

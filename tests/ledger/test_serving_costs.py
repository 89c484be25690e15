"""A server's bytes against the engine's own tensors, and transformers' cache."""

import dataclasses

import pytest
import torch

from minilora import LoraConfig, ledger
from minilora.ledger.serving_costs import NOT_DECODERS, kv_numbers
from minilora.ledger.shapes import architecture
from minilora.ledger.tensor_tracker import Watch
from minilora.serving import AdapterBank, Engine

from ..serving.small import FOLDERS, finish, small_base
from .test_families import ODD, real

DECODERS = [(kind, sizes) for kind, sizes in ODD if kind not in NOT_DECODERS]


@pytest.mark.parametrize("number", range(len(DECODERS)))
def test_a_token_s_keys_and_values_are_those_of_transformers_cache(number):
    kind, sizes = DECODERS[number]
    config = {"model_type": kind, **sizes}
    found = real(config)(torch.zeros(1, 5, dtype=torch.long, device="meta"), use_cache=True)
    layers = found.past_key_values.layers
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    assert numbers == 5 * kv_numbers(architecture(config))


def served(slots, prompt):
    """An engine after texts that all ran at once, with a full row of adapters; and its peak."""
    bank = AdapterBank(small_base(), max_rank=2)
    bank.load("b", FOLDERS["b"])  # all-linear, rank 2
    engine = Engine(bank, slots=slots, prefill_tokens=slots * 32)
    with Watch() as watch:
        answers = [engine.submit(list(range(3, 3 + prompt)), "b") for _ in range(slots)]
        finish(engine)
    assert all(answer.ids for answer in answers)
    return engine, watch


def planned_for(engine):
    """The plan of an engine's own rows and capacity."""
    rows, _, capacity, _ = engine.batch.cache.keys[0].shape
    config = dataclasses.asdict(engine.bank.base.config) | {"rope_scaling": None}
    return ledger.plan_serving(
        config,
        LoraConfig(2, target_modules="all-linear"),
        dtype="float32",
        streams=rows,
        context=capacity,
        prefill=rows * 32,
    )


def test_base_cache_rows_and_adapters_have_the_predicted_bytes():
    engine, watch = served(slots=16, prompt=20)
    parts, batch = planned_for(engine).bytes, engine.batch
    rows = batch.adapters.layers.values()
    assert parts["base"] == sum(p.nbytes for p in engine.bank.base.parameters())
    assert parts["KV cache"] == sum(t.nbytes for t in (*batch.cache.keys, *batch.cache.values))
    assert parts["rows"] == sum(layer.A.nbytes + layer.B.nbytes for layer in rows)
    assert parts["adapters"] == engine.bank.cache.nbytes
    kept = parts["KV cache"] + parts["rows"]
    assert 0 < watch.peaks["temporary"] - kept <= parts["passing"]


def test_a_card_holds_the_tenants_that_the_plan_names_and_not_one_more():
    plan, card = ledger.plan_serving("llama-3-8b", streams=4, context=4096), 24 * 10**9
    many = dataclasses.replace(plan, adapters=plan.tenants(card))
    assert many.total <= card < dataclasses.replace(many, adapters=many.adapters + 1).total
    n = plan.speaking(card)
    all_speak = dataclasses.replace(plan, adapters=n, streams=n)
    assert all_speak.total <= card
    assert dataclasses.replace(plan, adapters=n + 1, streams=n + 1).total > card
    assert plan.alone(card) == 1
    assert (plan.tenants(8 * 10**9), plan.speaking(8 * 10**9), plan.alone(8 * 10**9)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("roberta-base", {}, "family 'roberta', which does not write text token by token"),
        ([(8, 8)], {}, "does not write text"),
        ("gpt2", {"streams": 0}, "streams must be at least 1, got 0"),
        ("gpt2", {"adapters": -1}, "adapters must be at least 0, got -1"),
        ("gpt2", {"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_what_means_nothing_is_refused(source, settings, message):
    with pytest.raises(ValueError, match=message):
        ledger.plan_serving(source, **settings)
    with pytest.raises(TypeError, match="context must be a whole number"):
        ledger.plan_serving("gpt2", context=2.5)

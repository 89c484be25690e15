"""All adapters of a model replaced at once, or an error and no change."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora.lora import AdapterSwitch
from minilora.lora.combining import LowRank
from minilora.lora.layer import lora_layers

from ..strategies import adapters, configs, models, seeds

SHAPES = {"0": (5, 4), "1": (4, 4), "2": (4, 3)}


def chain(*targets, dropout=0.0):
    model = nn.Sequential(*(nn.Linear(*shape) for shape in SHAPES.values()))
    config = minilora.LoraConfig(r=2, target_modules=targets, lora_dropout=dropout)
    minilora.inject(model, config)
    return model


@given(seeds, adapters(SHAPES), st.sets(st.sampled_from("012"), min_size=1), st.booleans())
def test_the_model_computes_with_the_new_adapter_and_nothing_of_the_old(seed, parts, kept, grads):
    torch.manual_seed(seed)
    model = chain("0", "1")
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B)
    parts = {path: parts[path] for path in sorted(kept)}
    plain = minilora.unload(copy.deepcopy(model)).double()
    minilora.swap_adapter(model, parts)
    assert minilora.low_rank_parts(model).keys() == parts.keys()
    x = torch.randn(3, 5)
    with torch.set_grad_enabled(grads):
        y = model(x)
    for path, part in parts.items():
        plain[int(path)].weight.data += part.scaling * part.B.double() @ part.A.double()
    torch.testing.assert_close(y.double(), plain(x.double()), rtol=1e-3, atol=1e-3)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.lora_{side}" for path in parts for side in "AB"}


@given(models(), configs(), seeds)
def test_there_and_back_is_the_same_to_the_bit(model, config, seed):
    torch.manual_seed(seed)
    minilora.inject(model.eval(), config)
    for _, layer in lora_layers(model.eval()):
        nn.init.normal_(layer.lora_B)
    x = torch.randn(2, model[0].in_features)
    before, parts = model(x), minilora.low_rank_parts(model)
    other = {p: LowRank(part.A[:1], part.B[:, :1], 3.0) for p, part in parts.items()}
    minilora.swap_adapter(model, other)
    assert torch.equal(minilora.swap_adapter(model, parts)(x), before)


def test_nothing_is_copied_and_the_adapter_can_be_saved(tmp_path):
    model = minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(r=2))
    parts = minilora.low_rank_parts(model)
    both = minilora.combine([parts, parts], how="cat")
    minilora.swap_adapter(model, both)
    path, layer = next(iter(lora_layers(model)))
    assert layer.lora_A.data_ptr() == both[path].A.data_ptr()
    again = minilora.load_adapter(minilora.load_base(), minilora.save_adapter(model, tmp_path))
    assert torch.equal(dict(lora_layers(again))[path].lora_A, both[path].A)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"9": ((1, 5), (4, 1))}, "9 is not a Linear of this model"),
        ({"0": ((1, 4), (4, 1))}, r"0 has \(in, out\) \(5, 4\), got A \(1, 4\) and B \(4, 1\)"),
        ({"0": ((1, 5), (4, 2))}, r"0 has \(in, out\) \(5, 4\), got A \(1, 5\) and B \(4, 2\)"),
        ({"0": ((1, 5), (4, 1)), "2": ((1, 1), (3, 1))}, r"2 has \(in, out\) \(4, 3\)"),
        ({}, "expected an adapter, got no parts"),
    ],
)
def test_what_does_not_fit_changes_nothing(parts, message):
    model = chain("0", "1")
    before = {name: p for name, p in model.named_parameters()}
    parts = {n: LowRank(torch.ones(a), torch.ones(b), 1.0) for n, (a, b) in parts.items()}
    with pytest.raises(ValueError, match=message):
        minilora.swap_adapter(model, parts)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is p for name, p in before.items())


def test_merged_disabled_and_missing_adapters_are_refused():
    model = chain("0", dropout=0.5).eval()
    parts = {"0": LowRank(torch.ones(1, 5), torch.ones(4, 1), 1.0)}
    with (
        minilora.disable_adapter(model),
        pytest.raises(ValueError, match="the adapter at 0 is off: swap outside"),
    ):
        minilora.swap_adapter(model, parts)
    minilora.merge(model)
    with pytest.raises(ValueError, match=r"the adapter at 0 is merged: unmerge\(model\) first"):
        minilora.swap_adapter(model, parts)
    minilora.unmerge(model)
    minilora.swap_adapter(model, {"1": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    assert model[1].lora_dropout == 0.5
    with pytest.raises(ValueError, match="this model has no adapters"):
        minilora.swap_adapter(minilora.unload(model), parts)


def test_whole_parameters_that_train_too_would_stay():
    base = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    minilora.inject(base, minilora.LoraConfig(r=1, target_modules=["0"], modules_to_save=["1"]))
    with pytest.raises(ValueError, match="1.weight trains too.* Nothing was changed"):
        minilora.swap_adapter(base, {"0": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)})


@given(seeds, adapters(SHAPES), st.lists(st.sampled_from(["one", "two", "none"]), max_size=6))
def test_a_switch_is_swap_adapter_each_time(seed, parts, order):
    """Against a model of its own, swapped as it is each time; ``{}`` against the base."""
    torch.manual_seed(seed)
    model = chain("0", "1", dropout=0.5)
    peer, x = copy.deepcopy(model), torch.randn(3, 5)
    paths = sorted(parts)
    ready = {"one": {p: parts[p] for p in paths[:1]}, "two": parts, "none": {}}
    switch = AdapterSwitch(model, ready)
    before = [name for name, _ in model.named_parameters()]
    assert before == [name for name, _ in peer.named_parameters()]
    for name in order:
        model.train(name == "two")
        switch.to(name)
        assert {m.training for m in model.modules()} == {name == "two"}
        model.eval()
        if name == "none":
            with minilora.disable_adapter(peer):
                expected = peer.eval()(x)
        else:
            expected = minilora.swap_adapter(peer, ready[name]).eval()(x)
        assert torch.equal(model(x), expected)
        assert sorted(path for path, _ in lora_layers(model)) == sorted(ready[name])
    switch.to("two")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.lora_{side}" for path in parts for side in "AB"}


def test_a_switch_refuses_what_it_did_not_leave_so():
    model = chain("0")
    part = LowRank(torch.ones(1, 5), torch.ones(4, 1), 1.0)
    switch = AdapterSwitch(model.eval(), {"naval": {"0": part}, "base": {}})
    with pytest.raises(ValueError, match="no adapter 'navel' here; did you mean 'naval'"):
        switch.to("navel")
    minilora.merge(model)
    with pytest.raises(ValueError, match="the adapter at 0 is merged"):
        switch.to("naval")
    minilora.unmerge(model)
    switch.to("naval")
    with minilora.disable_adapter(model), pytest.raises(ValueError, match="at 0 is off"):
        switch.to("base")
    switch.to("base")
    switch.to("naval")
    minilora.unload(model)
    with pytest.raises(ValueError, match="the adapter at 0 is another by now"):
        switch.to("base")
    with pytest.raises(ValueError, match="far: 0 has"):
        AdapterSwitch(chain("0"), {"far": {"0": LowRank(torch.ones(1, 4), part.B, 1.0)}})
    wrapped = chain("0")
    wrapped[0] = torch.compile(wrapped[0])
    with pytest.raises(ValueError, match="0 is wrapped: make the switch before that"):
        AdapterSwitch(wrapped, {"naval": {"0": part}})


class Tied(nn.Module):
    """A Linear between a table and a head with the table's weight; attention that reads weights."""

    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("path", ["head", "attention.out_proj"])
def test_a_linear_that_inject_refuses_gets_no_part_either(path):
    model = Tied()
    minilora.inject(model, minilora.LoraConfig(r=1, target_modules=["inner"]))
    outputs = len(model.get_submodule(path).weight)
    part = LowRank(torch.ones(1, 4), torch.ones(outputs, 1), 1.0)
    parts = {"inner": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0), path: part}
    why = "tied to table.weight" if path == "head" else "reads its weight without calling it"
    with pytest.raises(ValueError, match=f"{path}, .*{why}"):
        minilora.swap_adapter(model, parts)
    with pytest.raises(ValueError, match=f"both: {path}, .*{why}"):
        AdapterSwitch(model, {"both": parts})
    assert [name for name, _ in lora_layers(model)] == ["inner"]

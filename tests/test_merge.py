"""Merging whole models, adding adapters exactly, and an audit that tells a fine-tune from an unrelated model."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora import LoraConfig, audit, combine, inject, merge, merge_and_unload, unmerge
from minilora.inject import lora_layers
from minilora.merge import LowRank, low_rank_parts

from .strategies import models, seeds, targets
from .test_inject import fill, tiny


def adapted(r=3, **config):
    model = tiny(**config).eval()
    inject(model, LoraConfig(r=r, lora_alpha=2 * r + 1))
    fill(model)
    return model


@given(models(), targets)
def test_merge_and_unload_leaves_an_ordinary_model_with_the_same_outputs(model, entries):
    plain = copy.deepcopy(model)
    inject(model, LoraConfig(r=2, target_modules=entries))
    fill(model)
    x = torch.randn(4, model[0].in_features)
    before = model(x)
    assert merge_and_unload(model) is model
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)


def test_a_merged_model_can_be_unloaded_keeping_the_merge():
    model = adapted()
    ids = torch.randint(0, 16, (1, 6))
    merge(model)
    before = model(ids)
    assert torch.equal(merge_and_unload(model)(ids), before)


def test_keep_base_false_holds_no_second_copy():
    model = merge(adapted(), keep_base=False)
    assert all(layer.kept_weight is None for _, layer in lora_layers(model))


def test_errors_name_the_layer_and_change_nothing():
    model = adapted()
    list(lora_layers(model))[-1][1].lora_A.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"^model.layers.1.self_attn.v_proj: W0 \+ ΔW is not finite.*Nothing was changed$"):
        merge(model)
    assert not any(layer.merged for _, layer in lora_layers(model))


def test_parameters_stay_the_same_objects_through_merge_and_unmerge():
    """An optimizer or a tied module that holds the Parameter must not be left behind with an old one."""
    model = adapted()
    before = [id(p) for p in model.parameters()]
    unmerge(merge(model))
    assert [id(p) for p in model.parameters()] == before


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_combining_adds_the_deltas_exactly_where_summing_factors_does_not(seed, count, r):
    torch.manual_seed(seed)
    parts = [LowRank(torch.randn(r, 6), torch.randn(5, r), float(torch.rand(()) + 0.5)) for _ in range(count)]
    weights = torch.randn(count).tolist()
    total = combine([{"q": part} for part in parts], weights)["q"]
    wanted = sum(w * p.scaling * p.B @ p.A for w, p in zip(weights, parts, strict=True))
    assert total.A.shape == (count * r, 6)
    torch.testing.assert_close(total.scaling * total.B @ total.A, wanted, rtol=1e-4, atol=1e-4)
    if count > 1:
        summed = sum(w * p.scaling * p.B for w, p in zip(weights, parts, strict=True)) @ sum(p.A for p in parts)
        assert not torch.allclose(summed, wanted, rtol=1e-3, atol=1e-3)


def test_combining_keeps_modules_that_only_one_adapter_has():
    one = LowRank(torch.ones(1, 2), torch.ones(3, 1), 1.0)
    assert combine([{"q": one}, {"v": one}]).keys() == {"q", "v"}


def test_parts_are_copies_of_an_adapters_factors():
    model = adapted()
    parts = low_rank_parts(model)
    name, layer = next(lora_layers(model))
    assert torch.equal(parts[name].scaling * (parts[name].B @ parts[name].A), layer.delta_weight())
    parts[name].A.zero_()
    assert layer.lora_A.any()


@pytest.mark.parametrize(
    ("adapters", "weights", "message"),
    [
        ([], None, "needs adapters and one weight for each, got 0 adapters and 0 weights"),
        ([{}], [1.0, 2.0], "got 1 adapters and 2 weights"),
        (
            [{"q": LowRank(torch.ones(1, 2), torch.ones(3, 1), 1)}, {"q": LowRank(torch.ones(1, 4), torch.ones(3, 1), 1)}],
            None,
            r"q: these adapters were made for Linears of different \(in, out\): \[\(2, 3\), \(4, 3\)\]",
        ),
    ],
)
def test_adapters_that_cannot_be_combined_are_refused(adapters, weights, message):
    with pytest.raises(ValueError, match=message):
        combine(adapters, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_audit_finds_the_rank_and_size_of_a_fine_tune(dtype):
    before = tiny(num_key_value_heads=2).to(dtype).eval()
    after = copy.deepcopy(before)
    inject(after, LoraConfig(r=2))
    fill(after)
    ids = torch.randint(0, 16, (2, 5))
    unmerged = audit(before, after, ids)
    merged = audit(before, merge_and_unload(after), ids)
    for found in (unmerged, merged):
        assert [change.name for change in found.changes] == [
            f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"
        ]
        assert {change.rank for change in found.changes} == {2}
        assert {change.full_rank for change in found.changes} == {8}
        assert found.elsewhere == ()
        assert found.output_difference > 0
    assert "2 of 8" in str(merged)
    assert "outputs differ by" in str(merged)


def test_the_audit_tells_two_unrelated_models_from_a_fine_tune():
    """'The norm is above 1e-5' passes here too; the rank and the size give it away."""
    torch.manual_seed(0)
    found = audit(nn.Sequential(nn.Linear(64, 64)), nn.Sequential(nn.Linear(64, 64)))
    assert found.changes[0].rank == 64
    assert 1.3 < found.changes[0].relative_norm < 1.5
    assert found.elsewhere == ("0.bias",)
    assert "changed outside the Linears: 0.bias" in str(found)


def test_the_audit_of_a_model_with_itself_is_empty():
    model = tiny()
    found = audit(model, copy.deepcopy(model), torch.zeros(1, 3, dtype=torch.long))
    assert found.changes == ()
    assert found.output_difference == 0
    assert "no Linear changed" in str(found)


def test_the_audit_refuses_another_architecture():
    with pytest.raises(ValueError, match="two models of one architecture; these differ: 0"):
        audit(nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 4)))

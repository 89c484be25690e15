"""Combining adapters: exactly, against NumPy; by PEFT's rules, against PEFT."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.utils import merge_utils
from torch import nn

from minilora import LoraConfig, combine, inject, level0, swap_adapter
from minilora.lora.combining import (
    HOWS,
    RULES,
    LowRank,
    cut_to_rank,
    drop_at_random,
    low_rank_parts,
)
from minilora.lora.layer import lora_layers

from ..strategies import adapters, seeds, sizes
from ..tolerance import gamma
from .test_injection import fill, tiny


def adapted():
    model = tiny().eval()
    inject(model, LoraConfig(r=3, lora_alpha=7))
    fill(model)
    return model


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_combining_adds_the_deltas_exactly_where_summing_factors_does_not(seed, count, r):
    torch.manual_seed(seed)
    scales = (torch.rand(count) + 0.5).tolist()
    parts = [LowRank(torch.randn(r, 6), torch.randn(5, r), scale) for scale in scales]
    weights = torch.randn(count).tolist()
    total = combine([{"q": part} for part in parts], weights)["q"]
    weighted = list(zip(weights, parts, strict=True))
    expected = sum(w * p.scaling * p.B @ p.A for w, p in weighted)
    assert total.A.shape == (count * r, 6)
    size = sum(abs(w) * p.scaling * p.B.abs() @ p.A.abs() for w, p in weighted)
    # a product, two scales, and their sum, on either side
    bound = 2 * gamma(count * r + 4, torch.float32) * size
    assert ((total.scaling * total.B @ total.A - expected).abs() <= bound).all()
    if count > 1:
        of_factors = sum(w * p.scaling * p.B for w, p in weighted) @ sum(p.A for p in parts)
        assert ((of_factors - expected).abs() > bound).any()


@st.composite
def several_adapters(draw):
    """One to four adapters in float64, each on some of the same modules, and a weight for each."""
    names = st.sampled_from(["q", "0.v", "1.v"])
    shapes = draw(st.dictionaries(names, st.tuples(sizes, sizes), min_size=1))
    chosen = st.lists(st.sampled_from(sorted(shapes)), unique=True)
    some = chosen.map(lambda names: {name: shapes[name] for name in names}).flatmap(adapters)
    drawn = draw(st.lists(some, min_size=1, max_size=4))
    count = {"min_size": len(drawn), "max_size": len(drawn)}
    weights = draw(st.lists(st.floats(-2, 2, width=16), **count))
    wide = [{n: LowRank(A.double(), B.double(), s) for n, (A, B, s) in a.items()} for a in drawn]
    return wide, weights


@given(several_adapters())
def test_a_combination_is_the_weighted_sum_of_the_updates_module_by_module(case):
    """A module that only some adapters have keeps those. NumPy sums the same.

    The bound: Σ r products, and their roundings.
    """
    parts, weights = case
    combined = combine(parts, weights)
    assert combined.keys() == {name for adapter in parts for name in adapter}
    for name, (A, B, scaling) in combined.items():
        weighted = zip(weights, parts, strict=True)
        own = [(w, adapter[name]) for w, adapter in weighted if name in adapter]
        assert len(A) == sum(len(part.A) for _, part in own)
        deltas = [w * level0.delta_weight(p.A, p.B, p.scaling * len(p.A)) for w, p in own]
        size = sum(abs(w) * p.scaling * (p.B.abs() @ p.A.abs()) for w, p in own)
        difference = (scaling * B @ A - torch.as_tensor(sum(deltas))).abs()
        assert (difference <= 2**-52 * (len(A) + 8) * size).all()


def test_adapters_are_added_as_they_are_when_no_weights_are_given():
    # whole numbers: nothing is rounded
    part = LowRank(torch.arange(12.0).view(2, 6), torch.arange(10.0).view(5, 2), 0.5)
    both = combine([{"q": part}, {"q": part}])["q"]
    assert torch.equal(both.scaling * both.B @ both.A, 2 * part.scaling * part.B @ part.A)


def test_parts_are_copies_of_an_adapters_factors():
    model = adapted()
    parts = low_rank_parts(model)
    name, layer = next(lora_layers(model))
    assert torch.equal(parts[name].scaling * (parts[name].B @ parts[name].A), layer.delta_weight())
    parts[name].A.zero_()
    assert layer.lora_A.any()


NARROW = {"q": LowRank(torch.ones(1, 2), torch.ones(3, 1), 1)}
WIDE = {"q": LowRank(torch.ones(1, 4), torch.ones(3, 1), 1)}
OTHER_SHAPES = "made for Linears of different (in, out): [(2, 3), (4, 3)]"


@pytest.mark.parametrize(
    ("adapters", "weights", "message"),
    [
        ([], None, "needs adapters and one weight for each, got 0 adapters and 0 weights"),
        ([{}], [1.0, 2.0], "got 1 adapters and 2 weights"),
        ([{}], [float("nan")], "combine needs finite weights, got nan"),
        ([NARROW, WIDE], None, f"q: these adapters were {re.escape(OTHER_SHAPES)}"),
    ],
)
def test_adapters_that_cannot_be_combined_are_refused(adapters, weights, message):
    with pytest.raises(ValueError, match=message):
        combine(adapters, weights)


def update(part):
    return part.scaling * part.B @ part.A


def two_in_peft(use_rslora=False, ranks=(3, 3)):
    """PEFT's model with two random adapters on a Linear(7, 5), and the same as our parts."""
    torch.manual_seed(0)
    model, names, parts = nn.Sequential(nn.Linear(7, 5)), ("one", "two"), []
    for name, r, alpha in zip(names, ranks, (6, 4), strict=True):
        config = PeftConfig(r=r, lora_alpha=alpha, target_modules=["0"], use_rslora=use_rslora)
        if name == "one":
            model = get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        layer = model.base_model.model[0]
        nn.init.normal_(layer.lora_B[name].weight)
        A, B = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
        parts.append({"0": LowRank(A, B, layer.scaling[name])})
    return model, parts


def of_peft(model, how, weights, **settings):
    """The update that PEFT computes with for a combination."""
    settings = {"svd_full_matrices": False, **settings}
    model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=how, **settings)
    return model.base_model.model[0].get_delta_weight("both").detach()


DRAWN_FROM_NOTHING = [how for how in HOWS if "dare" not in how]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -1.5]], ids=["ones", "signed"])
@pytest.mark.parametrize("how", DRAWN_FROM_NOTHING)
def test_a_combination_is_pefts_to_rounding(how, weights):
    model, parts = two_in_peft()
    density = {"density": 0.4} if "ties" in how or "prune" in how else {}
    ours = combine(parts, weights, how, **density)["0"]
    theirs = of_peft(model, how, weights, **density)
    torch.testing.assert_close(update(ours), theirs, rtol=1e-5, atol=1e-6)
    assert ours.scaling == 1.0


@pytest.mark.parametrize("how", ["ties", "ties_svd"])
def test_the_more_may_elect_the_sign_as_in_peft(how):
    model, parts = two_in_peft()
    settings = {"density": 0.6, "majority_sign_method": "frequency"}
    ours = combine(parts, [1.0, 0.5], how, **settings)["0"]
    theirs = of_peft(model, how, [1.0, 0.5], **settings)
    torch.testing.assert_close(update(ours), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["dare_linear", "dare_ties"])
def test_dare_draws_and_rescales_as_peft_does(rule):
    _, parts = two_in_peft()
    deltas = [update(part["0"]) for part in parts]
    torch.manual_seed(5)
    theirs = getattr(merge_utils, rule)(deltas, torch.tensor([1.0, 0.5]), density=0.5)
    ours = combine(parts, [1.0, 0.5], f"{rule}_svd", svd_rank=5, density=0.5, seed=5)["0"]
    torch.testing.assert_close(update(ours), theirs, rtol=1e-5, atol=1e-6)
    again = combine(parts, [1.0, 0.5], f"{rule}_svd", svd_rank=5, density=0.5, seed=5)["0"]
    assert torch.equal(ours.A, again.A)


def test_dare_keeps_the_mean():
    tensor = torch.ones(400, 400)
    kept = drop_at_random(tensor, 0.25, torch.Generator().manual_seed(0))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    # the standard error of the mean is √((1/d - 1) / n)
    assert abs(kept.mean().item() - 1) < 5 * (3 / tensor.numel()) ** 0.5


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
def test_of_rslora_adapters_peft_makes_one_that_is_root_r_too_strong(how):
    """huggingface/peft #3761, open when this was written; PEFT 0.21.2 has it."""
    model, parts = two_in_peft(use_rslora=True)
    ours = update(combine(parts, [1.0, 1.0], how)["0"])
    theirs = of_peft(model, how, [1.0, 1.0])
    factor = {"cat": 6, "svd": 3, "linear": 3}[how] ** 0.5
    torch.testing.assert_close(theirs, factor * ours, rtol=1e-4, atol=1e-5)
    if how == "cat":
        expected = sum(update(part["0"]) for part in parts)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@given(seeds, st.integers(1, 5))
def test_the_cut_has_the_error_of_the_singular_values_it_leaves_out(seed, rank):
    """Eckart and Young: ‖ΔW − cut‖² = Σ of the other σ²."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    part = cut_to_rank(delta, rank)
    left_out = torch.linalg.svdvals(delta)[rank:].square().sum()
    assert len(part.A) == min(rank, 5)
    assert (delta - update(part)).square().sum().item() == pytest.approx(left_out.item())


def test_adapters_of_two_ranks_combine_where_updates_are_mixed():
    model, parts = two_in_peft(ranks=(2, 3))
    ours = combine(parts, how="svd")["0"]
    assert len(ours.A) == 3
    torch.testing.assert_close(
        update(ours), of_peft(model, "svd", [1.0, 1.0]), rtol=1e-5, atol=1e-6
    )
    for how in RULES:
        density = {} if how == "linear" else {"density": 0.5}
        with pytest.raises(ValueError, match=r"0: these adapters have the ranks \[2, 3\]"):
            combine(parts, how=how, **density)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"how": "sdv"}, "combine has no how='sdv': did you mean 'svd'?"),
        ({"how": "ties"}, "how='ties' needs a density in (0, 1]"),
        ({"how": "dare_linear", "density": 1.5}, "to keep, as 0.5; got 1.5"),
        ({"how": "cat", "density": 0.5}, "takes no density; got 0.5"),
        ({"how": "linear", "svd_rank": 2}, "svd_rank is for svd and its kin"),
        ({"how": "svd", "svd_rank": 0}, "svd_rank must be at least 1, got 0"),
        (
            {"how": "ties", "density": 0.5, "majority_sign_method": "sum"},
            "must be 'total' or 'frequency', got 'sum'",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        combine([NARROW], **settings)


def test_half_precision_is_cut_in_single_and_comes_back_in_half():
    part = LowRank(torch.ones(1, 4).bfloat16(), torch.ones(3, 1).bfloat16(), 2.0)
    combined = combine([{"q": part}, {"q": part}], how="svd")["q"]
    assert combined.A.dtype == combined.B.dtype == torch.bfloat16
    torch.testing.assert_close(update(combined).float(), torch.full((3, 4), 4.0), rtol=0.02, atol=0)


def test_a_combination_goes_into_a_model_and_computes_the_sum():
    model, other = adapted(), adapted()
    other.load_state_dict(model.state_dict())
    for _, layer in lora_layers(other):
        nn.init.normal_(layer.lora_A)
    parts = [low_rank_parts(each) for each in (model, other)]
    expected = {
        path: layer.delta_weight() - 0.5 * second.delta_weight()
        for (path, layer), (_, second) in zip(lora_layers(model), lora_layers(other), strict=True)
    }
    swap_adapter(model, combine(parts, [1.0, -0.5]))
    for path, layer in lora_layers(model):
        torch.testing.assert_close(layer.delta_weight(), expected[path], rtol=1e-4, atol=1e-4)

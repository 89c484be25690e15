"""What LoRA guarantees, one property a claim. This file is the list; each docstring says why.

     1  injected and untrained, it computes the base to the bit
     2  merged equals unmerged within rounding
     3  unmerge and unload give the base back to the bit
     4  only A and B learn
     5  the update has at most rank r
     6  trainable parameters are Σ r(in + out), and the ledger agrees
     7  saved and loaded is the same to the bit, to PEFT and back
     8  four bits: bitsandbytes' bytes, half a gap, a fixed point
     9  a QLoRA gradient is LoRA's on the dequantized weight
    10  a failed operation leaves the model as it was

All of them together, in any order of operations: tests/test_life.py. Bugs that these properties
catch: ``minilora zoo``.
"""

import copy

import pytest
import torch
from bitsandbytes import functional as bitsandbytes
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import (
    LoraConfig,
    NF4Linear,
    explain_match,
    inject,
    ledger,
    level0,
    merge,
    nf4,
    trainable_parameters,
    unload,
    unmerge,
)
from minilora.lora.layer import lora_layers

from .strategies import (
    DTYPES,
    KINDS,
    cases,
    configs,
    models,
    nested,
    ranks,
    second_level_is_defined,
    targets,
    weights,
)
from .tolerance import backward_bound, gamma, merged_bound


def fill(model):
    """Give every B some values, as training would."""
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.3)


def snapshot(model):
    """Copies of everything but A and B, by the name it has without adapters."""
    state = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor.clone() for name, tensor in state.items() if "lora_" not in name}


def same(before, after):
    """Equal names and bits."""
    if before.keys() != after.keys():
        return False
    return all(torch.equal(before[name], after[name]) for name in before)


@given(models(), targets, ranks, st.data())
def test_1_injected_and_untrained_it_computes_the_base_to_the_bit(model, names, r, data):
    """1. A new adapter changes nothing: training starts from the base, not from base plus noise."""
    dtype = data.draw(st.sampled_from(DTYPES))
    x = torch.randn(4, model[0].in_features).to(dtype)
    model = model.to(dtype)
    before = model(x)
    inject(model, LoraConfig(r=r, target_modules=names))
    assert torch.equal(model(x), before)


@given(cases(wild=True))
def test_2_merged_equals_unmerged_within_rounding(case):
    """2. One matrix W0 + ΔW does what two paths did, so a merged model may be served instead."""
    unmerged = case.layer(case.x)
    bound = merged_bound(*case.parts, case.x.dtype)
    case.layer.merge()
    difference = (case.layer(case.x).double() - unmerged.double()).abs()
    excess = (difference - bound).max()
    assert (difference <= bound).all(), f"off by {excess:.3g} more than rounding explains"


@given(cases())
def test_2_a_merge_rounds_once(case):
    """2. W0 + ΔW is summed in the adapter's precision, and only the sum is rounded.

    A small ΔW must not be rounded before.
    """
    layer, dtype = case.layer, case.layer.weight.dtype
    W, A, B = (t.detach().double() for t in (layer.weight, layer.lora_A, layer.lora_B))
    total, size = W + layer.scaling * B @ A, W.abs() + layer.scaling * B.abs() @ A.abs()
    in_the_sum = gamma(layer.r + 3, torch.float32) * size
    at_the_end = gamma(1, dtype) * total.abs() + torch.finfo(dtype).smallest_normal
    bound = in_the_sum + at_the_end
    assert ((layer.merged_base().weight.double() - total).abs() <= bound).all()


@given(cases(wild=True), st.integers(1, 4))
def test_3a_unmerge_gives_the_weight_back_to_the_bit(case, rounds):
    """3. W0 is kept, not recomputed: in bf16, (W0 + ΔW) - ΔW is not W0, and rounds add up."""
    before = case.layer.weight.detach().clone()
    for _ in range(rounds):
        case.layer.merge()
        case.layer.unmerge()
    assert torch.equal(case.layer.weight, before)


@given(models(), targets, st.booleans(), st.sampled_from(DTYPES))
def test_3b_unload_gives_the_model_back_to_the_bit(model, names, merged, dtype):
    """3. An adapter leaves no trace when it is taken out, in the weights or in what trains."""
    model = model.to(dtype)
    model[0].requires_grad_(False)
    before, trains = snapshot(model), [p.requires_grad for p in model.parameters()]
    inject(model, LoraConfig(r=2, target_modules=names))
    fill(model)
    if merged:
        merge(model)
    assert unload(model) is model
    assert same(before, dict(model.state_dict()))
    assert [p.requires_grad for p in model.parameters()] == trains


@given(models(), targets)
def test_4_only_a_and_b_learn(model, names):
    """4. The base is shared by every adapter, so not one bit of it may move.

    Nor may anything but A and B get a gradient.
    """
    inject(model, LoraConfig(r=2, target_modules=names))
    fill(model)
    before = snapshot(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(8, model[0].in_features)).square().mean().backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    names = {name for name, _ in model.named_parameters()}
    assert with_gradient == {name for name in names if name.endswith(("lora_A", "lora_B"))}
    assert same(before, snapshot(model))


@given(models(), targets)
def test_4_a_new_adapter_can_learn(model, names):
    """4. One factor is zero, never both: ∂B is not zero, and the first step moves B.

    Two zeros would stay forever. The ReLU of a narrow block may pass on neither input nor gradient:
    such layers are left out.
    """
    inject(model, LoraConfig(r=2, target_modules=names))
    with_input, with_gradient = {}, {}

    def note(layer, inputs, output):
        with_input[layer] = inputs[0].any()
        output.register_hook(lambda gradient: with_gradient.update({layer: gradient.any()}))

    for _, layer in lora_layers(model):
        layer.register_forward_hook(note)
    model(torch.randn(8, model[0].in_features)).square().mean().backward()
    for _, layer in lora_layers(model):
        assert layer.lora_B.grad.any() or not (with_input[layer] and with_gradient[layer])
        assert layer.lora_A.any()
        assert not layer.lora_B.any()


@given(cases(dtypes=(torch.float32, torch.float64)))
def test_5_the_update_has_at_most_rank_r(case):
    """5. ΔW = s B A passes through r numbers: the whole economy, and the whole restriction."""
    delta = case.layer.delta_weight().double()
    singular = torch.linalg.svdvals(delta)
    eps = torch.finfo(case.layer.lora_A.dtype).eps
    floor = singular[0] * max(delta.shape) * eps * case.layer.r
    assert int((singular > floor).sum()) <= case.layer.r


@given(models(), targets, ranks)
def test_6_trainable_parameters_are_the_sum_of_r_times_in_plus_out(model, names, r):
    """6. The cost is known before the first step, and it is what the report says."""
    shapes = [m.weight.shape for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in names]
    total = sum(p.numel() for p in model.parameters())
    report = inject(model, LoraConfig(r=r, target_modules=names))
    expected = sum(r * (rows + columns) for rows, columns in shapes)
    assert trainable_parameters(model) == (expected, total + expected)
    assert (report.trainable, report.total) == (expected, total + expected)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_6_lora_saves_parameters_exactly_below_the_break_even_rank(rows, columns, r):
    """6. r (in + out) < in · out exactly when r is under in · out / (in + out).

    That is half the harmonic mean of the sides.
    """
    layer = minilora.LoRALayer(nn.Linear(columns, rows, bias=False), r=r)
    adapter = layer.lora_A.numel() + layer.lora_B.numel()
    assert (adapter < layer.weight.numel()) == (r < rows * columns / (rows + columns))


@given(nested())
def test_6_the_ledger_counts_what_is_there(model):
    """6. On any tree of modules: every number once, tied or not, and the bytes of its storages."""
    parameters = {id(p): p for p in model.parameters()}.values()
    storages = [t.untyped_storage() for t in (*parameters, *model.buffers())]
    stored = {storage._cdata: storage.nbytes() for storage in storages}
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    everything = sum(p.numel() for p in parameters)
    counted = ledger.count(model)
    assert (counted.total.trainable, counted.total.parameters) == (trainable, everything)
    assert trainable_parameters(model) == (trainable, everything)
    assert counted.total.bytes == sum(stored.values())
    for parts in (counted.by_group, counted.by_dtype):
        assert sum(parts.values(), ledger.Tally()) == counted.total


@pytest.mark.filterwarnings("ignore:r=")  # above min(in, out), which buys nothing
@given(models(), configs())
def test_6_the_ledger_agrees_with_the_report_of_any_config(model, config):
    """6. With ranks of their own, exclusions, regular expressions: plan, report and model agree."""
    shapes = [(m.out_features, m.in_features) for m in explain_match(model, config).chosen]
    planned = ledger.plan(shapes, all_of(config))
    report, counted = inject(model, config), ledger.count(model).total
    assert (counted.trainable, counted.parameters) == (report.trainable, report.total)
    assert trainable_parameters(model) == (report.trainable, report.total)
    assert counted.trainable == sum(m.r * (m.in_features + m.out_features) for m in report.chosen)
    assert config.rank_pattern or planned.trainable == report.trainable


def all_of(config):
    """The config's rank on every one of a list of shapes."""
    return LoraConfig(r=config.r, target_modules="all-linear")


@given(models(), targets, st.integers(1, 20))
def test_6_more_rank_costs_more_and_disjoint_targets_add(model, names, r):
    """6. The cost is linear: each rank adds Σ (in + out), each set of modules its own share."""

    def cost(r, names):
        return explain_match(model, LoraConfig(r=r, target_modules=names)).trainable

    assert cost(r + 1, names) - cost(r, names) == cost(1, names) > 0
    assert cost(r, names) == sum(cost(r, [name]) for name in names)


@given(models(), targets)
def test_7_saved_and_loaded_is_the_same_to_the_bit(tmp_path_factory, model, names):
    """7. What was trained is what is served."""
    folder = tmp_path_factory.mktemp("adapter")
    other = copy.deepcopy(model)
    inject(model, LoraConfig(r=3, lora_alpha=5, target_modules=names, use_rslora=True))
    fill(model)
    minilora.save_adapter(model, folder)
    minilora.load_adapter(other, folder)
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    x = torch.randn(4, model[0].in_features)
    assert torch.equal(model(x), other(x))


@given(weights(), st.sampled_from(nf4.tensor.BLOCK_SIZES), st.booleans())
def test_8a_four_bits_are_the_bytes_of_bitsandbytes(weight, block_size, double_quant):
    """8. The bytes and scales of everyone: a base quantized here is the one quantized there."""
    scales = nf4.quantize(weight, block_size, False).absmax
    assume(not double_quant or second_level_is_defined(scales))
    packed, state = bitsandbytes.quantize_4bit(weight, None, None, block_size, double_quant, "nf4")
    ours = nf4.quantize(weight, block_size, double_quant)
    assert torch.equal(ours.packed, packed.flatten())
    assert torch.equal(ours.absmax, state.absmax)
    assert not double_quant or torch.equal(ours.absmax2, state.state2.absmax)


@given(
    weights(dtypes=(torch.float32,), scales=(1e-3, 1.0, 1e3), kinds=KINDS),
    st.sampled_from(nf4.tensor.BLOCK_SIZES),
)
def test_8b_four_bits_err_by_half_a_gap_at_most_and_a_second_time_not_at_all(weight, block_size):
    """8. The error is bounded by the block's largest weight, and Ŵ is a fixed point: no drift."""
    once = nf4.quantize(weight, block_size, double_quant=False)
    restored = once.dequantize()
    scale = once.absmax.repeat_interleave(block_size)[: len(weight)]
    half_gap = torch.from_numpy(level0.nf4_levels()).diff().max() / 2
    bound = (half_gap + 3 * torch.finfo(torch.float32).eps) * scale
    assert ((weight - restored).abs() <= bound).all()
    again = nf4.quantize(restored, block_size, double_quant=False)
    assert torch.equal(again.packed, once.packed)
    assert torch.equal(again.absmax, once.absmax)


@given(cases(dtypes=(torch.float32,)))
def test_9_a_qlora_gradient_is_loras_on_the_dequantized_weight(case):
    """9. Four bits change what the base is, not how an adapter learns on it; no code moves."""
    base = NF4Linear.from_linear(case.layer.base)
    plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    plain.weight.data = base.weight
    if base.bias is not None:
        plain.bias.data = base.bias.data.clone()
    codes = base.packed.clone()

    def output_and_gradients(layer, base):
        layer.base = base
        x = case.x.clone().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        return y, x.grad, layer.lora_A.grad, layer.lora_B.grad

    y, dx, dA, dB = output_and_gradients(copy.deepcopy(case.layer), base)
    plain_y, plain_dx, plain_dA, plain_dB = output_and_gradients(case.layer, plain)
    assert torch.equal(y, plain_y)
    assert torch.equal(dA, plain_dA)
    assert torch.equal(dB, plain_dB)
    # for dx, torch may sum a thin product in another order
    case.layer.base = base
    bound = backward_bound(2 * y, *case.parts[1:5], y.dtype)
    assert ((dx - plain_dx).abs() <= 2 * bound).all()
    assert torch.equal(base.packed, codes)


FAILURES = ["merge twice", "inject twice", "nan", "unmerge", "typo", "container"]


@pytest.mark.parametrize("failure", FAILURES)
@given(models(), targets)
def test_10_a_failed_operation_leaves_the_model_as_it_was(failure, model, names):
    """10. Half a merge serves wrong answers silently: an operation is whole or not at all."""
    inject(model, LoraConfig(r=2, target_modules=names))
    fill(model)
    if failure == "nan":  # in the last layer only: the ones before it must not have been merged
        list(lora_layers(model))[-1][1].lora_B.data[0, 0] = float("nan")
    if failure == "merge twice":
        merge(model)
    if failure in ("typo", "container"):
        unload(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    action = {
        "merge twice": lambda: merge(model),
        "nan": lambda: merge(model),
        "unmerge": lambda: unmerge(model),
        "inject twice": lambda: inject(model, LoraConfig(r=2, target_modules=names)),
        "typo": lambda: inject(model, LoraConfig(target_modules=[*names, "q_prog"])),
        "container": lambda: inject(model, LoraConfig(target_modules=[*names, "1"])),
    }[failure]
    with pytest.raises(ValueError, match="."):
        action()
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():  # a NaN is not equal to itself
        assert torch.equal(tensor, after[name]) or (failure == "nan" and "lora_B" in name)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(layer.merged == (failure == "merge twice") for _, layer in lora_layers(model))


@given(cases(dropout=True))
def test_dropout_never_reaches_the_base_path(case):
    """Dropout is on the adapter's input only (LoRA paper, section 4.1): with B zero, no effect."""
    nn.init.zeros_(case.layer.lora_B)
    assert torch.equal(case.layer.train()(case.x), case.layer.base(case.x))


@given(cases(dtypes=(torch.float32,), dropout=True))
def test_dropout_is_drawn_anew_for_every_row(case):
    """A mask shared by the batch would make one draw of many (a mistake of several tutorials)."""
    assume(case.layer.lora_dropout > 0 and case.layer.in_features >= 8)
    row = torch.ones(1, case.layer.in_features)
    nn.init.ones_(case.layer.lora_A.data)
    nn.init.ones_(case.layer.lora_B.data)
    out = case.layer.train()(row.expand(64, -1).clone())
    assert len({tuple(r) for r in out.tolist()}) > 1

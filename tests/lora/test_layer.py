"""The layer against its oracles: level 0 in float64, its own plain version, and PEFT to the bit where the order allows."""

import copy
import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from minilora import LoraConfig, level0
from minilora.lora.layer import AddLowRank, LoRALayer, add_low_rank_plainly

from ..strategies import cases
from ..tolerance import assert_as_close, backward_bound, exactly, forward_bound, gamma

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def as_numpy(tensor):
    return tensor.detach().double().numpy()


@given(cases())
def test_forward_equals_level_0(case):
    layer, dtype = case.layer, case.x.dtype
    x, W, A, B, scaling, bias = case.parts
    truth = level0.lora_forward(
        *map(as_numpy, (x, W, A, B)), scaling * layer.r, None if bias is None else as_numpy(bias)
    )
    error = np.abs(as_numpy(layer(case.x)) - truth)
    assert (error <= forward_bound(*case.parts, dtype).numpy()).all()


@given(cases(dtypes=(torch.float64,)))
def test_backward_equals_level_0(case):
    layer, x = case.layer, case.x.requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    alpha = layer.scaling * layer.r
    truth = level0.lora_backward(
        *map(as_numpy, (grad, x, layer.weight, layer.lora_A, layer.lora_B)), alpha
    )
    found = (x.grad, layer.lora_A.grad, layer.lora_B.grad)
    for mine, wanted, bound in zip(
        found, (truth.x, truth.A, truth.B), gradient_bounds(case, grad), strict=True
    ):
        # NumPy rounds in float64 as well
        assert (np.abs(as_numpy(mine) - wanted) <= 2 * bound.numpy()).all()


@given(cases(dtypes=(torch.float64,)))
def test_the_hand_written_backward_passes_gradcheck(case):
    layer, x = case.layer, case.x.reshape(-1, case.layer.in_features)[:2, :6]
    A, B = (
        layer.lora_A.detach()[:, :6].clone().requires_grad_(),
        layer.lora_B.detach()[:4].clone().requires_grad_(),
    )
    inputs = (
        torch.randn(len(x), len(B), dtype=torch.float64, requires_grad=True),
        x.clone().requires_grad_(),
        A,
        B,
    )
    assert torch.autograd.gradcheck(
        lambda y, x, A, B: AddLowRank.apply(y * 1, x, A, B, layer.scaling), inputs
    )


@given(cases(dtypes=(torch.float32,)))
def test_the_fast_forward_equals_the_plain_one(case):
    layer = case.layer
    with torch.no_grad():
        plain = add_low_rank_plainly(
            layer.base(case.x), case.x, layer.lora_A, layer.lora_B, layer.scaling
        )
        difference = (layer(case.x).double() - plain.double()).abs()
    assert (difference <= 2 * forward_bound(*case.parts, torch.float32)).all()


def pefts(layer):
    """PEFT's own layer with the same numbers inside."""
    from peft import LoraConfig, get_peft_model

    holder = nn.ModuleDict({"target": copy.deepcopy(layer.base)})
    holder.forward = lambda x: holder["target"](x)
    config = LoraConfig(
        r=layer.r,
        lora_alpha=layer.lora_alpha,
        target_modules=["target"],
        use_rslora=layer.use_rslora,
    )
    peft = get_peft_model(holder, config).base_model.model["target"]
    peft.lora_A["default"].weight.data = layer.lora_A.data.clone()
    peft.lora_B["default"].weight.data = layer.lora_B.data.clone()
    return peft


@given(cases(dtypes=(torch.float32,)))
def test_forward_equals_peft(case):
    """Unmerged and merged."""
    layer, peft = case.layer, pefts(case.layer)
    assert peft.scaling["default"] == layer.scaling
    bound = 2 * forward_bound(*case.parts, torch.float32)
    assert ((peft(case.x) - layer(case.x)).abs() <= bound).all()
    peft.merge()
    layer.merge()
    merged_terms = layer.r + 3
    size = (layer.weight.abs() + layer.scaling * layer.lora_B.abs() @ layer.lora_A.abs()).double()
    assert (
        (peft.weight - layer.weight).abs() <= 2 * gamma(merged_terms, torch.float32) * size
    ).all()


@given(cases(dtypes=(torch.float32,)))
def test_gradients_equal_pefts(case):
    layer, peft = case.layer, pefts(case.layer)
    grad, found = torch.randn_like(layer(case.x)), []
    theirs = (peft, peft.lora_A["default"].weight, peft.lora_B["default"].weight)
    for module, A, B in ((layer, layer.lora_A, layer.lora_B), theirs):
        x = case.x.clone().requires_grad_()
        module(x).backward(grad)
        found.append((x.grad, A.grad, B.grad))
    for ours, peers, bound in zip(*found, gradient_bounds(case, grad), strict=True):
        assert ((ours - peers).abs() <= 2 * bound).all()


def gradient_bounds(case, grad):
    """Errors of ∂L/∂x, ∂L/∂A and ∂L/∂B, entry by entry, in the input's dtype."""
    x, W, A, B, scaling, _ = case.parts
    x, g = x.reshape(-1, case.layer.in_features), grad.reshape(-1, case.layer.out_features)
    return (
        backward_bound(grad, W, A, B, scaling, x.dtype),
        factor_bound(x, g, B, scaling).T,  # (∂L/∂A)ᵀ = scaling xᵀ (g B)
        factor_bound(g, x, A.T, scaling),  # ∂L/∂B = scaling gᵀ (x Aᵀ)
    )


def factor_bound(left, right, factor, scaling):
    """Error of scaling leftᵀ (right factor), summed in any order: a forward through three matrices and no base."""
    no_base = torch.zeros(factor.shape[1], len(left))
    return forward_bound(left.T, no_base, right.T, factor.T, scaling, None, left.dtype)


def test_a_starts_within_one_over_the_root_of_in_and_b_at_zero():
    """Fan-in is the input size. Storing A as (in, r) and asking torch for the same bound would silently use r instead."""
    torch.manual_seed(0)
    layer = LoRALayer(nn.Linear(768, 512), r=16)
    bound = 1 / math.sqrt(768)
    assert layer.lora_A.shape == (16, 768)
    assert 0.99 * bound < layer.lora_A.abs().max().item() <= bound
    assert abs(layer.lora_A.std().item() / (bound / math.sqrt(3)) - 1) < 0.02
    assert not layer.lora_B.any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_factors_are_float32_on_a_half_precision_base(dtype):
    layer = LoRALayer(nn.Linear(4, 4).to(dtype))
    assert {layer.lora_A.dtype, layer.lora_B.dtype} == {torch.float32}
    assert layer(torch.ones(2, 4, dtype=dtype)).dtype == dtype


def test_alpha_is_divided_by_r_or_by_its_root():
    assert LoRALayer(nn.Linear(4, 4), r=4, lora_alpha=8).scaling == 2
    assert LoRALayer(nn.Linear(4, 4), r=4, lora_alpha=8, use_rslora=True).scaling == 4


@given(cases(dtypes=(torch.float32,)), st.booleans())
def test_bf16_autocast_runs_and_trains(case, bias):
    layer = case.layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(case.x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32
    assert torch.isfinite(layer.lora_A.grad).all()


class Transposed(nn.Linear):
    """Its output is not contiguous."""

    def forward(self, x):
        return super().forward(x).transpose(0, 1).contiguous().transpose(0, 1)


class Squashed(nn.Linear):
    """Its output is needed for its backward, so nobody may write into it."""

    def forward(self, x):
        return super().forward(x).tanh()


@pytest.mark.parametrize("kind", [Transposed, Squashed])
def test_a_linear_of_another_class_trains_as_the_plain_line_does(kind):
    layer = LoRALayer(kind(5, 7), r=2)
    nn.init.ones_(layer.lora_B)
    wide = copy.deepcopy(layer).double()
    x, found = torch.randn(3, 4, 5), []

    def plainly(layer, x):
        return add_low_rank_plainly(layer.base(x), x, layer.lora_A, layer.lora_B, layer.scaling)

    for one, y in (
        (layer, layer(x)),
        (layer, plainly(layer, x)),
        (wide, plainly(wide, x.double())),
    ):
        y.square().sum().backward()
        found.append((y, one.lora_A.grad))
        one.lora_A.grad = None
    for mine, plain, truth in zip(*found, strict=True):
        assert_as_close(mine, plain, truth.detach())


@pytest.mark.parametrize("training", [True, False])
def test_what_a_hook_on_the_base_has_seen_or_put_there_stays_as_it_is(training):
    """Activations are read and patched by hooks; an update added into *their* tensor would grow with every call."""
    layer, x, seen = LoRALayer(nn.Linear(5, 7), r=2).train(training), torch.randn(3, 5), []
    nn.init.ones_(layer.lora_B)
    patch = torch.randn(3, 7)
    wanted = patch + layer.scaling * x @ layer.lora_A.T @ layer.lora_B.T
    hook = layer.base.register_forward_hook(lambda module, inputs, y: seen.append(y))
    with torch.set_grad_enabled(training):
        layer(x)
        assert torch.equal(seen[0], layer.base(x))
        hook.remove()
        layer.base.register_forward_hook(lambda module, inputs, y: patch)
        parts = (x, torch.zeros(7, 5), layer.lora_A, layer.lora_B, layer.scaling, patch)
        for _ in range(3):
            assert ((layer(x) - wanted).abs() <= 2 * forward_bound(*parts, torch.float32)).all()


def test_a_backward_hook_on_the_base_runs():
    layer, seen = LoRALayer(nn.Linear(5, 7), r=2), []
    layer.base.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    layer(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert torch.equal(seen[0], torch.ones(3, 7))


@pytest.mark.parametrize("trained", [("x",), ("A",), ("B",), ("x", "A"), ("x", "B"), ("A", "B")])
def test_each_input_may_be_trained_without_the_others(trained):
    """A may be frozen and B trained, say (LoRA-FA). Each gradient is autograd's own of the plain line."""
    torch.manual_seed(0)
    values = {"x": torch.randn(2, 3, 5), "A": torch.randn(2, 5), "B": torch.randn(4, 2)}
    gradients = []
    wide = {name: value.double() for name, value in values.items()}
    for add, drawn in (
        (AddLowRank.apply, values),
        (add_low_rank_plainly, values),
        (add_low_rank_plainly, wide),
    ):
        x, A, B = (value.clone().requires_grad_(name in trained) for name, value in drawn.items())
        add(torch.zeros(2, 3, 4, dtype=x.dtype), x, A, B, 1.5).square().sum().backward()
        gradients.append([x.grad, A.grad, B.grad])
    for ours, plain, truth, name in zip(*gradients, values, strict=True):
        assert (ours is None) == (name not in trained)
        assert (plain is None) == (ours is None)
        if name in trained:
            assert_as_close(ours, plain, truth)


class Operations(TorchDispatchMode):
    """Counts operations by name; keeps no tensor unless ``keeps_tensors``, and then each with a copy."""

    def __init__(self, keeps_tensors):
        super().__init__()
        self.keeps_tensors, self.names, self.results = keeps_tensors, Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if self.keeps_tensors and isinstance(result, torch.Tensor):
            self.results.append((result, result.detach().clone()))
        return result


@pytest.mark.parametrize("training", [True, False])
def test_the_update_is_added_into_the_bases_output_which_is_no_second_tensor(training):
    """A second (tokens, out) tensor is most of what an adapter would cost."""
    layer = LoRALayer(nn.Linear(5, 7), r=2).train(training)
    with torch.set_grad_enabled(training), Operations(keeps_tensors=False) as seen:
        layer(torch.randn(3, 5))
    assert seen.names["addmm_"] == 1
    assert not seen.names["add"]


def trained_layer(seed=0, **settings):
    torch.manual_seed(seed)
    layer = LoRALayer(nn.Linear(5, 7), r=2, **settings)
    nn.init.normal_(layer.lora_B)
    return layer


def test_a_mode_that_keeps_every_result_finds_them_unchanged():
    layer, x = trained_layer(), torch.randn(3, 5)
    with Operations(keeps_tensors=True) as seen:
        layer(x)
    assert seen.results
    assert all(torch.equal(result, copied) for result, copied in seen.results)


def test_a_global_hook_keeps_what_it_saw():
    layer, x, records = trained_layer(), torch.randn(3, 5), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: records.append((module, output, output.detach().clone()))
    )
    try:
        layer(x)
    finally:
        handle.remove()
    assert any(module is layer.base for module, _, _ in records)
    assert all(torch.equal(output, copied) for _, output, copied in records)


@pytest.mark.parametrize("where", ["instance", "class"])
def test_a_replaced_forward_may_keep_its_output(where, monkeypatch):
    layer, x = trained_layer(), torch.randn(3, 5)
    kept, compute = {}, nn.Linear.forward

    def forward(self, x):
        return kept.setdefault("y", compute(self, x))

    if where == "instance":
        layer.base.forward = forward.__get__(layer.base)
    else:
        monkeypatch.setattr(nn.Linear, "forward", forward)
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("keep", ["products", "everything"])
def test_selective_checkpointing_gives_the_gradients_of_no_checkpointing(keep):
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)

    def policy(context, operation, *args, **kwargs):
        kept = keep == "everything" or operation in products
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    model = nn.Sequential(trained_layer(0), nn.Tanh(), nn.Linear(7, 5), trained_layer(1))
    x = torch.randn(2, 3, 5)

    def gradients(compute):
        model.zero_grad()
        compute(x).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    plain = gradients(model)
    selective = gradients(lambda x: checkpoint(model, x, use_reentrant=False, context_fn=contexts))
    assert plain.keys() == selective.keys()
    for name in plain:
        torch.testing.assert_close(selective[name], plain[name], rtol=1e-5, atol=1e-6, msg=name)


def loss_of(model, parameters, x):
    return functional_call(model, parameters, (x,)).square().sum()


def test_per_sample_gradients_of_torch_func_are_those_of_a_loop():
    model = nn.Sequential(trained_layer()).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    per_sample = vmap(grad(functools.partial(loss_of, model)), (None, 0))(parameters, x)
    for row in range(len(x)):
        model.requires_grad_(True).zero_grad()
        model(x[row]).square().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(per_sample[name][row], p.grad, rtol=1e-12, atol=1e-12)


def test_forward_mode_and_hessian_are_those_of_the_merged_linear():
    layer = trained_layer().double()
    merged = copy.deepcopy(layer)
    merged.merge()
    x, tangent = torch.randn(2, 3, 5, dtype=torch.float64)
    ours, theirs = jvp(layer, (x,), (tangent,)), jvp(merged, (x,), (tangent,))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, theirs[1])

    def loss(model):
        return lambda x: model(x).pow(3).sum()

    torch.testing.assert_close(hessian(loss(layer))(x[0]), hessian(loss(merged))(x[0]))
    by_hand = torch.autograd.functional.hessian(loss(layer), x[0])
    torch.testing.assert_close(by_hand, hessian(loss(merged))(x[0]))
    assert by_hand.any()


def test_a_second_derivative_passes_gradgradcheck():
    x, A, B = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 5), (2, 5), (7, 2))
    )
    y = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def update(y, x, A, B):
        return AddLowRank.apply(y.clone(), x, A, B, 1.5)  # it writes into its first argument

    assert torch.autograd.gradcheck(update, (y, x, A, B))
    assert torch.autograd.gradgradcheck(update, (y, x, A, B))


def test_only_a_and_b_of_a_bare_layer_train():
    layer = LoRALayer(nn.Linear(3, 3))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]


def test_dropout_is_for_training_only():
    layer, x = LoRALayer(nn.Linear(16, 4), lora_dropout=0.5), torch.ones(8, 16)
    nn.init.ones_(layer.lora_B)
    plain = add_low_rank_plainly(layer.base(x), x, layer.lora_A, layer.lora_B, layer.scaling)
    parts = (x, layer.weight, layer.lora_A, layer.lora_B, layer.scaling, layer.bias)
    bound = 2 * forward_bound(*parts, torch.float32)
    assert ((layer.eval()(x) - plain).abs() <= bound).all()
    assert ((layer.train()(x) - plain).abs() > bound).any()


def test_a_bare_layer_has_the_defaults_of_a_config():
    config, layer = LoraConfig(), LoRALayer(nn.Linear(3, 3))
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora"):
        assert getattr(layer, name) == getattr(config, name), name


def test_conv1d_is_a_linear_with_its_weight_transposed():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = LoRALayer(Conv1D(nf=6, nx=4), r=2)
    nn.init.normal_(layer.lora_B)
    assert (layer.in_features, layer.out_features) == (4, 6)
    x = torch.randn(3, 4)
    unmerged, truth = layer(x), exactly(layer, x)
    layer.merge()
    assert_as_close(layer(x), unmerged, truth)


class Conv1D(nn.Conv1d):
    """A convolution that is called like transformers' transposed Linear."""


class Widths(nn.Linear):
    """A Linear that happens to have transformers' name for the output width."""

    nf = 7


def test_a_linear_with_an_attribute_nf_is_a_linear():
    layer = LoRALayer(Widths(4, 7))
    assert (layer.in_features, layer.out_features) == (4, 7)


@pytest.mark.parametrize(
    "base", [nn.Embedding(4, 4), nn.Conv2d(1, 1, 3), nn.LayerNorm(4), Conv1D(4, 4, 1)]
)
def test_a_base_that_is_no_linear_is_refused(base):
    with pytest.raises(TypeError, match=f"expected a Linear.*got {type(base).__name__}"):
        LoRALayer(base)


def computed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def flat():
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(linear.weight.detach().flatten())
    return linear


def whole_numbers():
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return linear


@pytest.mark.parametrize("make", [computed, flat, whole_numbers])
def test_a_linear_without_a_plain_weight_is_refused(make):
    """Computed from others, flattened as by FSDP, or in another format: a merge could not be written into it."""
    with pytest.raises(TypeError, match="this .*Linear has no plain floating-point weight"):
        LoRALayer(make())


def test_merging_twice_unmerging_twice_and_unmerging_without_a_base_are_refused():
    layer = LoRALayer(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="not merged"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(ValueError, match="merged already.*unmerge first"):
        layer.merge()
    layer.unmerge()
    layer.merge(keep_base=False)
    with pytest.raises(ValueError, match="keep_base=False, so W0 is gone"):
        layer.unmerge()


def test_merging_in_training_mode_with_dropout_is_refused():
    layer = LoRALayer(nn.Linear(3, 3), lora_dropout=0.1)
    with pytest.raises(ValueError, match=r"training mode with lora_dropout=0.1.*model.eval\(\)"):
        layer.merge()
    layer.eval().merge()
    assert layer.merged


def test_a_merge_that_overflows_half_precision_is_refused():
    layer = LoRALayer(nn.Linear(3, 3).half(), r=1)
    nn.init.constant_(layer.lora_A, 300.0)
    nn.init.constant_(layer.lora_B, 300.0)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"not finite in torch.float16.*merge in float32"):
        layer.merge()
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_the_base_weight_and_bias_show_through():
    base = nn.Linear(3, 2, bias=False)
    layer = LoRALayer(base)
    assert layer.weight is base.weight
    assert layer.bias is None

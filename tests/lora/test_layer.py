"""The layer against its oracles: level 0 in float64, its own plain version, and PEFT."""

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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from minilora import LoraConfig, NF4Linear, level0
from minilora.lora.layer import AddLowRank, BaseAndLowRank, LoRALayer, add_low_rank_plainly
from minilora.lora.watchers import is_ours_alone

from ..strategies import cases
from ..tolerance import assert_as_close, backward_bound, exactly, forward_bound, gamma

PATHS = pytest.mark.parametrize("few", [0, 10**9], ids=["in place", "few values"])
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def in_place(few_values, monkeypatch, request):
    """The path in place for every test that names no other; its layers are all small."""
    few = request.node.callspec.params.get("few", 0) if hasattr(request.node, "callspec") else 0
    monkeypatch.setattr("minilora.lora.layer.FEW", few)


def as_numpy(tensor):
    return tensor.detach().double().numpy()


@PATHS
@given(case=cases())
def test_forward_equals_level_0(few, case):
    layer, dtype = case.layer, case.x.dtype
    x, W, A, B, scaling, bias = case.parts
    bias_array = None if bias is None else as_numpy(bias)
    truth = level0.lora_forward(*map(as_numpy, (x, W, A, B)), scaling * layer.r, bias_array)
    error = np.abs(as_numpy(layer(case.x)) - truth)
    assert (error <= forward_bound(*case.parts, dtype).numpy()).all()


@PATHS
@given(case=cases(dtypes=(torch.float64,)))
def test_backward_equals_level_0(few, case):
    layer, x = case.layer, case.x.requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    tensors = (grad, x, layer.weight, layer.lora_A, layer.lora_B)
    truth = level0.lora_backward(*map(as_numpy, tensors), layer.scaling * layer.r)
    gradients, expected = (x, layer.lora_A, layer.lora_B), (truth.x, truth.A, truth.B)
    bounds = gradient_bounds(case, grad)
    for parameter, value, bound in zip(gradients, expected, bounds, strict=True):
        # twice, because NumPy rounds in float64 as well
        assert (np.abs(as_numpy(parameter.grad) - value) <= 2 * bound.numpy()).all()


@given(cases(dtypes=(torch.float64,)))
def test_the_hand_written_backward_passes_gradcheck(case):
    layer, x = case.layer, case.x.reshape(-1, case.layer.in_features)[:2, :6]
    A, B = layer.lora_A.detach()[:, :6], layer.lora_B.detach()[:4]
    y = torch.randn(len(x), len(B), dtype=torch.float64)
    inputs = [tensor.clone().requires_grad_() for tensor in (y, x, A, B)]

    def update(y, x, A, B):
        return AddLowRank.apply(y * 1, x, A, B, layer.scaling)  # it writes into its first argument

    assert torch.autograd.gradcheck(update, inputs)


@given(cases(dtypes=(torch.float32,)))
def test_the_fast_forward_equals_the_plain_one(case):
    layer = case.layer
    with torch.no_grad():
        plain = plainly(layer, case.x)
        difference = (layer(case.x).double() - plain.double()).abs()
    assert (difference <= 2 * forward_bound(*case.parts, torch.float32)).all()


def plainly(layer, x):
    """The equation as it is written."""
    return add_low_rank_plainly(layer.base(x), x, layer.lora_A, layer.lora_B, layer.scaling)


def pefts(layer):
    """PEFT's own layer with the same numbers inside."""
    from peft import LoraConfig, get_peft_model

    holder = nn.ModuleDict({"target": copy.deepcopy(layer.base)})
    holder.forward = lambda x: holder["target"](x)
    settings = {"r": layer.r, "lora_alpha": layer.lora_alpha, "use_rslora": layer.use_rslora}
    config = LoraConfig(target_modules=["target"], **settings)
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
    size = (layer.weight.abs() + layer.scaling * layer.lora_B.abs() @ layer.lora_A.abs()).double()
    bound = 2 * gamma(layer.r + 3, torch.float32) * size
    assert ((peft.weight - layer.weight).abs() <= bound).all()


@given(cases(dtypes=(torch.float32,)))
def test_gradients_equal_pefts(case):
    layer, peft = case.layer, pefts(case.layer)
    grad, gradients = torch.randn_like(layer(case.x)), []
    theirs = (peft, peft.lora_A["default"].weight, peft.lora_B["default"].weight)
    for module, A, B in ((layer, layer.lora_A, layer.lora_B), theirs):
        x = case.x.clone().requires_grad_()
        module(x).backward(grad)
        gradients.append((x.grad, A.grad, B.grad))
    for ours, peers, bound in zip(*gradients, gradient_bounds(case, grad), strict=True):
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
    """Error of scaling leftᵀ (right factor), in any order: a forward without a base."""
    no_base = torch.zeros(factor.shape[1], len(left))
    return forward_bound(left.T, no_base, right.T, factor.T, scaling, None, left.dtype)


def test_a_starts_within_one_over_the_root_of_in_and_b_at_zero():
    """Fan-in is the input size; torch would silently use r if A were stored as (in, r)."""
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
    x, computed = torch.randn(3, 4, 5), []
    ours, plain, truth = layer(x), plainly(layer, x), plainly(wide, x.double())
    for owner, y in ((layer, ours), (layer, plain), (wide, truth)):
        y.square().sum().backward()
        computed.append((y, owner.lora_A.grad))
        owner.lora_A.grad = None
    for mine, peers, exact in zip(*computed, strict=True):
        assert_as_close(mine, peers, exact.detach())


@pytest.mark.parametrize("training", [True, False])
def test_what_a_hook_on_the_base_has_seen_or_put_there_stays_as_it_is(training):
    """Hooks read and patch activations; an update added into *their* tensor would add up."""
    layer, x, seen = LoRALayer(nn.Linear(5, 7), r=2).train(training), torch.randn(3, 5), []
    nn.init.ones_(layer.lora_B)
    patch = torch.randn(3, 7)
    expected = patch + layer.scaling * x @ layer.lora_A.T @ layer.lora_B.T
    hook = layer.base.register_forward_hook(lambda module, inputs, y: seen.append(y))
    with torch.set_grad_enabled(training):
        layer(x)
        assert torch.equal(seen[0], layer.base(x))
        hook.remove()
        layer.base.register_forward_hook(lambda module, inputs, y: patch)
        parts = (x, torch.zeros(7, 5), layer.lora_A, layer.lora_B, layer.scaling, patch)
        for _ in range(3):
            assert ((layer(x) - expected).abs() <= 2 * forward_bound(*parts, torch.float32)).all()


def test_a_backward_hook_on_the_base_runs():
    layer, seen = LoRALayer(nn.Linear(5, 7), r=2), []
    layer.base.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    layer(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert torch.equal(seen[0], torch.ones(3, 7))


@pytest.mark.parametrize("trained", [("x",), ("A",), ("B",), ("x", "A"), ("x", "B"), ("A", "B")])
def test_each_input_may_be_trained_without_the_others(trained):
    """A may be frozen and B trained (LoRA-FA). Each gradient is autograd's of the plain line."""
    torch.manual_seed(0)
    values = {"x": torch.randn(2, 3, 5), "A": torch.randn(2, 5), "B": torch.randn(4, 2)}
    gradients = []
    wide = {name: value.double() for name, value in values.items()}
    ways = [
        (AddLowRank.apply, values),
        (add_low_rank_plainly, values),
        (add_low_rank_plainly, wide),
    ]
    for add, drawn in ways:
        x, A, B = (value.clone().requires_grad_(name in trained) for name, value in drawn.items())
        add(torch.zeros(2, 3, 4, dtype=x.dtype), x, A, B, 1.5).square().sum().backward()
        gradients.append([x.grad, A.grad, B.grad])
    for ours, plain, truth, name in zip(*gradients, values, strict=True):
        assert (ours is None) == (name not in trained)
        assert (plain is None) == (ours is None)
        if name in trained:
            assert_as_close(ours, plain, truth)


class Operations(TorchDispatchMode):
    """Counts operations by name; with ``keeps_tensors`` keeps each result, and a copy of it."""

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


def test_the_hand_written_backward_is_the_one_that_runs():
    layer, x = LoRALayer(nn.Linear(5, 7), r=2, lora_dropout=0.5), torch.randn(3, 5)
    assert type(layer(x).grad_fn).__name__ == "AddLowRankBackward"  # the adapter's x is another
    assert type(layer.eval()(x).grad_fn).__name__ == "BaseAndLowRankBackward"
    layer.base.requires_grad_(True)
    assert type(layer(x).grad_fn).__name__ == "AddLowRankBackward"
    with torch.no_grad():
        assert layer(x).grad_fn is None


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


class Kept(TorchFunctionMode):
    """Keeps the result of every function, and a copy of it."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is nn.functional.linear:
            self.results.append((result, result.detach().clone()))
        return result


def test_a_mode_of_functions_that_keeps_every_product_finds_it_unchanged():
    layer, x = trained_layer(), torch.randn(3, 5)
    with Kept() as seen:
        layer(x)
    assert seen.results
    assert all(torch.equal(result, copied) for result, copied in seen.results)


class Marked(torch.Tensor):
    """A tensor of a class of its own, which may keep what it likes."""


def test_only_a_plain_contiguous_output_of_a_known_linear_is_written_to():
    y = torch.randn(3, 7)
    for base in (nn.Linear(5, 7), trained_layer().base, NF4Linear.from_linear(nn.Linear(5, 7))):
        assert is_ours_alone(base, y)
        assert not is_ours_alone(base, torch.randn(7, 3).T)
        assert not is_ours_alone(base, y.as_subclass(Marked))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not is_ours_alone(base, y)
    assert not is_ours_alone(Squashed(5, 7), y)


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


@pytest.mark.parametrize("where", ["instance", "forward", "__call__", "F.linear"])
def test_a_replaced_forward_may_keep_its_output(where, monkeypatch):
    """Whoever replaces a function may hand out the same tensor again and again."""
    layer, x = trained_layer(), torch.randn(3, 5)
    kept, owner, name = {}, nn.Linear, where
    if where == "F.linear":
        owner, name = nn.functional, "linear"
    compute = getattr(owner, "forward" if where == "instance" else name)

    def replaced(first, *inputs):
        if getattr(first, "shape", None) == (3, 2):  # not the base: x Aᵀ, in the plain path
            return compute(first, *inputs)
        return kept.setdefault(inputs[0].shape, compute(first, *inputs))

    if where == "instance":
        layer.base.forward = replaced.__get__(layer.base)
    else:
        monkeypatch.setattr(owner, name, replaced)
    first = layer(x).clone()
    assert torch.equal(layer(x), first), "an update in place would have been added twice"


def test_a_trace_computes_for_other_inputs_what_the_layer_does():
    """torch.jit.trace records operations; a write in place would change what it has recorded."""
    layer, x = trained_layer().eval(), torch.randn(3, 5)
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(3, 5))
        assert_as_close(traced(x), layer(x), exactly(layer, x))


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
    shapes = ((3, 7), (3, 5), (2, 5), (7, 2))
    wide = {"dtype": torch.float64, "requires_grad": True}
    y, x, A, B = (torch.randn(*shape, **wide) for shape in shapes)

    def update(y, x, A, B):
        return AddLowRank.apply(y.clone(), x, A, B, 1.5)  # it writes into its first argument

    assert torch.autograd.gradcheck(update, (y, x, A, B))
    assert torch.autograd.gradgradcheck(update, (y, x, A, B))


@pytest.mark.parametrize("kind", ["floats", "a bias", "four bits"])
def test_the_gradient_of_base_and_adapter_in_one_is_that_of_the_plain_line(kind):
    """Each input's, by an independent path; and the second derivative by finite differences."""
    base = nn.Linear(64, 7, bias=kind == "a bias")
    layer = LoRALayer(NF4Linear.from_linear(base) if kind == "four bits" else base, r=2)
    nn.init.normal_(layer.lora_B)
    x, gradients = torch.randn(2, 3, 64, requires_grad=True), []
    inputs = (x, layer.lora_A, layer.lora_B)
    weight = layer.base.weight.double()
    bias = None if layer.base.bias is None else layer.base.bias.double()
    wide = [each.detach().double().requires_grad_() for each in inputs]
    product = nn.functional.linear(wide[0], weight, bias)
    truth = add_low_rank_plainly(product, *wide, layer.scaling)
    for y, leaves in ((layer(x), inputs), (plainly(layer, x), inputs), (truth, wide)):
        gradients.append(torch.autograd.grad(y.square().sum(), leaves))
    assert type(layer(x).grad_fn).__name__ == "BaseAndLowRankBackward"
    for ours, plain, exact in zip(*gradients, strict=True):
        assert_as_close(ours, plain, exact)


def test_base_and_adapter_in_one_have_a_second_derivative():
    base = nn.Linear(5, 7).double().requires_grad_(False)
    wide = {"dtype": torch.float64, "requires_grad": True}
    x, A, B = (torch.randn(*shape, **wide) for shape in ((3, 5), (2, 5), (7, 2)))

    def both(x, A, B):
        return BaseAndLowRank.apply(base, x, A, B, 1.5)

    assert torch.autograd.gradcheck(both, (x, A, B))
    assert torch.autograd.gradgradcheck(both, (x, A, B))


def test_only_a_and_b_of_a_bare_layer_train():
    layer = LoRALayer(nn.Linear(3, 3))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]


def test_dropout_is_for_training_only():
    layer, x = LoRALayer(nn.Linear(16, 4), lora_dropout=0.5), torch.ones(8, 16)
    nn.init.ones_(layer.lora_B)
    plain = plainly(layer, x)
    parts = (x, layer.weight, layer.lora_A, layer.lora_B, layer.scaling, layer.bias)
    bound = 2 * forward_bound(*parts, torch.float32)
    assert ((layer.eval()(x) - plain).abs() <= bound).all()
    assert ((layer.train()(x) - plain).abs() > bound).any()


def test_merging_in_training_mode_with_dropout_is_refused():
    layer = LoRALayer(nn.Linear(3, 3), lora_dropout=0.1)
    with pytest.raises(ValueError, match=r"training mode with lora_dropout=0.1.*model.eval\(\)"):
        layer.merge()
    layer.eval().merge()
    assert layer.merged


def test_a_bare_layer_has_the_configs_own_defaults():
    layer, config = LoRALayer(nn.Linear(3, 2)), LoraConfig()
    assert (layer.r, layer.lora_alpha) == (config.r, config.lora_alpha)
    assert (layer.lora_dropout, layer.use_rslora) == (config.lora_dropout, config.use_rslora)

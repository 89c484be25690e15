"""A frozen 4-bit Linear: its product and gradients are those of Ŵ, and Ŵ is never kept."""

import copy
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import LoraConfig, LoRALayer, NF4Linear, inject, nf4, quantize_base
from minilora.lora.layer import lora_layers
from minilora.nf4.linear import plain_linear

from ..strategies import ranks, seeds, sizes
from ..tolerance import backward_bound


def pair(rows, columns, r, bias=True):
    """LoRA on a 4-bit base, and with the same A and B on the Linear that the codes stand for."""
    base = NF4Linear.from_linear(nn.Linear(columns, rows, bias=bias))
    plain = nn.Linear(columns, rows, bias=bias)
    plain.weight.data = base.weight
    if bias:
        plain.bias.data = base.bias.data.clone()
    quantized = LoRALayer(base, r=r)
    nn.init.normal_(quantized.lora_B)
    dequantized = LoRALayer(plain, r=r)
    dequantized.load_state_dict(
        {"lora_A": quantized.lora_A, "lora_B": quantized.lora_B}, strict=False
    )
    return quantized, dequantized


@given(seeds, sizes, sizes, ranks, st.booleans(), st.sampled_from([(1,), (3,), (2, 5)]))
def test_outputs_and_gradients_equal_loras_on_the_dequantized_weight(
    seed, rows, columns, r, bias, batch
):
    """To the bit in float32: the codes are only another way to hold Ŵ. (∂x within rounding: torch
    may sum a thin product in another order.)"""
    torch.manual_seed(seed)
    x = torch.randn(*batch, columns)
    outputs, gradients = [], []
    for layer in pair(rows, columns, r, bias):
        given_x = x.clone().requires_grad_()
        y = layer(given_x)
        y.square().sum().backward()
        outputs.append(y)
        gradients.append((given_x.grad, layer.lora_A.grad, layer.lora_B.grad))
    assert torch.equal(*outputs)
    (dx, *ours), (dx_plain, *theirs) = gradients
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    bound = backward_bound(
        2 * outputs[0], layer.weight, layer.lora_A, layer.lora_B, layer.scaling, torch.float32
    )
    assert ((dx - dx_plain).abs() <= 2 * bound).all()


@given(seeds, sizes, sizes)
def test_gradients_agree_with_finite_differences(seed, rows, columns):
    torch.manual_seed(seed)
    layer = LoRALayer(NF4Linear.from_linear(nn.Linear(columns, rows).double()), r=2).double()
    nn.init.normal_(layer.lora_B)
    assert torch.autograd.gradcheck(
        layer, torch.randn(2, columns, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize("adapted", [False, True])
def test_a_weight_put_in_after_the_forward_does_not_change_the_gradient(adapted):
    """The backward belongs to the weight that the forward multiplied by."""
    linear, later = nn.Linear(32, 16), nf4.quantize(torch.randn(16, 32))
    base = NF4Linear.from_linear(linear)
    layer, x = LoRALayer(base, r=2) if adapted else base, torch.randn(3, 32, requires_grad=True)
    expected = torch.ones(3, 16) @ base.weight  # B is zero: the adapter adds nothing
    y = layer(x)
    base.put(later)
    y.sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_a_trained_bias_gets_its_gradient():
    layer = NF4Linear.from_linear(nn.Linear(8, 4))
    layer.bias.requires_grad_(True)
    layer(torch.ones(2, 3, 8)).sum().backward()
    assert layer.bias.grad.tolist() == [6.0] * 4


def test_no_float_weight_outlives_a_call(base, monkeypatch):
    """By weak references: after a model's forward, and after its backward, every Ŵ is gone."""
    made, dequantize = [], nf4.NF4Tensor.dequantize

    def watched(self, dtype=None):
        weight = dequantize(self, dtype)
        assert sum(ref() is not None for ref in made) == 0, (
            "an earlier Ŵ is still alive while the next one is made"
        )
        made.append(weakref.ref(weight))
        return weight

    inject(quantize_base(base))
    monkeypatch.setattr(nf4.NF4Tensor, "dequantize", watched)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(tuple(t.shape)) or t, lambda t: t
    ):
        loss = base(torch.arange(20).view(1, 20)).square().mean()
    layers = [m for m in base.modules() if isinstance(m, NF4Linear)]
    assert len(made) == len(layers) == 42
    assert not any(ref() is not None for ref in made)
    assert not {(m.out_features, m.in_features) for m in layers} & set(saved)
    loss.backward()
    assert len(made) > len(layers), "the backward should dequantize again"
    assert not any(ref() is not None for ref in made)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_computed_in_the_compute_dtype_and_returned_in_the_inputs(
    dtype, compute_dtype
):
    layer = NF4Linear.from_linear(nn.Linear(96, 32), compute_dtype=compute_dtype)
    x = torch.randn(4, 96).to(dtype)
    wanted = compute_dtype or dtype
    y = nn.functional.linear(x.to(wanted), layer.weight.to(wanted), layer.bias.to(wanted)).to(dtype)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x), y)


def test_under_autocast_it_computes_as_a_linear_does():
    layer = NF4Linear.from_linear(nn.Linear(96, 32))
    x = torch.randn(4, 96, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, wanted = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_qlora_in_bf16_trains_adapters_in_float32(base):
    model = quantize_base(base.to(torch.bfloat16), compute_dtype=torch.bfloat16)
    inject(model)
    layer = next(lora_layers(model))[1]
    assert layer.lora_A.dtype == torch.float32
    model(torch.arange(8).view(1, 8)).float().square().mean().backward()
    assert layer.lora_B.grad.abs().max() > 0


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(
    "move", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double().float()]
)
def test_casting_a_model_leaves_codes_and_scales_alone(move, double_quant):
    layer = NF4Linear.from_linear(nn.Linear(64, 64), double_quant=double_quant)
    before = {name: part.clone() for name, part in layer.quantized.tensors.items()}
    for name, part in move(layer).quantized.tensors.items():
        assert part.dtype == before[name].dtype
        assert torch.equal(part, before[name])


@given(seeds, sizes, sizes, st.booleans(), st.sampled_from(["nf4", "fp4", "int4"]))
def test_state_dicts_travel(seed, rows, columns, double_quant, kind):
    torch.manual_seed(seed)
    layer = NF4Linear.from_linear(nn.Linear(columns, rows), 32, double_quant, kind)
    other = NF4Linear(columns, rows, block_size=32, double_quant=double_quant, kind=kind)
    assert not other.weight.any(), "a new layer holds zeros"
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, columns)
    assert torch.equal(layer(x), other(x))


def test_a_new_layer_is_one_from_a_linear_with_zeros_inside():
    """The same parts and settings without being told, and nothing that would train."""
    new, made = NF4Linear(96, 32), NF4Linear.from_linear(nn.Linear(96, 32))
    assert not new.weight.any()
    assert repr(new) == repr(made)
    for one in (new, made):
        assert [(name, p.requires_grad) for name, p in one.named_parameters()] == [("bias", False)]
    new.load_state_dict(made.state_dict())
    assert torch.equal(new.weight, made.weight)


def test_quantizing_a_model_leaves_head_norms_and_embedding_alone(base):
    before = {name: p.clone() for name, p in base.named_parameters()}
    assert quantize_base(base) is base
    kinds = {
        name: type(m).__name__
        for name, m in base.named_modules()
        if "proj" in name or name == "lm_head"
    }
    assert kinds.pop("lm_head") == "Linear"
    assert set(kinds.values()) == {"NF4Linear"}
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.requires_grad
    assert base.lm_head.weight is base.model.embed_tokens.weight
    for name, module in base.named_modules():
        if isinstance(module, NF4Linear):
            assert torch.equal(
                module.quantized.packed, nf4.quantize(before[f"{name}.weight"]).packed
            )


def test_resident_bits_a_weight_from_storage(base):
    """4 + 8/64 + 32/(64 · 256) + 32/n, with n the weights of one matrix: 4.13."""
    quantize_base(base)
    layers = [m for m in base.modules() if isinstance(m, NF4Linear)]
    stored = sum(b.untyped_storage().nbytes() for m in layers for b in m.buffers())
    weights = sum(m.in_features * m.out_features for m in layers)
    assert 4.127 <= 8 * stored / weights < 4.131


def test_parameters_are_counted_as_what_they_stand_for(base):
    """Packed bytes are not parameters (huggingface/peft #1020)."""
    total = sum(p.numel() for p in base.parameters())
    report = inject(quantize_base(base), LoraConfig(r=8))
    assert minilora.trainable_parameters(base) == (21_504, total + 21_504)
    assert (report.trainable, report.total) == (21_504, total + 21_504)


def test_inject_and_unload_on_a_quantized_base(base):
    quantize_base(base)
    ids = torch.arange(12).view(1, 12)
    before, codes = base(ids), {name: t.clone() for name, t in base.state_dict().items()}
    inject(base, LoraConfig(r=4, target_modules="all-linear"))
    assert torch.equal(base(ids), before)
    for _, layer in lora_layers(base):
        nn.init.normal_(layer.lora_B)
    minilora.unload(base)
    after = base.state_dict()
    assert codes.keys() == after.keys()
    assert all(torch.equal(codes[name], after[name]) for name in codes)


def test_training_a_quantized_base_without_adapters_is_refused(base):
    with pytest.raises(
        ValueError, match="nothing would train: no parameter has requires_grad; inject"
    ):
        minilora.train(quantize_base(base), minilora.data.naval_log(4, 1), steps=1)


def test_training_moves_no_code(base):
    inject(quantize_base(base))
    before = {name: t.clone() for name, t in base.state_dict().items() if "lora_" not in name}
    history = minilora.train(
        base, minilora.data.naval_log(64, 2), steps=12, batch_size=8, progress=False
    )
    after = base.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert history.losses[-1] < history.losses[0]


def test_dequantize_base_gives_the_same_model_in_floats(base):
    ids = torch.arange(12).view(1, 12)
    quantized = quantize_base(base)(ids)
    assert torch.equal(minilora.dequantize_base(base)(ids), quantized)
    assert not any(isinstance(m, NF4Linear) for m in base.modules())


def test_dequantized_layers_stay_frozen():
    model = minilora.dequantize_base(
        quantize_base(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False)))
    )
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        ("0.weight", False),
        ("0.bias", False),
        ("1.weight", False),
    ]


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


def broken():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data[2, 3] = float("nan")
    return model


def adapted():
    model = nn.Sequential(nn.Linear(8, 8))
    inject(model, LoraConfig(r=1, target_modules=["0"]))
    return model


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (tied, {}, r"0.weight is tied to 1.weight: quantizing would untie them; add '0' to skip"),
        (broken, {}, r"1: quantize needs finite float32 values, got nan at \(2, 3\)"),
        (adapted, {}, r"the model has adapters \(at 0\): quantize the base first, then inject"),
        (
            lambda: quantize_base(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))),
            {},
            "0 is quantized already, and 1 more:",
        ),
        (lambda: nn.Linear(8, 8), {}, "expected a model of Linears, got a Linear"),
        (
            lambda: nn.Sequential(nn.ReLU()),
            {},
            "nothing to quantize: this Sequential holds no Linear outside",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            {"skip": ["hed"]},
            "skip: no module is named 'hed'",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            {"block_size": 48},
            "power of two from 32 to 4096",
        ),
        (lambda: nn.Sequential(nn.Linear(8, 8)), {"kind": "nf3"}, "unknown codebook 'nf3'"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            {"compute_dtype": torch.int8},
            "compute_dtype must be float32, bfloat16",
        ),
    ],
)
def test_what_cannot_be_quantized_is_refused_and_stays_as_it_was(make, settings, message):
    model = make()
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        quantize_base(model, **settings)
    assert before.keys() == model.state_dict().keys()
    assert all(
        torch.equal(before[n].nan_to_num(7), t.nan_to_num(7)) for n, t in model.state_dict().items()
    )
    assert [p.requires_grad for p in model.parameters()] == flags


def test_from_linear_refuses_what_is_no_linear():
    with pytest.raises(
        TypeError, match=r"from_linear needs an nn\.Linear with a weight of its own, got Embedding"
    ):
        NF4Linear.from_linear(nn.Embedding(4, 4))


def test_put_refuses_another_shape():
    with pytest.raises(ValueError, match=r"expected a weight of \(4, 8\), got \(8, 4\)"):
        NF4Linear(8, 4).put(nf4.quantize(torch.randn(8, 4)))


def test_a_shared_quantized_weight_is_not_adapted():
    model = nn.Sequential(NF4Linear.from_linear(nn.Linear(8, 8)), NF4Linear(8, 8))
    model[1].packed = model[0].packed
    with pytest.raises(ValueError, match=r"'0' matches 0, whose weight is tied to 1\.packed"):
        inject(model, LoraConfig(r=1, target_modules=["0"]))


def test_a_weight_that_is_computed_from_others_is_left_in_floats():
    """There is no weight to take the place of: weight_norm would compute it anew."""
    model = quantize_base(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    )
    assert [isinstance(m, NF4Linear) for m in model] == [False, True]


def test_attention_that_reads_weights_is_left_in_floats():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize_base(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu(base):
    model = quantize_base(base.cuda())
    inject(model)
    model(torch.arange(8).view(1, 8).cuda()).square().mean().backward()
    assert next(lora_layers(model))[1].lora_B.grad.is_cuda


def test_second_derivatives_and_torch_func_are_those_of_the_dequantized_linear():
    torch.manual_seed(0)
    layer = LoRALayer(NF4Linear.from_linear(nn.Linear(64, 3)).double(), r=2).double()
    nn.init.normal_(layer.lora_B)
    twin = LoRALayer(plain_linear(layer.weight.double(), layer.bias), r=2).double()
    for name in ("lora_A", "lora_B"):
        getattr(twin, name).data.copy_(getattr(layer, name))
    x = torch.randn(64, dtype=torch.float64)

    def loss(model):
        return lambda x: model(x[None]).pow(3).sum()

    for hessian in (torch.autograd.functional.hessian, lambda f, x: torch.func.hessian(f)(x)):
        torch.testing.assert_close(hessian(loss(layer), x), hessian(loss(twin), x))
    assert torch.autograd.functional.hessian(loss(layer), x).any()
    rows = torch.randn(4, 64, dtype=torch.float64)
    per_row = torch.func.vmap(torch.func.grad(loss(layer)))(rows)
    torch.testing.assert_close(per_row, torch.func.vmap(torch.func.grad(loss(twin)))(rows))


class Doubled(nn.Linear):
    """A Linear that does more than its product."""

    def forward(self, x):
        return 2 * super().forward(x)


class Written(nn.Linear):
    """The product, written otherwise, as transformers' FalconLinear has it."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def test_a_linear_that_does_more_than_its_product_is_not_quantized():
    model = nn.Sequential(Doubled(32, 32), nn.Linear(32, 4))
    with pytest.raises(ValueError, match="0: the forward of Doubled is not x Wᵀ"):
        quantize_base(model, skip=["1"])
    assert type(model[0]) is Doubled
    assert type(quantize_base(model, skip=["0"])[1]) is NF4Linear
    assert type(quantize_base(nn.Sequential(Written(32, 4)), skip=[])[0]) is NF4Linear


def test_hooks_are_not_lost_in_silence():
    model = nn.Sequential(nn.Linear(32, 4))
    handle = model[0].register_forward_hook(lambda module, inputs, y: 3 * y)
    with pytest.raises(ValueError, match="0: it has hooks.*add '0' to skip"):
        quantize_base(model)
    handle.remove()
    assert type(quantize_base(model)[0]) is NF4Linear

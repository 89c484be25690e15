"""Three kinds of Linear answer the same questions; a twin has another weight and nothing else."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from minilora import LoRALayer, NF4Linear
from minilora.lora.linears import (
    device_of,
    dtype_of,
    is_conv1d,
    is_linear,
    linear_shape,
    weight_of,
    with_weight,
)

from ..tolerance import assert_as_close, exactly


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(4, 6, bias=bias)


def conv1d():
    torch.manual_seed(0)
    return Conv1D(nf=6, nx=4)


def four_bits(bias=True):
    return NF4Linear.from_linear(linear(bias))


KINDS = [linear, conv1d, four_bits]


@pytest.mark.parametrize("make", KINDS)
def test_the_weight_is_out_by_in_and_computes_what_the_module_does(make):
    module, x = make(), torch.randn(3, 4)
    assert is_linear(module)
    assert is_conv1d(module) == (make is conv1d)
    assert linear_shape(module) == (4, 6)
    assert weight_of(module).shape == (6, 4)
    assert not weight_of(module).requires_grad
    product = nn.functional.linear(x, weight_of(module), module.bias)
    truth = nn.functional.linear(x.double(), weight_of(module).double(), module.bias.double())
    assert_as_close(module(x), product, truth)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_and_the_device_are_those_of_the_weight(make, dtype):
    module = make()
    if make is not four_bits:
        module = module.to(dtype)
        assert dtype_of(module) == dtype
    assert dtype_of(NF4Linear.from_linear(linear().to(dtype))) == dtype
    assert device_of(module) == torch.device("cpu")
    assert device_of(linear().to("meta")) == torch.device("meta")


@pytest.mark.parametrize("make", [linear, conv1d])
def test_a_twin_has_the_new_weight_and_all_else_of_the_base(make):
    base, seen = make().eval(), []
    base.mark = "mine"
    base.register_forward_hook(lambda module, inputs, output: seen.append(module))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    twin = with_weight(base, torch.ones(6, 4), base.bias)
    assert type(twin) is type(base)
    assert torch.equal(weight_of(twin), torch.ones(6, 4))
    assert twin.weight.is_contiguous()
    assert not twin.weight.requires_grad
    assert twin.bias is base.bias
    assert (twin.mark, twin.training) == ("mine", False)
    twin(torch.ones(1, 4))
    assert seen == [twin], "the base's hooks run on the twin"
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("make", KINDS)
def test_a_twin_may_have_another_bias(make):
    base, bias = make(), torch.arange(6.0)
    before = base.bias.detach().clone()
    twin = with_weight(base, torch.zeros(6, 4), bias)
    assert torch.equal(twin(torch.ones(1, 4))[0], bias)
    assert isinstance(twin.bias, nn.Parameter)
    assert not twin.bias.requires_grad
    assert torch.equal(base.bias, before)


def test_a_twin_may_lose_its_bias_or_gain_one():
    assert with_weight(linear(), torch.zeros(6, 4), None).bias is None
    gained = with_weight(linear(bias=False), torch.zeros(6, 4), torch.ones(6))
    assert torch.equal(gained(torch.zeros(1, 4)), torch.ones(1, 6))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_twin_of_four_bits_is_a_float_linear(bias, training):
    base = four_bits(bias).train(training)
    twin = with_weight(base, torch.ones(6, 4), base.bias)
    assert type(twin) is nn.Linear
    assert twin.training == training
    assert torch.equal(twin.weight, torch.ones(6, 4))
    assert (twin.bias is None) == (not bias)
    assert not any(p.requires_grad for p in twin.parameters())


def test_an_adapter_on_conv1d_computes_the_same_merged():
    layer = LoRALayer(conv1d(), r=2)
    nn.init.normal_(layer.lora_B)
    assert (layer.in_features, layer.out_features) == (4, 6)
    x = torch.randn(3, 4)
    unmerged, truth = layer(x), exactly(layer, x)
    layer.merge()
    assert_as_close(layer(x), unmerged, truth)


class Widths(nn.Linear):
    """A Linear that happens to have transformers' name for the output width."""

    nf = 7


def test_a_linear_with_an_attribute_nf_is_a_linear():
    assert linear_shape(Widths(4, 7)) == (4, 7)
    assert weight_of(Widths(4, 7)).shape == (7, 4)


class Convolution(nn.Conv1d):
    """A convolution with the class name of transformers' transposed Linear."""


Convolution.__name__ = "Conv1D"


@pytest.mark.parametrize(
    "base", [nn.Embedding(4, 4), nn.Conv2d(1, 1, 3), nn.LayerNorm(4), Convolution(4, 4, 1)]
)
def test_a_base_that_is_not_a_linear_is_refused(base):
    assert not is_linear(base)
    with pytest.raises(TypeError, match=f"expected a Linear.*got {type(base).__name__}"):
        LoRALayer(base)


def computed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def flat():
    module = nn.Linear(4, 4)
    module.weight = nn.Parameter(module.weight.detach().flatten())
    return module


def whole_numbers():
    module = nn.Linear(4, 4)
    module.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return module


@pytest.mark.parametrize("make", [computed, flat, whole_numbers])
def test_a_linear_without_a_plain_weight_is_refused(make):
    """Computed from others, flattened as by FSDP, or in another format: no merge can write it."""
    with pytest.raises(TypeError, match="this .*Linear has no plain floating-point weight"):
        LoRALayer(make())

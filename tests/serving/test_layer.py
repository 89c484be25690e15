"""Rows with adapters of their own, against level 0, ``LoRALayer`` and the plain version."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora import LoRALayer, NF4Linear, level0
from minilora.lora.rows import add_rows, add_rows_plainly
from minilora.serving.layer import AdapterRows, Factors, RowLinear

from ..strategies import seeds
from ..tolerance import forward_bound, gamma

sizes = st.integers(1, 24)


@st.composite
def mixes(draw, dtypes=(torch.float32,)):
    """(layer, x, its rows' adapters as LoRALayers, None for a row without)."""
    torch.manual_seed(draw(seeds))
    dtype = draw(st.sampled_from(dtypes))
    base = nn.Linear(draw(sizes), draw(sizes), bias=draw(st.booleans())).to(dtype)
    count = draw(st.integers(1, 6))
    layer = RowLinear(base, rows=count, max_rank=8)
    adapters = []
    for row in range(count):
        dirty = Factors(torch.randn(8, base.in_features), torch.randn(8, base.out_features))
        layer.put(row, [(dirty, 1.0)])  # whoever stood here before
        r = draw(st.integers(0, 8))
        if r == 0:
            adapters.append(None)
            layer.put(row, [])
            continue
        own = LoRALayer(base, r=r, lora_alpha=draw(st.sampled_from([1.0, 3.0, 16.0])))
        nn.init.normal_(own.lora_B)
        adapters.append(own)
        B = own.scaling * own.lora_B.detach().T
        layer.put(row, [(Factors(own.lora_A.detach(), B), 1.0)])
    x = torch.randn(count, draw(st.integers(1, 5)), base.in_features).to(dtype)
    return layer, x, adapters


@given(mixes(dtypes=(torch.float32, torch.bfloat16, torch.float16)))
def test_each_row_gets_what_it_gets_alone_with_its_adapter(mix):
    layer, x, adapters = mix
    with torch.inference_mode():
        y = layer(x)
        for row, own in enumerate(adapters):
            base = layer.base
            if own is None:
                assert torch.equal(y[row], base(x)[row])
                continue
            bound = forward_bound(
                *(x[row], base.weight, own.lora_A, own.lora_B, own.scaling, base.bias, x.dtype)
            )
            assert ((y[row].double() - own(x)[row].double()).abs() <= 2 * bound).all()


@given(mixes())
def test_the_fast_way_the_plain_way_and_level_0_agree(mix):
    layer, x, _ = mix
    A, B = layer.seen
    W, bias = layer.base.weight.detach(), layer.base.bias
    with torch.no_grad():
        fast = add_rows(layer.base(x), x, A, B)
        plain = add_rows_plainly(layer.base(x), x, A, B)
    numbers = [t.double().numpy() for t in (x, W, A, B.transpose(1, 2))]
    offset = None if bias is None else bias.detach().double().numpy()
    truth = torch.from_numpy(level0.mixed_forward(*numbers, [1.0] * len(x), offset))
    size = [abs(n) for n in numbers]
    offset = None if offset is None else abs(offset)
    size = torch.from_numpy(level0.mixed_forward(*size, [1.0] * len(x), offset))
    bound = gamma(x.shape[-1] + A.shape[1] + 6, x.dtype) * size + torch.finfo(x.dtype).tiny
    assert ((fast - truth).abs() <= bound).all()
    assert ((plain - truth).abs() <= bound).all()


@given(mixes())
def test_gradients_are_those_of_level_0(mix):
    layer, x, _ = mix
    A, B = (t.clone().requires_grad_() for t in layer.seen)
    x = x.requires_grad_()
    y = add_rows(layer.base(x), x, A, B)
    g = torch.randn_like(y)
    dx, dA, dB = torch.autograd.grad(y, (x, A, B), g)
    for row in range(len(x)):
        pieces = [g[row], x[row], layer.base.weight, A[row], B[row].T]
        numbers = [t.detach().double().numpy() for t in pieces]
        truth = level0.lora_backward(*numbers, alpha=A.shape[1])  # scaling 1
        size = level0.lora_backward(*map(abs, numbers), alpha=A.shape[1])
        terms = sum(x.shape) + y.shape[-1] + A.shape[1] + 8
        for ours, name in ((dx[row], "x"), (dA[row], "A"), (dB[row].T, "B")):
            bound = gamma(terms, x.dtype) * torch.from_numpy(getattr(size, name)) + 1e-30
            assert ((ours - torch.from_numpy(getattr(truth, name))).abs() <= bound).all()


@given(mixes(), st.randoms())
def test_a_row_does_not_depend_on_the_others_nor_on_its_place(mix, random):
    """To the bit where the base's product has that property; its rows are computed apart here."""
    layer, x, _ = mix
    order = list(range(len(x)))
    random.shuffle(order)
    A, B = layer.seen
    with torch.no_grad():
        y = layer.base(x)
        mixed = add_rows(y.clone(), x, A, B)
        shuffled = add_rows(y[order], x[order], A[order], B[order])
        assert torch.equal(shuffled, mixed[order])
        for row in range(len(x)):
            one = slice(row, row + 1)
            assert torch.equal(add_rows(y[one].clone(), x[one], A[one], B[one])[0], mixed[row])


def test_a_base_in_four_bits_takes_rows_too():
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    base = NF4Linear.from_linear(linear)
    layer = RowLinear(base, rows=3, max_rank=4)
    parts = Factors(torch.randn(2, 64), torch.randn(2, 32))
    layer.put(1, [(parts, 0.5)])
    x = torch.randn(3, 5, 64)
    with torch.no_grad():
        y, plain = layer(x), base(x)
    torch.testing.assert_close(y[1], plain[1] + 0.5 * (x[1] @ parts.A.T) @ parts.B)
    assert torch.equal(y[[0, 2]], plain[[0, 2]])


def model_and_rows(size=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)).requires_grad_(False)
    return model, AdapterRows(model, max_rank=4, size=size)


def adapter(seed, *paths, r=2):
    random = torch.Generator().manual_seed(seed)
    return {
        path: Factors(torch.randn(r, 6, generator=random), torch.randn(r, 6, generator=random))
        for path in paths
    }


def test_sglang_8103_nothing_of_the_rows_last_adapter_is_left():
    """sgl-project/sglang #7426, #8103: a slot kept what the evicted adapter had left in it."""
    model, rows = model_and_rows()
    x = torch.randn(4, 3, 6)
    alone = model(x)
    rows.admit(0, [(adapter(1, "0", "1", r=4), 1.0)])
    small = adapter(2, "1", "2", r=1)
    rows.admit(0, [(small, 1.0)])  # a smaller rank, other modules
    after = model(x)
    fresh, fresh_rows = model_and_rows()
    fresh_rows.admit(0, [(small, 1.0)])
    assert torch.equal(after[0], fresh(x)[0])
    rows.admit(0, [])
    assert torch.equal(model(x), alone)
    assert not any(layer.A.any() or layer.B.any() for layer in rows.layers.values())


def test_vllm_47724_an_adapter_that_changes_after_admission_does_not_reach_the_row():
    """vllm-project/vllm #47724: a load during decoding served another user's adapter."""
    model, rows = model_and_rows()
    x, factors = torch.randn(4, 3, 6), adapter(1, "0")
    rows.admit(2, [(factors, 1.0)])
    before = model(x)
    for pair in factors.values():
        pair.A.zero_()
        pair.B.fill_(float("nan"))
    assert torch.equal(model(x), before)


def test_rows_move_and_the_window_chooses():
    model, rows = model_and_rows()
    x = torch.randn(4, 3, 6)
    rows.admit(3, [(adapter(1, "0", "2"), 1.0)])
    rows.admit(0, [(adapter(2, "1"), 1.0)])
    whole = model(x)
    rows.move(3, 1)
    assert torch.equal(model(x[[0, 3, 2, 3]])[[0, 1, 3]], whole[[0, 3, 3]])
    rows.look_at(1, 3)
    assert torch.equal(model(x[[3, 2]]), whole[[3, 2]])
    assert torch.equal(model(x[[3, 2]].flatten(0, 1)), whole[[3, 2]].flatten(0, 1))  # OPT's form
    rows.admit(2, [(adapter(3, "0"), 1.0)])  # a new module is seen through the same window
    assert model(x[:2]).shape == (2, 3, 6)
    with pytest.raises(ValueError, match="3 rows do not divide into 2 groups"):
        model(x[:3])
    rows.look_at(0, 1)
    torch.testing.assert_close(model(x[:1]), whole[:1])
    for window in ((-1, 2), (2, 2), (0, 5)):
        with pytest.raises(ValueError, match="expected rows within the 4 there are, got"):
            rows.look_at(*window)


def test_a_weighted_sum_stands_side_by_side_and_must_fit():
    model, rows = model_and_rows()
    one, two = adapter(1, "0", r=2), adapter(2, "0", "1", r=2)
    rows.admit(0, [(one, 1.0), (two, 0.5)])
    before = rows.layers["0"].A.clone()
    x = torch.randn(4, 3, 6)
    linear = model[0].base
    delta = one["0"].A.T @ one["0"].B + 0.5 * two["0"].A.T @ two["0"].B
    torch.testing.assert_close(model[0](x)[0], linear(x[0]) + x[0] @ delta)
    with pytest.raises(ValueError, match="0: ranks of 5 together, the bank's rows have max_rank=4"):
        rows.admit(0, [(one, 1.0), (adapter(3, "0", "2", r=3), 1.0)])
    assert torch.equal(rows.layers["0"].A, before)
    assert isinstance(model[2], nn.Linear)  # nothing was changed


def test_other_sizes_begin_empty():
    model, rows = model_and_rows()
    rows.admit(0, [(adapter(1, "0"), 1.0)])
    rows.resize(9)
    assert rows.layers["0"].A.shape == (9, 4, 6)
    x = torch.randn(9, 6)
    assert torch.equal(model[0](x), model[0].base(x))


def test_after_a_resize_a_window_is_looked_at_anew():
    model, rows = model_and_rows()
    rows.admit(0, [(adapter(1, "0"), 1.0)])
    rows.resize(3)
    rows.admit(2, [(adapter(2, "0"), 1.0)])
    x = torch.randn(3, 2, 6)
    whole, base = model[0](x), model[0].base(x)
    assert [torch.equal(whole[row], base[row]) for row in range(3)] == [True, True, False]
    rows.look_at(1, 3)
    torch.testing.assert_close(model[0](x[1:]), whole[1:])  # the base's product has other rows


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_may_read_the_bases_weight_and_bias(bias):
    base = nn.Linear(3, 2, bias=bias)
    layer = RowLinear(base, rows=1, max_rank=1)
    assert layer.weight is base.weight
    assert layer.bias is base.bias

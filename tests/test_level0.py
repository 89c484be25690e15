"""Level 0 is the oracle of everything else, so its own oracle is arithmetic: finite differences."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from minilora import level0

U = 2.0**-53  # float64's unit roundoff

shapes = st.tuples(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from([(), (3,), (2, 3)]),
    st.integers(0, 2**32 - 1),
)


def problem(inside, outside, r, batch, seed):
    rng = np.random.default_rng(seed)
    x, W = rng.normal(size=(*batch, inside)), rng.normal(size=(outside, inside))
    A, B = rng.normal(size=(r, inside)), rng.normal(size=(outside, r))
    bias, g = rng.normal(size=outside), rng.normal(size=(*batch, outside))
    return x, W, A, B, bias, g, float(rng.uniform(0.5, 20))


@given(shapes)
def test_the_forward_is_a_linear_layer_with_the_merged_weight(shape):
    """Both sides sum in + r products and round a few times more (bound: tests/tolerance.py)."""
    x, W, A, B, bias, _, alpha = problem(*shape)
    merged = x @ (W + level0.delta_weight(A, B, alpha)).T + bias
    size = abs(x) @ (abs(W) + level0.delta_weight(abs(A), abs(B), alpha)).T + abs(bias)
    bound = 2 * U * (W.shape[1] + len(A) + 8) * size
    assert (abs(level0.lora_forward(x, W, A, B, alpha, bias) - merged) <= bound).all()


@given(shapes)
def test_the_backward_agrees_with_finite_differences(shape):
    """The loss Σ g·y is linear in x, in A and in B, so central differences err by rounding alone.

    Each loss errs by γ_n Σ |g||y|, y in absolute terms, the slope by that over h, and a moved entry
    by u of itself.
    """
    x, W, A, B, bias, g, alpha = problem(*shape)
    gradients = level0.lora_backward(g, x, W, A, B, alpha)
    bigger = [abs(array) + 1 for array in (x, W, A, B)]
    size = (abs(g) * level0.lora_forward(*bigger, alpha, abs(bias))).sum()  # with room for h
    terms = W.shape[1] + len(A) + g.size + 12
    h = 1e-4
    for name, array in (("x", x), ("A", A), ("B", B)):
        for index in np.ndindex(array.shape):
            losses = []
            for step in (h, -h):
                moved = array.copy()
                moved[index] += step
                inputs = {"x": x, "A": A, "B": B, name: moved}
                y = level0.lora_forward(**inputs, W=W, alpha=alpha, bias=bias)
                losses.append((g * y).sum())
            slope = (losses[0] - losses[1]) / (2 * h)
            assert abs(slope - getattr(gradients, name)[index]) <= 2 * U * terms * size / h


@given(shapes, st.integers(1, 4))
def test_each_row_of_a_mixed_batch_is_that_row_alone(shape, rows):
    x, W, A, B, bias, _, _ = problem(*shape)
    rng = np.random.default_rng(shape[-1])
    batch = rng.normal(size=(rows, *x.shape))
    factors = rng.normal(size=(rows, *A.shape)), rng.normal(size=(rows, *B.shape))
    scaling = rng.uniform(0.5, 20, size=rows)
    scaling[0] = 0.0  # a row without an adapter
    mixed = level0.mixed_forward(batch, W, *factors, scaling, bias)
    assert np.array_equal(mixed[0], batch[0] @ W.T + bias)
    for i in range(1, rows):
        merged = W + scaling[i] * factors[1][i] @ factors[0][i]
        size = abs(batch[i]) @ (abs(W) + scaling[i] * abs(factors[1][i]) @ abs(factors[0][i])).T
        bound = 2 * U * (W.shape[1] + len(A) + 10) * (size + abs(bias))
        assert (abs(mixed[i] - batch[i] @ merged.T - bias) <= bound).all()


def test_a_mixed_batch_needs_an_adapter_for_each_row():
    x, A, B = np.ones((3, 4)), np.ones((2, 1, 4)), np.ones((2, 2, 1))
    message = r"expected as many A, B and scalings as rows of x, got x \(3, 4\), A \(2, 1, 4\)"
    with pytest.raises(ValueError, match=message):
        level0.mixed_forward(x, np.ones((2, 4)), A, B, [1.0, 1.0])
    with pytest.raises(ValueError, match="expected as many"):
        level0.mixed_forward(x, np.ones((2, 4)), np.ones((3, 1, 4)), np.ones((3, 2, 1)), 1.0)


def test_zero_b_gives_the_base_and_two_zeros_give_no_gradient():
    x, W, A, B, _, g, alpha = problem(5, 4, 2, (3,), 0)
    assert np.array_equal(level0.lora_forward(x, W, A, 0 * B, alpha), x @ W.T)
    stuck = level0.lora_backward(g, x, W, 0 * A, 0 * B, alpha)
    assert not stuck.A.any()
    assert not stuck.B.any()


@pytest.mark.parametrize(
    ("x", "W", "A", "B"),
    [
        (np.ones(3), np.ones((2, 4)), np.ones((1, 4)), np.ones((2, 1))),
        (np.ones(4), np.ones((2, 4)), np.ones((4, 1)), np.ones((2, 1))),
        (np.ones(4), np.ones((2, 4)), np.ones((1, 4)), np.ones((1, 2))),
        (np.ones(()), np.ones((2, 4)), np.ones((1, 4)), np.ones((2, 1))),
    ],
)
def test_shapes_that_do_not_fit_are_shown(x, W, A, B):
    expected = r"expected x \(…, in\), W \(out, in\), A \(r, in\), B \(out, r\), got x \("
    with pytest.raises(ValueError, match=f"shapes do not fit: {expected}"):
        level0.lora_forward(x, W, A, B, 1.0)


def test_a_gradient_of_another_shape_is_refused():
    x, W, A, B = np.ones((3, 4)), np.ones((2, 4)), np.ones((1, 4)), np.ones((2, 1))
    message = r"grad_y must have the shape of y, \(3, 2\), got \(3, 4\)"
    with pytest.raises(ValueError, match=message):
        level0.lora_backward(np.ones((3, 4)), x, W, A, B, 1.0)


@pytest.mark.slow
def test_the_levels_and_every_byte_equal_bitsandbytes():
    """Odd, partial and single blocks, scales over seventy decades, zero blocks, exact midpoints."""
    import bitsandbytes.functional as peer
    import torch

    levels = level0.nf4_levels()
    assert np.array_equal(levels, peer.get_4bit_type("nf4", device="cpu").numpy())
    rng = np.random.default_rng(0)
    midpoints = np.tile((levels[:-1] + levels[1:]) / 2, 9)
    midpoints[::64] = 1.0
    cases = [
        rng.normal(size=n) * scale
        for n in (1, 2, 63, 64, 65, 127, 128, 129, 1000, 4097)
        for scale in (1e-40, 1e-30, 1, 1e30)
    ]
    cases += [midpoints, np.zeros(130), np.full(70, 3.0), np.append(np.full(63, 1e-3), 1e3)]
    for w in cases:
        w = w.astype(np.float32)
        packed, state = peer.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4")
        ours = level0.nf4_quantize(w)
        assert np.array_equal(ours.packed, packed.flatten().numpy())
        assert np.array_equal(ours.absmax, state.absmax.numpy())
        values = peer.dequantize_4bit(packed, state).flatten().numpy()
        assert np.array_equal(level0.nf4_dequantize(ours), values)


def test_the_bytes_that_bitsandbytes_once_made_come_out_again():
    """Zero blocks, ties, an odd tail, short last blocks, values up to 1e30 (golden/make_nf4.py)."""
    golden = load_file(Path(__file__).parent / "golden" / "nf4.safetensors")
    keys = [key for key in golden if ".nf4." in key and key.endswith(".single.packed")]
    assert len(keys) == 24
    for key in keys:
        name, _, block_size, *_ = key.split(".")
        weight = golden[f"{name}.weight"].float().numpy()
        options = {} if block_size == "64" else {"block_size": int(block_size)}  # 64: the default
        ours = level0.nf4_quantize(weight, **options)
        assert np.array_equal(ours.packed, golden[key].numpy()), key
        assert np.array_equal(ours.absmax, golden[key.replace("packed", "absmax")].numpy()), key
        if (values := golden.get(key.replace("packed", "values"))) is not None:
            assert np.array_equal(level0.nf4_dequantize(ours), values.numpy()), key


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_nf4_errs_by_half_the_widest_gap_at_most_and_a_second_time_not_at_all(seed, n):
    w = np.random.default_rng(seed).normal(size=(n,)).astype(np.float32)
    quantized = level0.nf4_quantize(w)
    rounded = level0.nf4_dequantize(quantized)
    half_gap = np.diff(level0.nf4_levels()).max() / 2
    bound = half_gap * np.repeat(quantized.absmax, 64)[:n] * (1 + 1e-6)
    assert (np.abs(w - rounded) <= bound).all()
    assert np.array_equal(level0.nf4_dequantize(level0.nf4_quantize(rounded)), rounded)


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [np.inf]])
def test_nf4_refuses_what_has_no_scale(bad):
    with pytest.raises(ValueError, match="at least one value and finite values only"):
        level0.nf4_quantize(bad)


def test_a_bias_that_would_be_broadcast_and_a_block_of_no_size_are_refused():
    x, W, A, B = np.ones((2, 3)), np.ones((2, 3)), np.ones((1, 3)), np.ones((2, 1))
    for bias in ([[10], [20]], [1], 5.0):
        message = "bias must have one number for each of the 2 outputs, got shape"
        with pytest.raises(ValueError, match=message):
            level0.lora_forward(x, W, A, B, 1, bias)
    level0.nf4_quantize(x, 1)
    for size in (0, -64):
        with pytest.raises(ValueError, match=f"block_size must be at least 1, got {size}"):
            level0.nf4_quantize(x, size)


@pytest.mark.parametrize("A", [[1.0, 1.0], [[[1.0, 1.0]]]], ids=["a-row", "a-batch"])
def test_a_delta_of_other_shapes_is_refused(A):
    with pytest.raises(ValueError, match="expected A .r, in. and B"):
        level0.delta_weight(A, [[3.0, 3.0]], alpha=2)

"""Aggregators against NumPy: full matrices, summed and cut there as the equations say."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.lora.combining import LowRank
from minilora.scale import Update, aggregate, relative_error
from minilora.scale.federated import AGGREGATORS, thin_svd

from ..strategies import seeds
from ..tolerance import gamma

SHAPES = {"layers.0.q_proj": (6, 5), "layers.1.up_proj": (4, 9)}  # (in, out)


def random_part(shape, r, scaling, generator, A=None):
    size_in, size_out = shape
    A = torch.randn(r, size_in, generator=generator) if A is None else A
    return LowRank(A, torch.randn(size_out, r, generator=generator), scaling)


def clients(seed, ranks, *, one_a=False, scalings=None):
    """A client a rank, each with tokens of its own; with one A for all, or an A each."""
    generator = torch.Generator().manual_seed(seed)
    scalings = scalings or [2.0] * len(ranks)
    shared = {path: torch.randn(ranks[0], shape[0]) for path, shape in SHAPES.items()}
    updates = {}
    for number, (r, scaling) in enumerate(zip(ranks, scalings, strict=True)):
        parts = {
            path: random_part(shape, r, scaling, generator, shared[path] if one_a else None)
            for path, shape in SHAPES.items()
        }
        tokens = int(torch.randint(1, 1000, (), generator=generator))
        updates[f"client {number}"] = Update(parts, tokens)
    return updates


def product(part):
    return part.scaling * part.B.numpy().astype("float64") @ part.A.numpy().astype("float64")


def average_update(updates, path):
    """Σ nᵢ sᵢ Bᵢ Aᵢ / Σ nᵢ, as a whole matrix."""
    total = sum(update.tokens for update in updates.values())
    return sum(update.tokens / total * product(update.parts[path]) for update in updates.values())


def close(ours, right, terms):
    """Within the bound of float32 factors of so many terms, beside the largest entries' size."""
    size = np.abs(right).max() + np.linalg.norm(right)
    np.testing.assert_allclose(ours, right, rtol=0, atol=10 * gamma(terms, torch.float32) * size)


ranks = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(seeds, ranks)
def test_stacking_is_the_average_update(seed, ranks):
    updates = clients(seed, ranks, scalings=[0.5 + 0.25 * n for n in range(len(ranks))])
    result = aggregate(updates, "stack")
    for path in SHAPES:
        assert len(result[path].A) == sum(ranks)
        close(product(result[path]), average_update(updates, path), sum(ranks))
    assert relative_error(updates, result) < 1e-6


@given(seeds, ranks)
def test_svd_is_the_best_of_its_rank_and_its_error_is_the_tail(seed, ranks):
    updates = clients(seed, ranks)
    r = max(ranks)
    result = aggregate(updates, "svd")
    tails = sizes = 0.0
    for path in SHAPES:
        whole = average_update(updates, path)
        U, S, Vh = np.linalg.svd(whole)
        assert result[path].A.shape[0] == r
        assert result[path].scaling == 2.0
        best = (U[:, :r] * S[:r]) @ Vh[:r]
        gap = S[r - 1] - (S[r] if r < len(S) else 0)
        if gap > 1e-3 * S[0]:  # of two equal singular values either may stay
            close(product(result[path]), best, 4 * sum(ranks) * S[0] / gap)
        tails, sizes = tails + (S[r:] ** 2).sum(), sizes + (S**2).sum()
    assert relative_error(updates, result) == pytest.approx((tails / sizes) ** 0.5, abs=1e-5)


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_a_frozen_a_makes_the_average_of_b_exact(seed, count, r):
    updates = clients(seed, [r] * count, one_a=True)
    result = aggregate(updates, "frozen_a")
    for path in SHAPES:
        close(product(result[path]), average_update(updates, path), r + count)
    for how in ("factors", "stack"):  # with one A these agree
        assert relative_error(updates, aggregate(updates, how)) < 1e-6


@given(seeds, st.integers(2, 4), st.integers(1, 3))
def test_averages_of_factors_err_by_the_cross_terms(seed, count, r):
    updates = clients(seed, [r] * count)
    result = aggregate(updates, "factors")
    total = sum(update.tokens for update in updates.values())
    shares = {name: update.tokens / total for name, update in updates.items()}
    wrong = size = 0.0
    for path in SHAPES:
        factors = {
            name: (update.parts[path].B.double().numpy(), update.parts[path].A.double().numpy())
            for name, update in updates.items()
        }
        # B A - Σ wᵢ Bᵢ Aᵢ = -½ Σᵢⱼ wᵢ wⱼ (Bᵢ - Bⱼ)(Aᵢ - Aⱼ)
        cross = sum(
            -0.5 * shares[i] * shares[j] * (factors[i][0] - factors[j][0])
            @ (factors[i][1] - factors[j][1])
            for i in factors
            for j in factors
        )  # fmt: skip
        whole = average_update(updates, path)
        close(product(result[path]), whole + 2.0 * cross, r + count)
        wrong += np.linalg.norm(2.0 * cross) ** 2
        size += np.linalg.norm(whole) ** 2
    assert relative_error(updates, result) == pytest.approx((wrong / size) ** 0.5, rel=1e-4)


def test_the_trap_is_other_starts_and_not_averaging():
    """Updates as training leaves them: A near its start, B small."""
    generator = torch.Generator().manual_seed(0)

    def trained(A):
        A = A + 0.02 * torch.randn(A.shape, generator=generator)
        return LowRank(A, 0.1 * torch.randn(32, 4, generator=generator), 2.0)

    def error(starts):
        updates = {f"{n}": Update({"q": trained(A)}, 100) for n, A in enumerate(starts)}
        return relative_error(updates, aggregate(updates, "factors"))

    starts = [torch.rand(4, 64, generator=generator) / 4 - 0.125 for _ in range(2)]
    same, different = error([starts[0]] * 2), error(starts)
    assert same < 0.3
    assert different > 0.6
    assert different > 2.5 * same


@given(seeds)
def test_the_order_of_arrival_changes_no_bit(seed):
    updates = clients(seed, [2, 2, 2], one_a=True)
    turned = dict(reversed(updates.items()))
    for how in AGGREGATORS:
        one, other = aggregate(updates, how), aggregate(turned, how)
        for path in SHAPES:
            assert torch.equal(one[path].A, other[path].A)
            assert torch.equal(one[path].B, other[path].B)


def test_a_client_that_dropped_out_has_no_weight():
    updates = clients(3, [2, 2, 2])
    some = {name: updates[name] for name in list(updates)[:2]}
    close(product(aggregate(some)["layers.0.q_proj"]), average_update(some, "layers.0.q_proj"), 4)
    with pytest.raises(ValueError, match=r"at least 3 clients, got 2: client 0, client 1"):
        aggregate(some, fewest=3)


def test_a_client_with_all_the_tokens_is_the_average():
    updates = clients(4, [2, 2])
    updates["client 0"] = replace(updates["client 0"], tokens=10**9)
    updates["client 1"] = replace(updates["client 1"], tokens=1)
    for how in ("factors", "svd", "stack"):
        ours = product(aggregate(updates, how)["layers.0.q_proj"])
        close(ours, product(updates["client 0"].parts["layers.0.q_proj"]), 100)


def test_a_wide_layer_never_becomes_a_whole_matrix():
    """2 · 10⁵ by 2 · 10⁵ numbers would be 160 GB."""
    A, B = torch.randn(2, 200_000) / 400, torch.randn(200_000, 2)
    U, S, Vh = thin_svd(B, A)
    assert (U.shape, S.shape, Vh.shape) == ((200_000, 2), (2,), (2, 200_000))
    one = {"a": Update({"q": LowRank(A, B, 1.0)}, 1), "b": Update({"q": LowRank(A, B, 1.0)}, 3)}
    assert relative_error(one, aggregate(one, "svd")) < 1e-5


def spoil(kind):
    """Two clients of which the second is wrong."""
    updates = clients(5, [2, 2])
    bad = copy.deepcopy(dict(updates["client 1"].parts))
    q = bad["layers.0.q_proj"]
    tokens = 10
    if kind == "nan":
        q.B[0, 0] = float("nan")
    elif kind == "shape":
        bad["layers.0.q_proj"] = LowRank(torch.zeros(2, 7), q.B, 2.0)
    elif kind == "form":
        bad["layers.0.q_proj"] = LowRank(q.A, torch.zeros(5, 3), 2.0)
    elif kind == "modules":
        bad["lm_head"] = bad.pop("layers.0.q_proj")
    elif kind in ("int64", "float16"):
        dtype = getattr(torch, kind)
        bad["layers.0.q_proj"] = LowRank(q.A, (10 * q.B).round().to(dtype), 2.0)
    elif kind == "rank":
        bad["layers.0.q_proj"] = LowRank(torch.zeros(3, 6), torch.zeros(5, 3), 2.0)
    elif kind == "scaling":
        bad["layers.0.q_proj"] = q._replace(scaling=1.0)
    elif kind == "no tokens":
        tokens = 0
    elif kind == "half a token":
        tokens = 0.5
    elif kind == "nothing":
        bad = {}
    return {**updates, "client 1": Update(bad, tokens)}


REFUSALS = {
    "nan": ("stack", r"client 'client 1': layers.0.q_proj holds values that are not finite"),
    "shape": ("stack", r"A \(2, 7\) and B \(5, 2\), expected them for \(in, out\) = \(6, 5\)"),
    "int64": ("factors", r"torch\.float32, torch\.int64.*, expected floating-point numbers"),
    "float16": ("svd", r"torch\.float16.*, expected \(torch\.float32, torch\.float32\)"),
    "form": ("svd", r"A \(2, 6\) and B \(5, 3\), expected \(r, in\) and \(out, r\)"),
    "modules": ("svd", r"adapted other modules: layers.0.q_proj, lm_head"),
    "rank": ("factors", r"\(3, 2\.0\), and client 'client 0' has \(2, 2\.0\); .* 'svd' or 'stack'"),
    "scaling": ("frozen_a", r"\(2, 1\.0\), and client 'client 0' has \(2, 2\.0\)"),
    "no tokens": ("stack", r"client 'client 1': expected at least 1 token, got 0"),
    "half a token": ("stack", r"tokens must be whole, got 0\.5"),
    "nothing": ("stack", r"adapted other modules"),
    "other a": ("frozen_a", r"its A of layers.0.q_proj is not the A of client 'client 0'"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_bad_updates_are_refused_in_a_sentence_and_nothing_changes(kind):
    how, sentence = REFUSALS[kind]
    updates = spoil(kind)
    before = copy.deepcopy(updates)
    with pytest.raises(ValueError, match=sentence):
        aggregate(updates, how)
    for name, update in updates.items():
        for path, part in update.parts.items():
            assert torch.equal(part.A, before[name].parts[path].A)
            assert torch.equal(part.B.nan_to_num(7), before[name].parts[path].B.nan_to_num(7))


def test_bad_settings_are_refused():
    updates = clients(6, [1])
    with pytest.raises(ValueError, match=r"no how='stak': did you mean 'stack'"):
        aggregate(updates, "stak")
    for rank in (0, 2.5, True):
        with pytest.raises(ValueError, match=rf"positive whole number for how='svd', got {rank}"):
            aggregate(updates, "svd", rank=rank)
    with pytest.raises(ValueError, match=r"got 2 for 'stack'"):
        aggregate(updates, "stack", rank=2)
    with pytest.raises(ValueError, match=r"at least 1 clients, got 0"):
        aggregate({})
    with pytest.raises(ValueError, match=r"the result has no layers.0.q_proj"):
        relative_error(updates, {})
    invented = {**aggregate(updates), "lm_head": updates["client 0"].parts["layers.0.q_proj"]}
    with pytest.raises(ValueError, match=r"the result has lm_head, which no client trained"):
        relative_error(updates, invented)


def test_a_scaling_of_zero_is_an_update_of_zeros():
    updates = clients(0, [2, 1], scalings=[0.0, 0.0])
    for part in aggregate(updates, "svd").values():
        assert not (part.scaling * part.B @ part.A).any()


def test_an_update_of_zeros_has_no_relative_error():
    zero = {"a": Update({"q": LowRank(torch.ones(1, 2), torch.zeros(3, 1), 1.0)}, 1)}
    assert relative_error(zero, aggregate(zero)) == 0.0

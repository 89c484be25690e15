"""Spectra against NumPy, and against matrices whose spectrum is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.analysis.spectra import (
    cosine,
    cut,
    effective_rank,
    energy,
    intruders,
    random_update,
    singular_values,
    without_top,
)

from ..strategies import seeds


def matrix(seed, rows, columns):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)))


sides = st.integers(1, 9)


@given(seeds, sides, sides)
def test_values_energy_and_entropy_are_numpys(seed, rows, columns):
    delta = matrix(seed, rows, columns)
    sigma = np.linalg.svd(delta.numpy(), compute_uv=False)
    ours = singular_values(delta.float())
    np.testing.assert_allclose(ours, sigma, rtol=1e-5, atol=1e-6)
    assert energy(ours, 2) == pytest.approx((sigma[:2] ** 2).sum() / (sigma**2).sum(), rel=1e-5)
    shares = sigma / sigma.sum()
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum()
    assert effective_rank(ours) == pytest.approx(np.exp(entropy), rel=1e-4)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_n_equal_values_have_the_effective_rank_n(n):
    assert effective_rank(torch.cat([torch.full((n,), 0.7), torch.zeros(2)])) == pytest.approx(n)


@given(seeds, sides, sides, st.integers(0, 9))
def test_a_cut_and_its_rest_add_up_and_have_the_parts_of_the_spectrum(seed, rows, columns, k):
    delta = matrix(seed, rows, columns)
    kept, rest = cut(delta, k), without_top(delta, k)
    torch.testing.assert_close((kept + rest).double(), delta, rtol=1e-5, atol=1e-5)
    sigma = singular_values(delta)
    expected = torch.cat([sigma[:k], torch.zeros(max(0, len(sigma) - k))])
    torch.testing.assert_close(singular_values(kept), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        singular_values(rest)[: len(sigma[k:])], sigma[k:], rtol=1e-4, atol=1e-4
    )


def test_a_planted_direction_intrudes_and_a_stretched_one_does_not():
    base = torch.diag(torch.arange(20.0, 0, -1))
    planted = torch.zeros(20, 20)
    planted[10:] = 3.0  # a new left vector: ten equal entries, |cos| 1/√10 to each old one
    assert intruders(base, planted, top=1) == 1
    assert intruders(base, 0.2 * base) == 0
    assert intruders(base, torch.zeros(20, 20)) == 0


def test_noise_has_the_norm_and_nothing_else():
    delta = matrix(0, 60, 60).float()
    noise = random_update(delta, seed=1)
    assert noise.norm().item() == pytest.approx(delta.norm().item(), rel=1e-5)
    assert abs(cosine(noise, delta)) < 5 / 60  # five standard deviations of 1/√3600
    assert torch.equal(noise, random_update(delta, seed=1))


@given(seeds)
def test_a_cosine_is_numpys(seed):
    a, b = matrix(seed, 4, 5), matrix(seed + 1, 4, 5)
    flat = (a.numpy().ravel(), b.numpy().ravel())
    expected = flat[0] @ flat[1] / (np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))
    assert cosine(a, b) == pytest.approx(expected)
    assert cosine(a, -2 * a) == pytest.approx(-1)

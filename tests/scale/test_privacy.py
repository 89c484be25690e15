"""The accountant against dp-accounting 0.6.0's numbers, and against closed forms by integration."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.scale.privacy import (
    ORDERS,
    add_noise,
    clip,
    epsilon,
    flower_epsilon,
    flower_sigma,
    gaussian_delta,
    gaussian_epsilon,
    log_cdf,
    sampled_rdp,
)

# (noise multiplier, rounds, share sampled, delta): ε of dp-accounting 0.6.0, made by ``peer``: its
# PLDAccountant (numerical) without sampling, its RdpAccountant of our orders with it
PEER = {
    (1.0, 1, 1.0, 1e-5): 4.37717810002493,
    (1.0, 100, 1.0, 1e-5): 91.81728962407377,
    (4.8, 30, 1.0, 1e-6): 5.682444702295127,
    (0.5, 3, 1.0, 1e-3): 15.99459162689237,
    (1.0, 100, 0.1, 1e-5): 7.972921510380539,
    (2.0, 1000, 0.01, 1e-6): 0.7827964235976046,
    (0.7, 10, 0.5, 1e-5): 19.96321776551762,
}


def peer(accounting, z, rounds, sampled, delta):
    """The same by dp-accounting."""
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    event = accounting.GaussianDpEvent(z)
    accountant = PLDAccountant()
    if sampled < 1:
        event = accounting.PoissonSampledDpEvent(sampled, event)
        accountant = RdpAccountant(orders=list(ORDERS))
    accountant.compose(accounting.SelfComposedDpEvent(event, rounds))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("case", PEER, ids=str)
def test_epsilon_is_that_of_an_independent_library(case):
    z, rounds, sampled, delta = case
    assert epsilon(z, rounds, delta, sampled) == pytest.approx(PEER[case], rel=1e-8)


def test_the_kept_numbers_are_the_librarys():
    accounting = pytest.importorskip("dp_accounting", reason="pip install dp-accounting==0.6.0")
    for case, number in PEER.items():
        assert peer(accounting, *case) == pytest.approx(number, rel=1e-9)


@given(st.floats(0.05, 8), st.floats(0, 20))
def test_the_curve_of_a_gaussian_is_the_integral(mu, eps):
    """δ(ε) = ∫ max(0, p(x) - e^ε q(x)) dx of N(μ, 1) and N(0, 1), summed in small steps."""
    x = torch.linspace(-12, 12 + mu, 200_001, dtype=torch.float64)
    p = torch.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi)
    q = torch.exp(eps - x**2 / 2) / math.sqrt(2 * math.pi)
    integral = torch.trapezoid((p - q).clamp(min=0), x).item()
    assert gaussian_delta(mu, eps) == pytest.approx(integral, abs=1e-7)


def test_renyi_of_a_sample_is_the_integral():
    """E_q[(p/q)^α] of p = (1-q) N(0, z²) + q N(1, z²) against N(0, z²)."""
    for z, q, alpha in [(1.0, 0.3, 2), (2.0, 0.1, 5), (0.8, 0.7, 3)]:
        x = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
        below = torch.exp(-(x**2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))
        ratio = (1 - q) + q * torch.exp((2 * x - 1) / (2 * z * z))
        moment = torch.trapezoid(below * ratio**alpha, x).item()
        assert sampled_rdp(alpha, z, q) == pytest.approx(math.log(moment) / (alpha - 1), rel=1e-6)


# (μ, δ): ε of the curve's equation by mpmath 1.3, 60 digits, bisected as in ``by_mpmath``
FAR = {
    (1.0, 1e-15): 8.1655796955042536,
    (1.0, 1e-20): 9.5109362405743805,
    (1.0, 1e-100): 21.627508093648382,
    (5.0, 1e-20): 58.246539992096068,
    (0.2, 1e-20): 1.7887409283759029,
    (0.2, 1e-100): 4.2306523373357111,
}


def by_mpmath(mp, mu, delta):
    """The ε at which Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) is δ."""
    low, high = mp.mpf(0), mp.mpf(400)
    for _ in range(160):
        eps = (low + high) / 2
        curve = mp.ncdf(mu / 2 - eps / mu) - mp.exp(eps) * mp.ncdf(-mu / 2 - eps / mu)
        low, high = (low, eps) if curve <= delta else (eps, high)
    return high


@pytest.mark.parametrize("case", FAR, ids=str)
def test_a_delta_below_floats_own_grain_does_not_make_epsilon_small(case):
    """Φ as 1 + erf is zero there: 8.68 came out for every δ from 1e-17 down."""
    mu, delta = case
    assert gaussian_epsilon(mu, delta) == pytest.approx(FAR[case], rel=1e-6)
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        right = by_mpmath(mpmath, mpmath.mpf(str(mu)), mpmath.mpf(str(delta)))
    assert float(right) == pytest.approx(FAR[case], rel=1e-12)


@given(st.floats(0.3, 5), st.integers(1, 200), st.floats(1e-8, 1e-2), st.floats(0.01, 0.99))
def test_more_rounds_cost_and_more_noise_and_fewer_clients_save(z, rounds, delta, sampled):
    own = epsilon(z, rounds, delta)
    assert own <= epsilon(z, rounds + 1, delta)
    assert own >= epsilon(1.1 * z, rounds, delta)
    assert gaussian_delta(math.sqrt(rounds) / z, own) <= delta * (1 + 1e-6)
    part = epsilon(z, rounds, delta, sampled)
    assert part <= epsilon(z, rounds + 1, delta, sampled)


def test_the_ends():
    assert epsilon(1.0, 0, 1e-5) == 0
    assert epsilon(0.0, 1, 1e-5) == math.inf
    assert epsilon(5.0, 1, 1e-2, 0.001) == 0.0  # the bound of the best order is -0.01
    assert gaussian_epsilon(1e-6, 1e-5) == 0.0
    assert log_cdf(-20.1) == pytest.approx(log_cdf(-19.9), rel=0.03)
    assert log_cdf(-20.0000001) == pytest.approx(log_cdf(-19.9999999), rel=1e-7)


@given(st.floats(1e-3, 100), st.integers(0, 999))
def test_clipping_keeps_the_direction_and_bounds_the_length(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    update = {name: torch.randn(3, 4, generator=generator) for name in ("A", "B")}
    before = {name: tensor.clone() for name, tensor in update.items()}
    clipped, length = clip(update, norm)
    flat, own = (torch.cat([t.flatten() for t in u.values()]) for u in (clipped, update))
    assert length == pytest.approx(own.norm().item(), rel=1e-5)
    assert flat.norm().item() <= norm * (1 + 1e-5)
    assert torch.nn.functional.cosine_similarity(flat, own, dim=0).item() == pytest.approx(1)
    assert all(torch.equal(update[name], before[name]) for name in update)
    if length <= norm:
        assert torch.equal(flat, own)


def test_clipping_each_tensor_alone_is_not_the_same():
    """Two tensors of length 1 are √2 long together: a bound for each is no bound for both."""
    update = {"A": torch.tensor([1.0, 0.0]), "B": torch.tensor([1.0, 0.0])}
    clipped, length = clip(update, 1.0)
    assert length == pytest.approx(math.sqrt(2))
    assert clipped["A"][0].item() == pytest.approx(1 / math.sqrt(2))


def test_noise_is_that_of_the_seed_and_has_its_size():
    update = {"A": torch.zeros(50_000), "B": torch.ones(50_000)}
    noisy = [add_noise(update, 0.3, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(noisy[0]["B"], noisy[1]["B"])
    assert noisy[0]["A"].std().item() == pytest.approx(0.3, rel=0.02)
    assert noisy[0]["B"].mean().item() == pytest.approx(1, abs=0.01)
    # independent: the two tensors' noises do not go together
    pair = torch.stack([noisy[0]["A"], noisy[0]["B"]])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.02


def test_flowers_rule_holds_for_one_message_and_a_small_epsilon():
    """σ = S √(2 ln(1.25/δ))/ε, and its ε is an upper bound of the exact one below 1."""
    assert flower_sigma(2.0, 0.5, 1e-5) == pytest.approx(2 * 4.8448 / 0.5, rel=1e-4)
    for eps in (0.1, 0.5, 0.99):
        assert flower_epsilon(1.0, 2.0, eps, 1e-5, rounds=1) <= eps
    # the classical rule was proved for ε < 1: far above it breaks its own promise
    assert flower_epsilon(1.0, 2.0, 20.0, 1e-5, rounds=1) > 20
    assert flower_epsilon(1.0, 1.0, 1.0, 1e-5, rounds=1) > 1  # C is not the sensitivity, 2 C is
    assert flower_epsilon(1.0, 2.0, 1.0, 1e-5, rounds=10) > 2.5


def test_bad_settings_are_refused():
    update = {"A": torch.ones(2)}
    with pytest.raises(ValueError, match=r"norm must be a finite positive number, got 0"):
        clip(update, 0)
    with pytest.raises(ValueError, match=r"not finite: its training diverged"):
        clip({"A": torch.tensor([math.inf])}, 1.0)
    with pytest.raises(ValueError, match=r"sigma must be a finite number, zero or more, got -1"):
        add_noise(update, -1, torch.Generator())
    for bad, words in [
        ((-1.0, 1, 1e-5), "noise_multiplier must be finite, not negative, got -1"),
        ((1.0, -1, 1e-5), "rounds must be a whole number, zero or more, got -1"),
        ((1.0, 1, 0.0), "delta must be between 0 and 1"),
        ((1.0, 1, 1e-310), "at least 1e-300"),
        ((1.0, 1, 1e-5, 0.0), "sampled must be a share"),
    ]:
        with pytest.raises(ValueError, match=words):
            epsilon(*bad)
    with pytest.raises(ValueError, match="clipping_norm must be a finite positive number"):
        flower_epsilon(0.0, 1.0, 1.0, 1e-5, 1)

"""Evidence: exact against integrals in fractions, and honest under looks after each outcome."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.serving.evidence import confidence_sequence, e_value, msprt, sample_ratio_e_value

RUNS, PAIRS, ALPHA = 2000, 2000, 0.05


def integral(wins, losses, low):
    """∫ pʷ(1−p)ˡ dp from ``low`` to 1, exactly: (1−p)ˡ by the binomial theorem."""
    total = Fraction(0)
    for j in range(losses + 1):
        power = wins + j + 1
        total += (-1) ** j * math.comb(losses, j) * (1 - Fraction(low) ** power) / power
    return total


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_e_value_is_the_integral(wins, losses):
    n = wins + losses
    both = 2**n * integral(wins, losses, 0)
    assert e_value(wins, losses) == pytest.approx(float(both), rel=1e-12)
    one = 2 ** (n + 1) * integral(wins, losses, Fraction(1, 2))
    assert e_value(wins, losses, one_sided=True) == pytest.approx(float(one), rel=1e-12)
    assert both == Fraction(2**n, (n + 1) * math.comb(n, wins))


@given(st.integers(0, 40))
def test_its_mean_is_1_before_each_n(n):
    """A fair game: the mean over all outcomes of n fair coins is 1, whatever n."""
    for one_sided in (False, True):
        chances = ((w, math.comb(n, w) / 2**n) for w in range(n + 1))
        mean = sum(chance * e_value(w, n - w, one_sided) for w, chance in chances)
        assert mean == pytest.approx(1.0, rel=1e-12)


@given(st.integers(0, 50), st.integers(0, 50))
def test_two_equal_shares_are_the_two_sided_test(wins, losses):
    ours = sample_ratio_e_value([wins, losses], [0.5, 0.5])
    assert ours == pytest.approx(e_value(wins, losses), rel=1e-10)


def test_three_arms_are_a_fair_game_too():
    shares, n = [0.5, 0.3, 0.2], 9
    mean = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            counts = [a, b, n - a - b]
            chance = math.factorial(n) * math.prod(
                p**c / math.factorial(c) for p, c in zip(shares, counts, strict=True)
            )
            mean += chance * sample_ratio_e_value(counts, shares)
    assert mean == pytest.approx(1.0, rel=1e-10)


def test_msprt_is_the_mixture_by_a_sum():
    """∫ N(θ̂; θ, V) N(θ; 0, τ²) dθ / N(θ̂; 0, V), as a sum of many thin slices."""
    estimate, variance, tau = 0.13, 0.004, 0.1
    theta, width = np.linspace(-2, 2, 200_001, retstep=True)
    prior = np.exp(-((theta / tau) ** 2) / 2) / (tau * math.sqrt(2 * math.pi))
    ratio = np.exp(theta * (estimate - theta / 2) / variance)  # N(θ̂; θ, V) / N(θ̂; 0, V)
    total = float((prior * ratio).sum() * width)
    assert msprt(estimate, variance, tau) == pytest.approx(total, rel=1e-6)


def test_huge_evidence_is_infinite_and_no_error():
    assert e_value(3000, 0) == math.inf
    assert msprt(1e3, 1e-3, 1.0) == math.inf
    assert sample_ratio_e_value([5000, 0], [0.5, 0.5]) == math.inf


def test_outcomes_that_are_all_alike_have_a_mean_without_doubt():
    assert confidence_sequence(0.5, 0.0, 1) == (0.5, 0.5)


WRONG = [
    (lambda: e_value(-1, 2), "counts from 0 on, got wins=-1"),
    (lambda: msprt(0.1, 0.0, 1.0), "variance and tau above 0"),
    (lambda: msprt(0.1, float("nan"), 1.0), "variance and tau above 0"),
    (lambda: confidence_sequence(0.0, 1.0, 0), "n from 1 on"),
    (lambda: sample_ratio_e_value([1], [0.5, 0.5]), "share above 0 an arm"),
    (lambda: sample_ratio_e_value([1, 2], [0.5, 0.6]), "sum to 1"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_what_makes_no_sense_is_refused(case):
    call, reason = WRONG[case]
    with pytest.raises(ValueError, match=reason):
        call()


@pytest.fixture(scope="module")
def paired():
    """Outcomes of two equal arms, right in 70% of the cases: ``(arm, run, pair)``."""
    return np.random.default_rng(0).random((2, RUNS, PAIRS)) < 0.7


@pytest.fixture(scope="module")
def most_wins():
    """For each n the fewest wins at which E ≥ 1/α: they never shrink with n."""
    wins, fewest = [1], 0  # without an outcome there is no evidence
    for n in range(1, PAIRS + 1):
        fewest = max(fewest, (n + 1) // 2)
        while fewest <= n and e_value(fewest, n - fewest) < 1 / ALPHA:
            fewest += 1
        wins.append(fewest)
    return np.array(wins)


def test_looks_after_each_pair_keep_the_error_and_the_z_test_does_not(paired, most_wins):
    """PLATFORM's figures: the z-test that peeks 43%, exact 3.4%, mSPRT 1.8%, the interval 2.6%."""
    a, b = (arm.astype(float) for arm in paired)
    k = np.arange(1, PAIRS + 1)
    wins, losses = (np.cumsum(first > second, axis=1) for first, second in ((b, a), (a, b)))
    limit = most_wins[wins + losses]
    exact = (np.maximum(wins, losses) >= limit).any(axis=1).mean()

    difference = (np.cumsum(b - a, axis=1)) / k
    variance = np.cumsum((b - a) ** 2, axis=1) / k - difference**2  # of one pair's difference
    start = 30  # the normal limit
    theta, v = difference[:, start:], np.maximum(variance[:, start:] / k[start:], 1e-9)
    z_test = (np.abs(theta) > 1.96 * np.sqrt(v)).any(axis=1).mean()
    tau = 0.05
    log_ratio = np.log(v / (v + tau**2)) / 2 + theta**2 * tau**2 / (2 * v * (v + tau**2))
    mixture = (log_ratio >= math.log(1 / ALPHA)).any(axis=1).mean()
    spot = msprt(theta[3, 500], v[3, 500], tau)
    assert spot == pytest.approx(math.exp(log_ratio[3, 500]))  # the array form is the function
    half = confidence_sequence(0.0, 1.0, 800)[1]
    n = k[start:]
    halves = np.sqrt(2 * (n * 0.01 + 1) / (n**2 * 0.01) * np.log(np.sqrt(n * 0.01 + 1) / ALPHA))
    assert halves[800 - 1 - start] == pytest.approx(half)
    missed = (np.abs(theta) > np.sqrt(np.maximum(variance[:, start:], 1e-9)) * halves).any(axis=1)

    print(f"false alarms: z {z_test:.1%}, exact {exact:.1%}, mSPRT {mixture:.1%}, "
          f"interval {missed.mean():.1%}")  # fmt: skip
    allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)  # three deviations of the count
    assert exact <= allowed
    assert mixture <= allowed
    assert missed.mean() <= allowed
    assert z_test > 0.3


def test_a_planned_split_raises_no_alarm_and_a_broken_one_does(most_wins):
    """A look after each of 2,000 users, planned 50 : 50; broken, every tenth of B is lost."""
    users = np.random.default_rng(1).random((RUNS, PAIRS))
    n = np.arange(1, PAIRS + 1)

    def alarms(share):
        in_a = np.cumsum(users < share, axis=1)
        return (np.maximum(in_a, n - in_a) >= most_wins[n]).any(axis=1).mean()

    assert alarms(0.5) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    assert alarms(0.5 / 0.95) < 0.7 < alarms(0.55)


def test_power_on_a_real_difference(most_wins):
    """Right in 70% and 76% of the cases: PLATFORM has 88% within 2,000 pairs."""
    rng = np.random.default_rng(2)
    a, b = (rng.random((400, PAIRS)) < share for share in (0.70, 0.76))
    wins, losses = np.cumsum(b & ~a, axis=1), np.cumsum(a & ~b, axis=1)
    decided = wins >= most_wins[wins + losses]
    assert decided.any(axis=1).mean() > 0.8

"""Evidence that stays valid however often it is looked at: E-values, and an interval for all times.

A test that is planned for n outcomes and looked at after each of them is another test: the more
looks, the more likely that one of them is beyond the limit by luck. An *E-value* is made for looks.
It is the wealth of a gambler who bets against the null hypothesis at fair odds. While the null
hypothesis holds, nobody grows rich at fair odds, however long the game and whenever it is stopped
(Ville 1939, *Étude critique de la notion de collectif*):

    P(E_n ≥ 1/α for some n) ≤ α

so "stop at E ≥ 20" errs in 5% of the cases at most, looked at after each outcome. Bets spread over
all values of the unknown parameter, by an integral, need no guess of the effect (Robbins 1970,
*Statistical methods related to the law of the iterated logarithm*: the method of mixtures).

    e_value                wins and losses of two arms in pairs: exact for each n
    msprt                  a mean difference: the mixture against N(0, τ²), for large n
    confidence_sequence    an interval for a mean that holds at all n at once, for large n
    sample_ratio_e_value   whether the arms get the shares that were planned: exact for each n

The unit is a user, and a pair is the k-th outcome of each arm: outcomes of one user depend on each
other, and evidence that counts them one by one is too strong.

Left out: covariates (CUPED), and the control of many experiments' errors together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def e_value(wins: int, losses: int, one_sided: bool = False) -> float:
    """Evidence against "both arms are equally good" from the pairs in which just one did well.

    With w wins among n = w + l such pairs, and p the probability that a pair is a win, the bets are
    spread evenly over p, from 0 to 1 (two-sided) or from ½ to 1 (one-sided: only wins count)::

        E = 2ⁿ ∫₀¹ pʷ(1−p)ˡ dp = 2ⁿ / ((n+1)·C(n,w))
        E = 2ⁿ⁺¹ ∫½¹ pʷ(1−p)ˡ dp = Σ_{k≤w} C(n+1,k) / ((n+1)·C(n,w))

    (Ville's inequality with Laplace's uniform weight; the sum is the identity between the
    incomplete beta integral and a binomial's tail.) Two-sided is the mean of both one-sided bets.
    The one-sided value holds against every p ≤ ½ too. Exact, to rounding; infinite above 1e308.
    Raises ``ValueError`` for a count below zero.

    >>> round(e_value(9, 1), 3), round(e_value(9, 1, one_sided=True), 3)  # 1024/110, 2036/110
    (9.309, 18.509)
    >>> e_value(0, 0)
    1.0
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"expected counts from 0 on, got wins={wins}, losses={losses}")
    if not one_sided:
        return (e_value(wins, losses, True) + e_value(losses, wins, True)) / 2
    n = wins + losses
    term = (n + 1) / (losses + 1)  # C(n+1, k) / C(n, w) at k = w
    total = term
    for k in range(wins, 0, -1):
        term *= k / (n + 2 - k)
        total += term
    return total / (n + 1)


def msprt(estimate: float, variance: float, tau: float) -> float:
    """Evidence against "the difference is 0" from its estimate θ̂ and the variance V of that.

    The likelihood ratio of θ̂, the alternative spread as N(0, τ²)::

        Λ = √(V / (V + τ²)) · exp(θ̂² τ² / (2 V (V + τ²)))

    (Johari, Koomen, Pekelis and Walsh, *Peeking at A/B tests*, KDD 2017: the mixture sequential
    probability ratio test of Robbins.) ``tau`` is the size of difference that one looks for; a bad
    choice costs time, not truth. min(1, 1/Λ), the least so far, is a p-value that may be looked at.
    It rests on the normal limit: below some tens of outcomes it errs. Raises ``ValueError`` for a
    variance or tau that is not above zero.

    >>> round(msprt(0.1, variance=0.001, tau=0.05), 3)
    19.012
    """
    if not (variance > 0 and tau > 0):
        raise ValueError(f"expected variance and tau above 0, got {variance}, {tau}")
    both = variance + tau**2
    power = estimate**2 * tau**2 / (2 * variance * both) + math.log(variance / both) / 2
    return math.exp(power) if power < 709 else math.inf


def confidence_sequence(
    mean: float, deviation: float, n: int, alpha: float = 0.05, rho: float = 0.1
) -> tuple[float, float]:
    """An interval that holds the true mean at all n at once with probability 1 − α, for large n.

    With μ̂ and σ̂ the mean and the standard deviation of n outcomes::

        μ̂ ± σ̂ √( 2(nρ² + 1) / (n²ρ²) · ln( √(nρ² + 1) / α ) )

    (Waudby-Smith and others, *Time-uniform central limit theory*, arXiv 2103.06476, Theorem 2.2.)
    ``rho`` chooses the n at which it costs least beside an ordinary interval: 8/ρ² for α = 5%.
    Raises ``ValueError`` for n below 1, a negative deviation, alpha outside (0, 1) or
    rho not above 0.

    >>> low, high = confidence_sequence(0.1, 1.0, n=1000)
    >>> round(low, 3), round(high, 3)
    (0.004, 0.196)
    """
    if n < 1 or deviation < 0 or not 0 < alpha < 1 or not rho > 0:
        raise ValueError(
            "expected n from 1 on, deviation from 0 on, 0 < alpha < 1 and rho above 0, got "
            f"n={n}, deviation={deviation}, alpha={alpha}, rho={rho}"
        )
    scale = n * rho**2 + 1
    half = deviation * math.sqrt(2 * scale / (n * rho) ** 2 * math.log(math.sqrt(scale) / alpha))
    return mean - half, mean + half


def sample_ratio_e_value(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Evidence against "each new user falls into arm i with its planned share pᵢ".

    The bets are spread evenly over all shares that sum to 1 (a Dirichlet(1, …, 1) mixture)::

        E = (k−1)! · Π nᵢ! / (n + k − 1)! · Π pᵢ^(−nᵢ)        k arms, n = Σ nᵢ

    (Lindon and Malek, *Anytime-valid inference for multinomial count data*, NeurIPS 2022,
    arXiv 2011.03567.) A split that is off is a defect of the experiment, and its outcomes are then
    no evidence of anything. For two arms with halves it is ``e_value``. Raises ``ValueError`` for a
    count below 0, a share not above 0, shares that do not sum to 1, or other lengths.

    >>> round(sample_ratio_e_value([520, 480], [0.5, 0.5]), 3)  # nothing unusual
    0.088
    >>> sample_ratio_e_value([600, 400], [0.5, 0.5]) > 1e6
    True
    """
    if len(counts) != len(shares) or not counts or min(counts) < 0 or not min(shares) > 0:
        raise ValueError(
            f"expected a count from 0 on and a share above 0 an arm: {counts}, {shares}"
        )
    if not math.isclose(sum(shares), 1.0, rel_tol=1e-9):
        raise ValueError(f"expected shares that sum to 1, got {list(shares)}: {sum(shares)}")
    log_e = math.lgamma(len(counts)) - math.lgamma(sum(counts) + len(counts))
    log_e += sum(math.lgamma(n + 1) - n * math.log(p) for n, p in zip(counts, shares, strict=True))
    return math.exp(log_e) if log_e < 709 else math.inf

"""What an aggregator may learn of a client, bounded: clip, add noise, count.

    clip      Δ ← Δ · min(1, C / ‖Δ‖)               over all factors together (arXiv 1710.06963)
    noise     Δ ← Δ + N(0, σ²), σ = z · S           S: how far one client can move what is seen
    account   ε after T rounds, for a δ             below

S is C where the neighbour of a data set is one without this client (the server sees a sum, central
privacy), and 2 C where the neighbour is one with *other* data (the server sees this client's own
message, local privacy): two vectors of length C are up to 2 C apart.

The accountant. T rounds of a Gaussian with noise multiplier z are one Gaussian with μ = √T / z
(Gaussian differential privacy composes so, arXiv 1905.02383, corollary 3.3), whose curve is known:

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)         (arXiv 1805.06530, theorem 8)

so without sampling ``epsilon`` is exact. Where only a share q of the clients is drawn in a round,
by a coin each, it goes by Rényi differential privacy of integer orders α ≥ 2:

    RDP(α) = T/(α−1) · log Σₖ C(α,k) (1−q)^(α−k) q^k e^{k(k−1)/(2z²)}
    ε      = min over α of RDP(α) + log((α−1)/α) − (log δ + log α)/(α−1)

(arXiv 1908.10530, section 3.3; arXiv 2004.00010, proposition 12); a neighbour there is one client
more or less. dp-accounting 0.6.0 gives the same numbers: tests/scale/test_privacy.py.

Flower's ``LocalDpMod`` takes an ε and sets σ = S √(2 ln(1.25/δ)) / ε. That is the classical rule:
proved for ε < 1 and for *one* message. ``flower_epsilon`` says what it comes to after T rounds.

Left out: adaptive clipping, amplification by shuffling, discrete noise (floating-point samples leak
in their last bits, Mironov 2012). The noise here is torch's own: for real secrets take a library
that draws it safely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..checks import check_positive, is_number

ORDERS = (*range(2, 65), 80, 96, 128, 256, 512)


def clip(update: Mapping[str, Tensor], norm: float) -> tuple[dict[str, Tensor], float]:
    """An update of length at most ``norm``, all tensors as one vector; and the length that it had.

    Raises ``ValueError`` for a norm that is not positive, or values that are not finite (they would
    come through any clipping).

    >>> clipped, length = clip({"A": torch.tensor([3.0]), "B": torch.tensor([4.0])}, norm=1.0)
    >>> length, [round(tensor.item(), 2) for tensor in clipped.values()]
    (5.0, [0.6, 0.8])
    """
    check_positive("norm", norm)
    length = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))
    if not math.isfinite(length):
        raise ValueError("the update holds values that are not finite: its training diverged")
    factor = min(1.0, norm / length) if length else 1.0
    return {name: tensor * factor for name, tensor in update.items()}, length


def add_noise(
    update: Mapping[str, Tensor], sigma: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """The update with independent N(0, σ²) on every entry.

    >>> noisy = add_noise({"B": torch.zeros(10_000)}, 0.5, torch.Generator().manual_seed(0))
    >>> round(noisy["B"].std().item(), 2)
    0.5
    """
    if not (isinstance(sigma, int | float) and 0 <= sigma < math.inf):
        raise ValueError(f"sigma must be a finite number, zero or more, got {sigma!r}")
    return {
        name: tensor + sigma * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in update.items()
    }


def epsilon(noise_multiplier: float, rounds: int, delta: float, sampled: float = 1.0) -> float:
    """ε of ``rounds`` of the Gaussian mechanism: exact if all take part, else a bound by RDP.

    - ``noise_multiplier``: z = σ / S; 0 is no privacy, ε = ∞.
    - ``delta``: the chance that the promise does not hold; well below 1 / clients.
    - ``sampled``: the share of clients in a round, each drawn by a coin of its own.

    >>> round(epsilon(1.0, rounds=1, delta=1e-5), 2), round(epsilon(1.0, rounds=100, delta=1e-5), 1)
    (4.38, 91.8)
    """
    check_account(noise_multiplier, rounds, delta, sampled)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if sampled == 1:
        return gaussian_epsilon(math.sqrt(rounds) / noise_multiplier, delta)
    bound = min(
        rounds * sampled_rdp(alpha, noise_multiplier, sampled)
        + math.log((alpha - 1) / alpha)
        - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        for alpha in ORDERS
    )
    return max(0.0, bound)  # much noise, few rounds and a large δ: the bound is below zero


def gaussian_delta(mu: float, eps: float) -> float:
    """δ(ε) of one Gaussian with μ = S / σ.

    >>> round(gaussian_delta(1.0, 0.0), 4)  # twice Φ(1/2) less 1
    0.3829
    """
    # in logarithms: e^ε overflows, and 1 + erf(x) forgets a tail below 1e-16, so ε came too small
    near, far = mu / 2 - eps / mu, -mu / 2 - eps / mu
    return math.exp(log_cdf(near)) - math.exp(eps + log_cdf(far))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest ε ≥ 0 with δ(ε) at most δ, by bisection."""
    low, high = 0.0, 1.0
    if gaussian_delta(mu, low) <= delta:
        return 0.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return high


def log_cdf(x: float) -> float:
    """log Φ(x), by its asymptotic series where Φ itself would vanish.

    >>> round(log_cdf(-40.0), 3)
    -804.608
    """
    if x > -20:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    series = 1 - 1 / x**2 + 3 / x**4 - 15 / x**6
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)


def sampled_rdp(alpha: int, noise_multiplier: float, sampled: float) -> float:
    """RDP of order α of one round in which each client takes part with probability ``sampled``.

    >>> sampled_rdp(8, 2.0, 1.0)  # α / (2 z²) when all take part
    1.0
    """
    q, z = sampled, noise_multiplier
    if q == 1:
        return alpha / (2 * z * z)
    logs = [
        math.lgamma(alpha + 1) - math.lgamma(k + 1) - math.lgamma(alpha - k + 1)
        + (alpha - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * z * z)
        for k in range(alpha + 1)
    ]  # fmt: skip
    top = max(logs)
    return (top + math.log(sum(math.exp(each - top) for each in logs))) / (alpha - 1)


def flower_sigma(sensitivity: float, eps: float, delta: float) -> float:
    """σ that Flower 1.42's ``LocalDpMod`` adds for its ``epsilon`` and ``delta``.

    >>> round(flower_sigma(1.0, 1.0, 1e-5), 2)
    4.84
    """
    check_positive("sensitivity", sensitivity)
    check_positive("eps", eps)
    check_delta(delta)
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / eps


def flower_epsilon(
    clipping_norm: float, sensitivity: float, eps: float, delta: float, rounds: int
) -> float:
    """What ``LocalDpMod``'s settings promise after so many rounds, of a client's own messages.

    Two messages of a client are up to 2 · ``clipping_norm`` apart, whatever ``sensitivity`` says.

    >>> round(flower_epsilon(1.0, 2.0, 1.0, 1e-5, rounds=1), 2)  # within its promise
    0.75
    >>> round(flower_epsilon(1.0, 1.0, 1.0, 1e-5, rounds=10), 1)  # C for S, and ten rounds
    6.0
    """
    check_positive("clipping_norm", clipping_norm)
    sigma = flower_sigma(sensitivity, eps, delta)
    return epsilon(sigma / (2 * clipping_norm), rounds, delta)


def check_account(noise_multiplier: float, rounds: int, delta: float, sampled: float) -> None:
    """Raise ``ValueError`` for numbers that mean nothing."""
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier must be finite, not negative, got {noise_multiplier}")
    if not is_number(rounds, int) or rounds < 0:
        raise ValueError(f"rounds must be a whole number, zero or more, got {rounds!r}")
    check_delta(delta)
    if not 0 < sampled <= 1:
        raise ValueError(f"sampled must be a share of the clients in (0, 1], got {sampled}")


def check_delta(delta: float) -> None:
    """Raise ``ValueError`` unless δ is in (0, 1), and no smaller than a float can tell apart."""
    if not 1e-300 <= delta < 1:
        raise ValueError(
            f"delta must be between 0 and 1 (at least 1e-300), well below 1 / clients, got {delta}"
        )

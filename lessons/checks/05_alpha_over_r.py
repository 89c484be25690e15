"""Checkers of lesson 05. Both oracles take the step with autograd and torch's SGD; neither knows the formula."""

import math

import torch
from hypothesis.strategies import booleans, floats, integers, sampled_from

from minilora.learn import Wrong, cases, close


@cases(
    tokens=integers(1, 9),
    size_in=integers(1, 8),
    size_out=integers(1, 8),
    r=integers(1, 5),
    s=floats(0.25, 8),
    rate=floats(0.01, 2),
    seed=integers(0, 999),
)
def check_first_update(answer, tokens, size_in, size_out, r, s, rate, seed):
    """One real step of SGD on a random layer, then s · B A."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, g, A = random(tokens, size_in), random(tokens, size_out), random(r, size_in)
    B = torch.zeros(size_out, r, dtype=torch.float64, requires_grad=True)
    moved_A = A.clone().requires_grad_()
    optimizer = torch.optim.SGD([moved_A, B], lr=rate)
    (s * (x @ moved_A.T) @ B.T * g).sum().backward()  # ∂L/∂y is g
    optimizer.step()
    case = f"g {tuple(g.shape)}, x {tuple(x.shape)}, A {tuple(A.shape)}, s = {s:.3g}, rate = {rate:.3g}"
    close(answer(g, x, A.clone(), s, rate), (s * B @ moved_A).detach(), what="ΔW", case=case)


def mean_step(r, s, draws=3000, size_in=6, size_out=3):
    """How far the first ΔW goes along the full gradient G, on average over many A (draws, r, in)."""
    generator = torch.Generator().manual_seed(r)
    x, g = (
        torch.randn(4, size_in, generator=generator),
        torch.randn(4, size_out, generator=generator),
    )
    A = (2 * torch.rand(draws, r, size_in, generator=generator) - 1) / math.sqrt(size_in)
    B = torch.zeros(draws, size_out, r, requires_grad=True)
    y = s * torch.einsum("ti,nri,nor->nto", x, A, B)
    (y * g).sum().backward()
    delta = (s * -B.grad @ A).mean(0)  # (out, in), rate 1
    full = -g.T @ x
    return float((delta * full).sum() / full.square().sum())


@cases(
    15,
    r=sampled_from([2, 4, 8, 16]),
    factor=sampled_from([0.5, 2, 4]),
    alpha=floats(0.5, 64),
    use_rslora=booleans(),
)
def check_matching_alpha(answer, r, factor, alpha, use_rslora):
    """Take the steps at both ranks, averaged over 3,000 starts, and compare their lengths."""
    new_r = int(r * factor)

    def length(rank, a):
        return mean_step(rank, a / (math.sqrt(rank) if use_rslora else rank))

    case = (
        f"r = {r}, alpha = {alpha:.3g}, new_r = {new_r}, {'alpha/√r' if use_rslora else 'alpha/r'}"
    )
    found = answer(r, alpha, new_r, use_rslora)
    if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
        raise Wrong(f"{case}: needed a positive number, got {found!r}")
    ratio = length(new_r, found) / length(r, alpha)
    if not 0.85 < ratio < 1.18:
        raise Wrong(
            f"{case}: with your alpha {found:.4g} the new first ΔW is {ratio:.2f} times the old one, needed 1.00"
        )


def unsquared(g, x, A, s, rate):
    """One s is missing."""
    return -rate * s * g.T @ x @ A.T @ A


def uphill(g, x, A, s, rate):
    """The wrong sign."""
    return rate * s**2 * g.T @ x @ A.T @ A


def full_gradient(g, x, A, s, rate):
    """The step of full fine-tuning."""
    return -rate * g.T @ x


def only_B(g, x, A, s, rate):
    """Stops at B."""
    return -rate * s * g.T @ (x @ A.T)


def transposed(g, x, A, s, rate):
    """(in, out)."""
    return (-rate * s**2 * g.T @ x @ A.T @ A).T


def averaged(g, x, A, s, rate):
    """Divides by the tokens."""
    return -rate * s**2 * g.T @ x @ A.T @ A / len(x)


def same_scale(r, alpha, new_r, use_rslora):
    """Keeps s: the usual advice."""
    return alpha * (math.sqrt(new_r / r) if use_rslora else new_r / r)


def same_alpha(r, alpha, new_r, use_rslora):
    """Never changes alpha."""
    return alpha


def rules_swapped(r, alpha, new_r, use_rslora):
    """Right, for the other rule."""
    return alpha * math.sqrt(new_r / r) if use_rslora else alpha


def upside_down(r, alpha, new_r, use_rslora):
    """Smaller where it must be larger."""
    return alpha if use_rslora else alpha * math.sqrt(r / new_r)


WRONG = {
    "first_update": {
        "one s": unsquared,
        "uphill": uphill,
        "full gradient": full_gradient,
        "only B": only_B,
        "transposed": transposed,
        "averaged": averaged,
    },
    "matching_alpha": {
        "same scale": same_scale,
        "same alpha": same_alpha,
        "rules swapped": rules_swapped,
        "upside down": upside_down,
    },
}

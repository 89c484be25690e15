"""Checkers of lesson 05. Both oracles take real steps of torch's optimizers and know no formula."""

import math

import torch
from hypothesis.strategies import booleans, floats, integers, sampled_from

from minilora.learn import Wrong, cases, close, forbid


@cases(
    first={"tokens": 9, "size_in": 5, "size_out": 7, "r": 3, "s": 0.7, "rate": 0.3, "seed": 0},
    tokens=integers(1, 9),
    size_in=integers(1, 8),
    size_out=integers(1, 8),
    r=integers(1, 5),
    s=floats(0.25, 8),
    rate=floats(0.01, 2),
    seed=integers(0, 999),
)
def check_update(answer, tokens, size_in, size_out, r, s, rate, seed):
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
    shapes = f"g {tuple(g.shape)}, x {tuple(x.shape)}, A {tuple(A.shape)}"
    case = f"{shapes}, s = {s:.3g}, rate = {rate:.3g}"
    close(answer(g, x, A.clone(), s, rate), (s * B @ moved_A).detach(), what="ΔW", case=case)


def check_first_update(answer):
    """The rule, then the numbers."""
    names = ("backward", "autograd", "requires_grad_", "requires_grad", "func", "vjp")
    forbid(answer, *names, loops=True)
    check_update(answer)


OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def first_length(r, s, optimizer, pieces=3000, size_in=6, size_out=3):
    """‖ΔW‖ after one real step of both factors from B = 0, where ΔW is the mean over many A.

    A of rank r is a sum of r pieces, so a high rank needs fewer draws.
    """
    draws = pieces // r
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, size_in, generator=generator)
    g = torch.randn(4, size_out, generator=generator)  # the same x and g at every rank
    uniform = 2 * torch.rand(draws, r, size_in, generator=generator) - 1
    A = (uniform / math.sqrt(size_in)).requires_grad_()
    B = torch.zeros(draws, size_out, r, requires_grad=True)
    step = OPTIMIZERS[optimizer]([A, B], lr=0.01)
    y = s * torch.einsum("ti,nri,nor->nto", x, A, B)
    (y * g).sum().backward()
    step.step()
    return float((s * B @ A).detach().mean(0).norm())


@cases(
    24,
    r=sampled_from([2, 4, 8, 16]),
    factor=sampled_from([0.5, 2, 4]),
    alpha=floats(0.5, 64),
    use_rslora=booleans(),
    optimizer=sampled_from([*OPTIMIZERS]),
)
def check_matching_alpha(answer, r, factor, alpha, use_rslora, optimizer):
    """Take the steps at both ranks, averaged over many starts, and compare their lengths."""
    new_r = int(r * factor)

    def length(rank, its_alpha):
        scale = its_alpha / (math.sqrt(rank) if use_rslora else rank)
        return first_length(rank, scale, optimizer)

    rule = "alpha/√r" if use_rslora else "alpha/r"
    case = f"{optimizer}, {rule}, r = {r}, alpha = {alpha:.3g}, new_r = {new_r}"
    new_alpha = answer(r, alpha, new_r, use_rslora, optimizer)
    if not isinstance(new_alpha, int | float) or not math.isfinite(new_alpha) or new_alpha <= 0:
        raise Wrong(f"{case}: expected a positive number, got {new_alpha!r}")
    ratio = length(new_r, new_alpha) / length(r, alpha)
    if not 0.85 < ratio < 1.18:
        raise Wrong(
            f"{case}: with your alpha {new_alpha:.4g} the first ΔW at new_r is {ratio:.2f} times "
            "the one at r, expected 1.00"
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


def same_scale(r, alpha, new_r, use_rslora, optimizer):
    """Keeps s: the usual advice."""
    return alpha * (math.sqrt(new_r / r) if use_rslora else new_r / r)


def same_alpha(r, alpha, new_r, use_rslora, optimizer):
    """Never changes alpha."""
    return alpha


def always_sgd(r, alpha, new_r, use_rslora, optimizer):
    """Gradient descent's law for both."""
    return alpha if use_rslora else alpha * math.sqrt(new_r / r)


def always_adam(r, alpha, new_r, use_rslora, optimizer):
    """Adam's law for both."""
    return alpha * math.sqrt(r / new_r) if use_rslora else alpha


def optimizers_swapped(r, alpha, new_r, use_rslora, optimizer):
    """Right, for the other optimizer."""
    law = always_adam if optimizer == "sgd" else always_sgd
    return law(r, alpha, new_r, use_rslora, optimizer)


def rules_swapped(r, alpha, new_r, use_rslora, optimizer):
    """Right, for the other rule."""
    law = always_sgd if optimizer == "sgd" else always_adam
    return law(r, alpha, new_r, not use_rslora, optimizer)


def upside_down(r, alpha, new_r, use_rslora, optimizer):
    """Smaller where it must be larger."""
    law = always_sgd if optimizer == "sgd" else always_adam
    return law(new_r, alpha, r, use_rslora, optimizer)


def slow_loop(g, x, A, s, rate):
    """The specification itself."""
    change = torch.zeros(g.shape[1], x.shape[1], dtype=g.dtype)
    for o in range(g.shape[1]):
        change[o] = -rate * s**2 * g[:, o] @ x @ A.T @ A
    return change


def by_autograd(g, x, A, s, rate):
    """Lets torch find ∂B."""
    B = torch.zeros(g.shape[1], len(A), dtype=g.dtype, requires_grad=True)
    (s * x @ A.T @ B.T * g).sum().backward()
    return -s * rate * B.grad @ A


def by_vjp(g, x, A, s, rate):
    """Lets torch.func find ∂B."""
    B = torch.zeros(g.shape[1], len(A), dtype=g.dtype)
    _, pull = torch.func.vjp(lambda B: s * x @ A.T @ B.T, B)
    return -s * rate * pull(g)[0] @ A


WRONG = {
    "first_update": {
        "one s": unsquared,
        "uphill": uphill,
        "full gradient": full_gradient,
        "only B": only_B,
        "transposed": transposed,
        "averaged": averaged,
        "the slow loop": slow_loop,
        "by autograd": by_autograd,
        "by torch.func": by_vjp,
    },
    "matching_alpha": {
        "same scale": same_scale,
        "same alpha": same_alpha,
        "gradient descent's law for Adam": always_sgd,
        "Adam's law for gradient descent": always_adam,
        "optimizers swapped": optimizers_swapped,
        "rules swapped": rules_swapped,
        "upside down": upside_down,
    },
}

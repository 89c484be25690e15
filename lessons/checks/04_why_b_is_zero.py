"""Checkers of lesson 04: a start by its moments and bounds; who moves by autograd on a layer."""

import torch
from hypothesis.strategies import booleans, integers

from minilora.learn import Wrong, cases


@cases(size_in=integers(2, 300), size_out=integers(1, 40), r=integers(1, 24), seed=integers(0, 999))
def check_init_factors(answer, size_in, size_out, r, seed):
    """Shapes, B zero, A within its bound, and over 4,000 draws a uniform's mean and spread."""
    torch.manual_seed(seed)
    case = f"in {size_in}, out {size_out}, r {r}"
    pair = answer(size_in, size_out, r)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise Wrong(f"{case}: expected the pair (A, B), got {type(pair).__name__}")
    for name, factor, shape in (("A", pair[0], (r, size_in)), ("B", pair[1], (size_out, r))):
        if not isinstance(factor, torch.Tensor) or tuple(factor.shape) != shape:
            got = tuple(getattr(factor, "shape", ()))
            raise Wrong(f"{case}: {name} has shape {got}, a right answer has {shape}")
    if pair[1].any():
        raise Wrong(f"{case}: B must be all zero, its largest entry is {pair[1].abs().max():.3g}")
    bound = 1 / size_in**0.5
    starts = [answer(size_in, size_out, r)[0] for _ in range(1 + 4000 // (r * size_in))]
    draws = torch.cat([A.detach().flatten() for A in starts]) / bound
    if draws.abs().max() > 1 + 1e-5:
        reach = draws.abs().max() * bound
        raise Wrong(f"{case}: |A| reaches {reach:.4f}, the bound is 1/√in = {bound:.4f}")
    spread, mean = draws.square().mean().sqrt(), draws.mean()  # of U(-1, 1): 0.577 and 0
    if abs(mean) > 0.06 or abs(spread - 3**-0.5) > 0.04:
        raise Wrong(
            f"{case}: A has mean {mean * bound:.4f} and root mean square {spread * bound:.4f}; "
            f"uniform within ±{bound:.4f} has 0 and {bound * 3**-0.5:.4f}"
        )


@cases(a_is_zero=booleans(), b_is_zero=booleans(), sizes=integers(2, 6), seed=integers(0, 99))
def check_first_two_steps(answer, a_is_zero, b_is_zero, sizes, seed):
    """Two steps of gradient descent on a random layer with a random target; who moved?"""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, target = random(12, sizes + 1), random(12, sizes)
    factors = [random(2, sizes + 1) * (not a_is_zero), random(sizes, 2) * (not b_is_zero)]
    right = []
    for _ in range(2):
        A, B = (factor.clone().requires_grad_() for factor in factors)
        ((x @ A.T) @ B.T - target).square().mean().backward()
        right.append("A" * bool(A.grad.any()) + "B" * bool(B.grad.any()))
        factors = [A.detach() - 0.01 * A.grad, B.detach() - 0.01 * B.grad]
    steps = answer(a_is_zero, b_is_zero)
    if not isinstance(steps, tuple | list) or list(steps) != right:
        start = f"A {'zero' if a_is_zero else 'random'}, B {'zero' if b_is_zero else 'random'}"
        raise Wrong(
            f"{start}: got {steps!r}; autograd moves {right[0]!r} in step 1 and {right[1]!r} in "
            "step 2"
        )


def bound_of_r(size_in, size_out, r):
    """The fan-in of an A stored as (in, r)."""
    return torch.empty(r, size_in).uniform_(-(r**-0.5), r**-0.5), torch.zeros(size_out, r)


def both_zero(size_in, size_out, r):
    """The saddle."""
    return torch.zeros(r, size_in), torch.zeros(size_out, r)


def both_random(size_in, size_out, r):
    """Noise from the start."""
    bound = size_in**-0.5
    A, B = torch.empty(r, size_in), torch.empty(size_out, r)
    return A.uniform_(-bound, bound), B.uniform_(-bound, bound)


def transposed(size_in, size_out, r):
    """A as (in, r)."""
    bound = size_in**-0.5
    return torch.empty(size_in, r).uniform_(-bound, bound), torch.zeros(r, size_out)


def positive_only(size_in, size_out, r):
    """Forgets the negative half."""
    return torch.rand(r, size_in) * size_in**-0.5, torch.zeros(size_out, r)


def no_root(size_in, size_out, r):
    """1/in for the bound."""
    return torch.empty(r, size_in).uniform_(-1 / size_in, 1 / size_in), torch.zeros(size_out, r)


def own_factor(a_is_zero, b_is_zero):
    """Takes each gradient for a multiple of its own matrix."""
    first = "A" * (not a_is_zero) + "B" * (not b_is_zero)
    return first, first


def always_both(a_is_zero, b_is_zero):
    """Everything always moves."""
    return "AB", "AB"


def never_wakes(a_is_zero, b_is_zero):
    """The second step as the first."""
    first = "A" * (not b_is_zero) + "B" * (not a_is_zero)
    return first, first


def zeros_wake(a_is_zero, b_is_zero):
    """Two zeros get out by the second step."""
    return "A" * (not b_is_zero) + "B" * (not a_is_zero), "AB"


WRONG = {
    "init_factors": {
        "bound of r": bound_of_r,
        "both zero": both_zero,
        "both random": both_random,
        "transposed": transposed,
        "positive only": positive_only,
        "no root": no_root,
    },
    "first_two_steps": {
        "own factor": own_factor,
        "always both": always_both,
        "never wakes": never_wakes,
        "zeros wake": zeros_wake,
    },
}

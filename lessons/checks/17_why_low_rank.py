"""Checkers of lesson 17: the same descent with a dense projection, a matrix of D × d."""

import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


@cases(
    first={"size": 7, "d": 3, "steps": 3, "seed": 0},
    size=st.integers(1, 8),
    d=st.integers(1, 5),
    steps=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def check_train_through_knobs(answer, size, d, steps, seed):
    """θ = θ₀ + P z with P dense, on a quartic loss, whose gradient differs at every point."""
    random = torch.Generator().manual_seed(seed)
    theta0, target = torch.randn(2, size, generator=random, dtype=torch.float64)
    which = torch.randint(d, (size,), generator=random)
    signs = torch.randint(2, (size,), generator=random).double() * 2 - 1
    P = torch.zeros(size, d, dtype=torch.float64)
    P[torch.arange(size), which] = signs

    def gradient(theta):
        return (theta - target) + 0.1 * (theta - target) ** 3

    z, rate = torch.zeros(d, dtype=torch.float64), 0.05
    for _ in range(steps):
        z = z - rate * P.T @ gradient(theta0 + P @ z)
    right, before = theta0 + P @ z, theta0.clone()
    case = f"{size} weights, {d} knobs, {steps} steps, which = {which.tolist()}"
    result = answer(gradient, theta0, which, signs, d, steps, rate)
    if not torch.equal(theta0, before):
        change = (theta0 - before).abs().max()
        raise Wrong(f"theta0 was changed by up to {change:.3g} for {case}; return new weights")
    close(result, right, what="θ", case=case)


def descend(theta0, which, signs, d, steps, back, weights=None, at=None):
    """The descent, with parts of it to get wrong."""
    z = torch.zeros(d, dtype=theta0.dtype)
    weights = weights or (lambda z: theta0 + signs * z[which])
    for _ in range(steps):
        z = z - back(at if at is not None else weights(z))
    return weights(z)


def added(values, which, d):
    """Values added up by knob."""
    return torch.zeros(d, dtype=values.dtype).index_add(0, which, values)


def without_signs_back(gradient, theta0, which, signs, d, steps, rate):
    """The signs are forgotten in the gradient."""
    return descend(theta0, which, signs, d, steps, lambda at: rate * added(gradient(at), which, d))


def overwritten(gradient, theta0, which, signs, d, steps, rate):
    """Only the last weight of a knob counts."""

    def back(at):
        total = torch.zeros(d, dtype=theta0.dtype)
        for index, value in zip(which.tolist(), (signs * gradient(at)).tolist(), strict=True):
            total[index] = rate * value
        return total

    return descend(theta0, which, signs, d, steps, back)


def averaged(gradient, theta0, which, signs, d, steps, rate):
    """The mean over a knob's weights, not their sum."""

    def back(at):
        count = added(torch.ones_like(theta0), which, d).clamp(min=1)
        return rate * added(signs * gradient(at), which, d) / count

    return descend(theta0, which, signs, d, steps, back)


def always_at_the_start(gradient, theta0, which, signs, d, steps, rate):
    """The gradient is taken at θ₀ in every step."""
    back = lambda at: rate * added(signs * gradient(at), which, d)  # noqa: E731
    return descend(theta0, which, signs, d, steps, back, at=theta0)


def uphill(gradient, theta0, which, signs, d, steps, rate):
    """Adds the gradient."""
    back = lambda at: -rate * added(signs * gradient(at), which, d)  # noqa: E731
    return descend(theta0, which, signs, d, steps, back)


def all_weights(gradient, theta0, which, signs, d, steps, rate):
    """Plain gradient descent, without knobs."""
    theta = theta0.clone()
    for _ in range(steps):
        theta = theta - rate * gradient(theta)
    return theta


def in_place(gradient, theta0, which, signs, d, steps, rate):
    """The step is written into θ₀ itself."""
    P = torch.nn.functional.one_hot(which, d) * signs[:, None]  # (D, d)
    for _ in range(steps):
        theta0 -= rate * P @ (P.T @ gradient(theta0))
    return theta0


def from_zero(gradient, theta0, which, signs, d, steps, rate):
    """Forgets θ₀ in the weights that it returns."""
    theta = descend(
        theta0, which, signs, d, steps, lambda at: rate * added(signs * gradient(at), which, d)
    )
    return theta - theta0


WRONG = {
    "train_through_knobs": {
        "without the signs": without_signs_back,
        "overwritten": overwritten,
        "averaged": averaged,
        "always at the start": always_at_the_start,
        "uphill": uphill,
        "all weights": all_weights,
        "from zero": from_zero,
        "in place": in_place,
    }
}

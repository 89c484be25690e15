"""Checkers of lesson 14. The oracles: the definitions in NumPy, row by row, in float64."""

import numpy as np
import torch
from hypothesis.strategies import floats, integers, sets

from minilora.learn import Wrong, cases, close


@cases(
    first={"rows": 5, "width": 3, "empty": set(), "seed": 0},
    rows=integers(1, 6),
    width=integers(1, 6),
    empty=sets(integers(0, 5)),
    seed=integers(0, 999),
)
def check_row_factor(answer, rows, width, empty, seed):
    """Random rows, some of them zero in the weight, in the sum, or in neither."""
    draw = np.random.default_rng(seed)
    W, delta = draw.normal(size=(rows, width)), draw.normal(size=(rows, width))
    m = np.abs(draw.normal(size=rows)) + 0.5
    for row in (row for row in empty if row < rows):
        # an unused row, or one whose update takes it to zero
        W[row], delta[row] = (0, 0) if row % 2 == 0 else (W[row], -W[row])
        m[row] = 0 if row % 2 == 0 else m[row]
    if rows > 1:
        delta[-1], W[-1] = 1e-4 * delta[-1], 1e-4 * W[-1]  # small, and not zero
    norms = [np.sqrt(sum(value**2 for value in row)) for row in W + delta]
    right = np.array([1.0 if norm == 0 else m[i] / norm for i, norm in enumerate(norms)])
    zero = [i for i, norm in enumerate(norms) if norm == 0]
    case = f"{rows} rows of {width}, rows {zero} of the sum are zero"
    magnitude = torch.tensor(m, requires_grad=True)
    result = answer(torch.tensor(W), torch.tensor(delta), magnitude)
    if not isinstance(result, torch.Tensor) or result.shape != (rows,):
        got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise Wrong(f"{case}: expected one factor a row, a tensor of shape {(rows,)}, got {got}")
    close(result.detach(), right, what="g", case=case)
    if result.requires_grad:
        result.sum().backward()
        if not magnitude.grad.isfinite().all():
            raise Wrong(
                f"{case}: g is right, but its gradient to m is {magnitude.grad.tolist()}; make the "
                "divisor safe before dividing"
            )


@cases(
    first={"r": 3, "width": 5, "out": 4, "beta1": 0.7, "beta2": 0.8, "seed": 0},
    r=integers(1, 4),
    width=integers(2, 5),
    out=integers(2, 5),
    beta1=floats(0.1, 0.9),
    beta2=floats(0.1, 0.9),
    seed=integers(0, 999),
)
def check_importance(answer, r, width, out, beta1, beta2, seed):
    """One step on random parts, with averages of earlier steps."""
    draw = np.random.default_rng(seed)
    shapes = {"A": (r, width), "B": (out, r), "E": (r, 1)}

    def drawn():
        return {name: draw.normal(size=shape) for name, shape in shapes.items()}

    parts, grads = drawn(), drawn()
    means, spreads = ({n: np.abs(v) for n, v in drawn().items()} for _ in range(2))
    scores = {}
    for name in shapes:
        now = np.abs(parts[name] * grads[name])
        mean = beta1 * means[name] + (1 - beta1) * now
        scores[name] = mean * (beta2 * spreads[name] + (1 - beta2) * np.abs(now - mean))
    right = np.array(
        [
            scores["E"][k, 0]
            + sum(scores["A"][k]) / width
            + sum(scores["B"][j, k] for j in range(out)) / out
            for k in range(r)
        ]
    )
    given = [{n: torch.tensor(v) for n, v in d.items()} for d in (parts, grads, means, spreads)]
    kept = [{n: t.clone() for n, t in d.items()} for d in given]
    case = f"r={r}, A {shapes['A']}, B {shapes['B']}, betas {beta1:.2f} and {beta2:.2f}"
    result = answer(*given, beta1, beta2)
    if not isinstance(result, torch.Tensor) or result.shape != (r,):
        got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise Wrong(f"{case}: expected one score a direction, shape {(r,)}, got {got}")
    close(result, right, what="the scores", case=case)
    for before, after in zip(kept, given, strict=True):
        if any(not torch.equal(before[n], after[n]) for n in before):
            raise Wrong(f"{case}: the scores are right, but a dict that came in was changed")


def norm_of(weight, update):
    """One norm a row of the sum."""
    return torch.linalg.norm(weight + update, dim=1)


def divided(weight, update, magnitude):
    """0/0."""
    return magnitude / norm_of(weight, update)


def repaired_afterwards(weight, update, magnitude):
    """The value is right, the gradient is NaN."""
    norm = norm_of(weight, update)
    return torch.where(norm == 0, 1.0, magnitude / norm)


def clamped(weight, update, magnitude):
    """Zero, or a huge number, where it should be one."""
    return magnitude / norm_of(weight, update).clamp(min=1e-6)


def a_little_added(weight, update, magnitude):
    """Small rows are scaled down."""
    norm = norm_of(weight, update)
    return torch.where(norm == 0, 1.0, magnitude / (norm + 1e-3))


def by_columns(weight, update, magnitude):
    """The norm of the columns, as the paper's W is transposed."""
    norm = torch.linalg.norm(weight + update, dim=0)
    safe = norm.masked_fill(norm == 0, 1.0)
    return magnitude / (safe if len(safe) == len(magnitude) else safe[:1])


def of_the_weight_alone(weight, update, magnitude):
    """Forgets the update."""
    norm = torch.linalg.norm(weight, dim=1)
    zero = norm == 0
    return torch.where(zero, 1.0, magnitude / norm.masked_fill(zero, 1.0))


def zero_for_zero(weight, update, magnitude):
    """Switches the row off."""
    norm = norm_of(weight, update)
    zero = norm == 0
    return torch.where(zero, 0.0, magnitude / norm.masked_fill(zero, 1.0))


def scores_of(parts, grads, means, spreads, beta1, beta2):
    """s of every number, as it should be."""
    scores = {}
    for name, part in parts.items():
        now = (part * grads[name]).abs()
        mean = beta1 * means[name] + (1 - beta1) * now
        scores[name] = mean * (beta2 * spreads[name] + (1 - beta2) * (now - mean).abs())
    return scores


def summed(*arguments):
    """Sums instead of means: wide matrices win."""
    s = scores_of(*arguments)
    return s["E"].flatten() + s["A"].sum(dim=1) + s["B"].sum(dim=0)


def without_e(*arguments):
    """Forgets the singular value."""
    s = scores_of(*arguments)
    return s["A"].mean(dim=1) + s["B"].mean(dim=0)


def old_mean(parts, grads, means, spreads, beta1, beta2):
    """The spread around the average of the step before."""
    s = {}
    for name, part in parts.items():
        now = (part * grads[name]).abs()
        spread = beta2 * spreads[name] + (1 - beta2) * (now - means[name]).abs()
        s[name] = (beta1 * means[name] + (1 - beta1) * now) * spread
    return s["E"].flatten() + s["A"].mean(dim=1) + s["B"].mean(dim=0)


def signed(parts, grads, means, spreads, beta1, beta2):
    """w · ∂L/∂w with its sign."""
    s = {}
    for name, part in parts.items():
        now = part * grads[name]
        mean = beta1 * means[name] + (1 - beta1) * now
        s[name] = mean * (beta2 * spreads[name] + (1 - beta2) * (now - mean).abs())
    return s["E"].flatten() + s["A"].mean(dim=1) + s["B"].mean(dim=0)


def no_spread(parts, grads, means, spreads, beta1, beta2):
    """Sensitivity alone."""
    s = {n: beta1 * means[n] + (1 - beta1) * (p * grads[n]).abs() for n, p in parts.items()}
    return s["E"].flatten() + s["A"].mean(dim=1) + s["B"].mean(dim=0)


def betas_swapped(parts, grads, means, spreads, beta1, beta2):
    """β₁ where β₂ belongs."""
    s = scores_of(parts, grads, means, spreads, beta2, beta1)
    return s["E"].flatten() + s["A"].mean(dim=1) + s["B"].mean(dim=0)


def in_place(parts, grads, means, spreads, beta1, beta2):
    """Right, and changes what it was given."""
    for name, part in parts.items():
        now = (part * grads[name]).abs()
        means[name] = means[name].mul_(beta1).add_(now, alpha=1 - beta1)
        spreads[name].mul_(beta2).add_((now - means[name]).abs(), alpha=1 - beta2)
    s = {name: means[name] * spreads[name] for name in parts}
    return s["E"].flatten() + s["A"].mean(dim=1) + s["B"].mean(dim=0)


WRONG = {
    "row_factor": {
        "divided": divided,
        "repaired afterwards": repaired_afterwards,
        "clamped": clamped,
        "a little added": a_little_added,
        "by columns": by_columns,
        "of the weight alone": of_the_weight_alone,
        "zero for zero": zero_for_zero,
    },
    "importance": {
        "summed": summed,
        "without E": without_e,
        "old mean": old_mean,
        "signed": signed,
        "no spread": no_spread,
        "betas swapped": betas_swapped,
        "in place": in_place,
    },
}

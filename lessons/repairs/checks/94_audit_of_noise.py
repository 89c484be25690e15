"""Checker of repair 94. The oracle: paired differences in NumPy, kept away from the threshold."""

import copy

import numpy as np
import torch
from hypothesis import assume
from hypothesis.strategies import integers, sampled_from
from torch import nn

from minilora.learn import Wrong, cases

KINDS = ("untouched", "trained", "noise", "worse", "a little better", "another task")


def examples(kind, n, size_in, size_out):
    """A base, what was made of it, and examples that neither has seen, in float64."""
    base = nn.Linear(size_in, size_out).double()
    task, tuned = nn.Linear(size_in, size_out).double(), copy.deepcopy(base)
    x = torch.randn(n, size_in, dtype=torch.float64)
    # an example that is hard is hard in all its outputs
    y = task(x) + torch.randn(n, 1, dtype=torch.float64)
    share = {"trained": 0.9, "worse": -0.5, "a little better": 0.05}.get(kind, 0.0)
    with torch.no_grad():
        for mine, wanted in zip(tuned.parameters(), task.parameters(), strict=True):
            mine += share * (wanted - mine)
            if kind == "noise":
                mine.copy_(torch.randn_like(mine))
            if kind == "another task":
                mine += 0.5 * torch.randn_like(mine)
    return base, tuned, x, y.detach()


@cases(
    60,
    kind=sampled_from(KINDS),
    n=integers(3, 60),
    size_in=integers(1, 6),
    size_out=integers(1, 4),
    seed=integers(0, 999),
)
def check_fine_tuning_worked(answer, kind, n, size_in, size_out, seed):
    """Layers that were trained, touched at random, made worse, or left alone."""
    torch.manual_seed(seed)
    base, tuned, x, y = examples(kind, n, size_in, size_out)
    errors = [
        np.square(layer(x).detach().numpy() - y.numpy()).mean(axis=1) for layer in (base, tuned)
    ]
    d = errors[0] - errors[1]
    mean, bound = d.mean(), 2 * d.std(ddof=1) / np.sqrt(n)
    assume(abs(mean - bound) > 1e-6 or kind == "untouched")  # not where rounding decides
    got = answer(base, tuned, x, y)
    if not isinstance(got, bool | np.bool_):
        raise Wrong(f"for {n} examples: expected True or False, got {type(got).__name__}")
    if got != (mean > bound):
        raise Wrong(
            f"{kind}, {n} examples, {size_in} to {size_out}: got {got}. The mean difference of the "
            f"errors is {mean:.3g}, twice its standard error {bound:.3g}"
        )


def differences(base, tuned, x, y):
    """base's error minus tuned's, by example."""
    errors = [(layer(x) - y).square().mean(dim=1) for layer in (base, tuned)]
    return errors[0] - errors[1]


def by_the_norm(base, tuned, x, y):
    """The script as it circulates."""
    return bool((tuned.weight - base.weight).norm() / base.weight.norm() > 1e-5)


def by_the_mean(base, tuned, x, y):
    """Luck counts as well."""
    return bool(differences(base, tuned, x, y).mean() > 0)


def unpaired(base, tuned, x, y):
    """Two means with a standard error each, as if the examples were others."""
    errors = [(layer(x) - y).square().mean(dim=1) for layer in (base, tuned)]
    bound = 2 * (sum(e.var() for e in errors) / len(x)).sqrt()
    return bool(errors[0].mean() - errors[1].mean() > bound)


def two_deviations(base, tuned, x, y):
    """Forgets that a mean is surer than one example."""
    d = differences(base, tuned, x, y)
    return bool(d.mean() > 2 * d.std())


def any_change(base, tuned, x, y):
    """Worse counts too."""
    d = differences(base, tuned, x, y)
    return bool(d.mean().abs() > 2 * d.std() / len(d) ** 0.5)


WRONG = {
    "fine_tuning_worked": {
        "by the norm": by_the_norm,
        "by the mean": by_the_mean,
        "unpaired": unpaired,
        "two deviations": two_deviations,
        "any change": any_change,
    }
}

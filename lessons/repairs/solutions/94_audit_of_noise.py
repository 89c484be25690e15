"""Solution of repair 94."""

import torch


@torch.no_grad()
def fine_tuning_worked(base, tuned, x, y):
    """Errors example by example, their differences, and how sure the mean of these is."""
    errors = [(layer(x) - y).square().mean(dim=1) for layer in (base, tuned)]  # (n,) each
    d = errors[0] - errors[1]
    return bool(d.mean() > 2 * d.std() / len(d) ** 0.5)

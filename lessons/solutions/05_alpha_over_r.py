"""Solutions of lesson 05."""

import math


def first_update(g, x, A, s, rate):
    """B moves against its gradient, then acts through s once more."""
    B = -rate * s * g.T @ (x @ A.T)  # (out, r)
    return s * B @ A


def matching_alpha(r, alpha, new_r, use_rslora, optimizer):
    """s² r must stay for gradient descent, s r for Adam; s is alpha / r or alpha / √r."""
    more = math.sqrt(new_r / r)
    if optimizer == "sgd":
        return float(alpha) if use_rslora else alpha * more
    return alpha / more if use_rslora else float(alpha)

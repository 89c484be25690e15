"""Solutions of lesson 05."""

import math


def first_update(g, x, A, s, rate):
    """B moves against its gradient, then acts through s once more."""
    B = -rate * s * g.T @ (x @ A.T)  # (out, r)
    return s * B @ A


def matching_alpha(r, alpha, new_r, use_rslora):
    """s² r must stay: alpha² / r for alpha / r, alpha² for alpha / √r."""
    return float(alpha) if use_rslora else alpha * math.sqrt(new_r / r)

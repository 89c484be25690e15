"""Solutions of lesson 04."""

import torch


def init_factors(size_in, size_out, r):
    """The bound is about the inputs: A is (r, in), so its rows are what multiplies x."""
    bound = size_in**-0.5
    return torch.empty(r, size_in).uniform_(-bound, bound), torch.zeros(size_out, r)


def first_two_steps(a_is_zero, b_is_zero):
    """Each gradient has the other factor in it."""
    steps = []
    for _ in range(2):
        a_moves, b_moves = not b_is_zero, not a_is_zero
        steps.append("A" * a_moves + "B" * b_moves)
        a_is_zero, b_is_zero = a_is_zero and not a_moves, b_is_zero and not b_moves
    return tuple(steps)

"""Solutions of lesson 15."""

import torch


def with_prompt(P, x, mask):
    """k rows and k ones before each row; a position is the number of ones before it."""
    inputs = torch.cat([P.expand(len(x), -1, -1), x], dim=1)  # (batch, k + time, d)
    longer = torch.cat([mask.new_ones(len(x), len(P)), mask], dim=1)
    return inputs, longer, longer.cumsum(1) - 1


def bottleneck(h, down, b, up, c):
    """Down, relu, up, and the stream itself."""
    return h + torch.relu(h @ down.T + b) @ up.T + c

"""Solution of repair 91."""

import torch
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update beside it."""

    def __init__(self, linear, r, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r))
        self.scale = alpha / r

    def forward(self, x):
        """The layer's output and the update's."""
        return self.linear(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


def adapted_linear(linear, r, alpha):
    """The whole layer is frozen: weight, bias, and whatever else it may have."""
    return LoRALinear(linear, r, alpha)

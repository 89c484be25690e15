# %% [markdown]
# # 91 · Repair: a LoRA layer whose bias trains
#
# Know first: lesson 06 · Difficulty ●○○ · 3 minutes to read · 5 seconds to run
#
# A layer in twenty lines, as many posts have one. Its outputs are right, its loss falls, and its
# adapter file is small. But what is sent to a friend is not the model that was trained.


# %% [exercise] adapted_linear
import torch
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update beside it."""

    def __init__(self, linear, r, alpha):
        super().__init__()
        self.linear = linear
        self.linear.weight.requires_grad = False
        self.lora_A = nn.Parameter(torch.randn(r, linear.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r))
        self.scale = alpha / r

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


def adapted_linear(linear, r, alpha):
    """A module that computes what nn.Linear does, and of which only lora_A and lora_B learn.

    Its output is linear(x) + (alpha / r) · x Aᵀ Bᵀ, with lora_A (r, in) random and lora_B (out, r)
    zero at first. After any training, without the update it is still the layer that was given.
    linear may have no bias.
    """
    return LoRALinear(linear, r, alpha)


# %% [markdown]
# One step of training, then the adapter is taken away:

# %%
from minilora.learn import check

torch.manual_seed(0)
given = nn.Linear(6, 4)
x = torch.randn(5, 6)
layer = adapted_linear(given, r=2, alpha=4)
before = layer(x).detach()
optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.5)
(layer(x) - 1).square().mean().backward()
optimizer.step()
left = float((given(x) - before).detach().abs().max())
print(f"without its update the layer differs from what it was by {left:.2f}")
assert left > 0.1

# %% [hints] adapted_linear
# 1. List `name, p.requires_grad` of `layer.named_parameters()`. Which name should not be there?
# 2. A Linear has a weight, and it may have a bias. Freeze the whole of it.
# 3. `linear.requires_grad_(False)` freezes all parameters of a module, whatever they are called.

# %%
check(adapted_linear)

# %% [markdown]
# PEFT has a setting for it, `bias="none"`. Whoever sets `bias="all"` is warned there that with the
# adapter switched off the model is not its base: `minilora zoo "biases learn silently"` names the
# thread.

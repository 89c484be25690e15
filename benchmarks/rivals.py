"""Rivals of replay: a penalty on what the old text needs, and a start that the old text cannot see.

    EWC           L + λ/2 Σᵢ Fᵢ ΔWᵢ²          F: the diagonal of the Fisher information at W0
    null space    A ← A (I - U Uᵀ)            U: the directions in which a layer's old inputs lie

Elastic weight consolidation (arXiv 1612.00796; the loss as others quote it). ½ Σ F Δ² is the
second-order approximation of KL(old ‖ new) with all terms between two weights left out. Both take
the model's own samples for old text, as self-replay does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minilora
from minilora.lora.layer import lora_layers
from minilora.training.teacher import sample_windows

WINDOWS, TOKENS = 64, 80


def own_text(seed: int) -> Tensor:
    """Windows that the base writes, (WINDOWS, TOKENS)."""
    rows = sample_windows(minilora.load_base(), WINDOWS, TOKENS, seed)
    return torch.tensor([row.ids for row in rows])


def diagonal_fisher(names: Sequence[str], seed: int) -> dict[str, Tensor]:
    """E[(∂ log p(window) / ∂W)²] a token, for these Linears of the base, on its own samples."""
    base, text = minilora.load_base(), own_text(seed)
    weights = {name: base.get_submodule(name).weight for name in names}
    for weight in weights.values():
        weight.requires_grad_(True)
    fisher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for window in text:
        logits = base(window[None, :-1])[0]
        loss = F.cross_entropy(logits, window[1:], reduction="sum")
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(names, gradients, strict=True):
            fisher[name] += gradient.square() / (len(text) * (TOKENS - 1))
    return fisher


def ewc(objective: Callable[..., float], model: Any, strength: float, seed: int) -> Any:
    """The objective with λ/2 Σ F ΔW² added; leaves the gradient of both."""
    layers = dict(lora_layers(model))
    fisher = diagonal_fisher(list(layers), seed)

    def with_penalty(model: nn.Module, parts: Any) -> float:
        loss = objective(model, parts)
        penalty = torch.zeros(())
        for name, layer in layers.items():
            update = layer.scaling * (layer.lora_B @ layer.lora_A)  # (out, in)
            penalty = penalty + (fisher[name] * update.square()).sum()
        penalty = 0.5 * strength * penalty
        penalty.backward()
        return loss + penalty.item()

    return with_penalty


@torch.no_grad()
def null_space_start(model: Any, seed: int, share: float = 0.5) -> None:
    """Take the ``share`` of directions with most of the old inputs out of every A, at its norm."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, layer in lora_layers(model):

        def note(module: nn.Module, arguments: Any, name: str = name) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1])  # (tokens, in)
            inputs[name] = inputs.get(name, torch.zeros(())) + x.T @ x

        hooks.append(layer.register_forward_pre_hook(note))
    model(own_text(seed))
    for hook in hooks:
        hook.remove()
    for name, layer in lora_layers(model):
        directions = torch.linalg.eigh(inputs[name]).eigenvectors  # by growing eigenvalue
        U = directions[:, -math.ceil(share * len(directions)) :]
        norms = layer.lora_A.norm(dim=1, keepdim=True)
        layer.lora_A -= layer.lora_A @ U @ U.T
        layer.lora_A *= norms / layer.lora_A.norm(dim=1, keepdim=True)

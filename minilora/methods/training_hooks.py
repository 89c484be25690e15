"""What the training loop asks of an injected model, whatever its method.

    param_groups          who learns how fast (LoRA+), and where weight decay pulls
    training_state        what a checkpoint must hold besides parameters
    check_run             a run that this method cannot follow
    extra_loss            what is added to the loss of a step
    best_from             the first step whose state may be kept as the best
    update_and_allocate   after the optimizer's step, before its gradients are gone

Each asks the layers of one class together, since a method may compare them (AdaLoRA does). LoRA
answers every one of these with nothing, at no cost.

**LoRA+** (arXiv 2402.12354): B learns ``loraplus_ratio`` times as fast as A. B starts at zero and A
at 1/√in, so one rate for both moves A too little as models grow wide; the paper takes 16. No file
and no forward knows of it.

**Decay.** AdamW pulls a matrix towards 0. Where that is not the method's neutral value, as for
(IA)³'s factors, it is pulled towards that one (``AdapterLayer.neutral``). Vectors are not pulled,
nor the rows of tokens, soft prompts and prefixes: for them 0 means nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import AdapterLayer, adapter_layers
from ..lora.attached import adapters_of

Groups = list[dict[str, Any]]


def by_class(model: nn.Module) -> dict[type[AdapterLayer], list[AdapterLayer]]:
    """A model's adapted layers, by their class, in the order of the model."""
    layers: dict[type[AdapterLayer], list[AdapterLayer]] = defaultdict(list)
    for _, layer in adapter_layers(model):
        layers[type(layer)].append(layer)
    return layers


def training_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes besides parameters, by plain name."""
    return {
        f"{path}.{name}": tensor
        for path, layer in adapter_layers(model)
        for name, tensor in layer.training_state().items()
    }


def check_run(model: nn.Module, steps: int) -> None:
    """Raise ``ValueError`` when a method cannot be trained in a run of so many steps."""
    for kind, layers in by_class(model).items():
        kind.check_run(layers, steps)


def with_extra_loss(
    objective: Callable[[nn.Module, Any], float], scaler: Any = None
) -> Callable[[nn.Module, Any], float]:
    """An objective that leaves the gradient of ``extra_loss`` too, and adds its value.

    With a ``scaler`` the gradient is that of ``scaler.scale`` times the loss, as the objective's.
    """

    def total(model: nn.Module, parts: Any) -> float:
        """The loss of a batch, and what the model's methods add to it."""
        loss = objective(model, parts)
        extra = extra_loss(model)
        if extra is None:
            return loss
        (extra if scaler is None else scaler.scale * extra).backward()
        return loss + extra.item()

    return total


def extra_loss(model: nn.Module) -> Tensor | None:
    """What the methods add to a step's loss, in nats; None for nothing."""
    losses = [kind.extra_loss(layers) for kind, layers in by_class(model).items()]
    parts = [loss for loss in losses if loss is not None]
    return sum(parts[1:], parts[0]) if parts else None


def best_from(model: nn.Module) -> int:
    """The first step whose state may be what a run gives back: AdaLoRA has pruned by then."""
    return max((layer.best_from for _, layer in adapter_layers(model)), default=0)


def update_and_allocate(model: nn.Module, step: int) -> None:
    """Let the methods look at the gradients of optimizer step number ``step``, from 1."""
    for kind, layers in by_class(model).items():
        kind.update_and_allocate(layers, step)


def param_groups(
    model: nn.Module | None,
    parameters: Mapping[str, Tensor],
    lr: float,
    weight_decay: float = 0.0,
    loraplus_ratio: float = 1.0,
) -> Groups:
    """The optimizer's groups: B's rate apart, vectors without decay, decay towards ``neutral``.

    Raises ``ValueError`` for a ratio where nothing is called ``lora_B``.

    >>> from minilora import LoRALayer
    >>> layer = LoRALayer(nn.Linear(4, 2), r=1)
    >>> trained = {"0.lora_A": layer.lora_A, "0.lora_B": layer.lora_B}
    >>> [group["initial_lr"] for group in param_groups(layer, trained, 1e-3, loraplus_ratio=16)]
    [0.001, 0.016]
    """
    neutral = {
        id(layer.get_parameter(name)): value
        for _, layer in (adapters_of(model) if model is not None else ())
        for name, value in layer.neutral.items()
    }
    of_B = {name for name in parameters if name.rpartition(".")[2] == "lora_B"}
    if loraplus_ratio != 1 and not of_B:
        raise ValueError(
            f"loraplus_ratio={loraplus_ratio} sets the rate of LoRA's B, "
            "and nothing that trains here is a lora_B: leave it at 1"
        )
    groups: dict[tuple, list[Tensor]] = defaultdict(list)
    for name, p in parameters.items():
        rate = lr * loraplus_ratio if name in of_B else lr
        target = neutral.get(id(p), 0.0)
        decay = weight_decay if p.dim() > 1 and target is not None else 0.0
        pulled_to = target if decay else 0.0
        groups[rate, decay, pulled_to, p.dim() > 1].append(p)
    return [
        {
            "params": chosen,
            "initial_lr": rate,
            "weight_decay": 0.0 if pulled_to else decay,
            "pull": decay if pulled_to else 0.0,
            "neutral": pulled_to,
        }
        for (rate, decay, pulled_to, _), chosen in groups.items()
    ]


@torch.no_grad()
def pull_to_neutral(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """AdamW's decay towards another value than 0: ``p ← p − lr · decay · (p − neutral)``."""
    for group in optimizer.param_groups:
        if pull := group.get("pull", 0.0):
            for p in group["params"]:
                if p.grad is not None:  # as AdamW, which skips the others
                    p.lerp_(torch.full_like(p, group["neutral"]), group["lr"] * pull)

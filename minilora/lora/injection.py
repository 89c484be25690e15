"""Put adapters into a model by the names of its modules, explain what matched, and take them out again.

    for every module whose name matches:  parent.name = LoRALayer(parent.name)
    for every other parameter:            requires_grad = False

``lora/selection.py`` says which names match. Everything is checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .config import LoraConfig
from .layer import LoRALayer, is_linear, is_packed, linear_shape, lora_layers
from .selection import (
    InjectReport,
    Match,
    check_patterns_used,
    check_targets,
    has_plain_weight,
    matching_pattern,
    rank_and_alpha,
)


def explain_match(model: nn.Module, config: LoraConfig) -> InjectReport:
    """What ``inject`` would do with this model, changing nothing. Raises what ``inject`` would raise.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> print(explain_match(model, LoraConfig(r=1, target_modules=["0"])))
    module  count  in → out  r  parameters  matched by
    0       1      4 → 4     1  8           '0'
    1       1      4 → 2     –  0           –
    8 of 38 parameters train (21.05%)
    """
    if adapted := [name for name, _ in lora_layers(model)]:
        raise ValueError(
            f"this model has adapters already (at {adapted[0]}, {len(adapted)} in all): unload(model) or "
            "merge_and_unload(model) first; one layer holds one adapter"
        )
    patterns = {
        name: matching_pattern(name, module, model, config)
        for name, module in model.named_modules()
        if name
    }
    check_patterns_used(model, config, patterns)
    check_targets(model, patterns)
    matches = tuple(
        Match(name, *linear_shape(module), patterns[name], rank_and_alpha(name, config)[0])
        for name, module in model.named_modules()
        if name and is_linear(module) and has_plain_weight(module)
    )
    trainable = sum(match.parameters for match in matches)
    total = trainable_parameters(model)[1] + trainable
    return InjectReport(matches, trainable, total)


def inject(model: nn.Module, config: LoraConfig | None = None) -> InjectReport:
    """Wrap the matching Linears of any model in ``LoRALayer``, in place, and freeze everything but A and B.

    Until it is trained, the model computes what it did, to the bit. Raises ``ValueError`` before anything changes: nothing
    or not everything matched, a target that is no Linear, a tied or shared weight, a model that has adapters already.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> report = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> trainable_parameters(model)
    (8, 38)
    """
    config = config or LoraConfig()
    report = explain_match(model, config)
    trained = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    try:
        wrapped = {
            m.name: wrap(model.get_submodule(m.name), m.name, config).train(model.training)
            for m in report.chosen
        }
    except Exception:  # out of memory, say
        for parameter in trained.values():
            parameter.requires_grad_(True)
        raise
    # the names of what unload makes train again
    model.__dict__["_frozen_by_inject"] = frozenset(trained)
    model.requires_grad_(False)
    for name, layer in wrapped.items():
        model.set_submodule(name, layer)
    return report


def wrap(base: nn.Module, name: str, config: LoraConfig) -> LoRALayer:
    """The layer that goes in at ``name``, with the rank and alpha that the config's patterns give it there."""
    r, lora_alpha = rank_and_alpha(name, config)
    return LoRALayer(base, r, lora_alpha, config.lora_dropout, config.use_rslora)


def unload(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place: the base as it was, to the bit, and trainable where it was. Returns the model.

    Merged layers are unmerged first; raises ``ValueError``, changing nothing, when that is impossible
    (``keep_base=False``) or when there is no adapter.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> unload(model)[0]
    Linear(in_features=4, out_features=2, bias=True)
    """
    layers = require_lora(model)
    check_container(model)
    for _, layer in layers:
        if layer.merged:
            layer.check_unmergeable()
    for _, layer in layers:
        if layer.merged:
            layer.unmerge()
    take_out(model)
    return model


def check_container(model: nn.Module) -> None:
    """Raise ``ValueError`` for a bare layer: there is no place to put its base back into."""
    if isinstance(model, LoRALayer):
        raise ValueError(
            "this is a LoRALayer itself, not a model with adapters inside: its base is layer.base"
        )


def take_out(model: nn.Module) -> None:
    """Put every base module back in its place, whatever its weight is now, and restore which parameters train."""
    for name, layer in list(lora_layers(model)):
        model.set_submodule(name, layer.base)
    for module in model.modules():  # inject may have been called on a part of the model
        frozen = module.__dict__.pop("_frozen_by_inject", ())
        for name, parameter in module.named_parameters() if frozen else ():
            parameter.requires_grad_(parameter.requires_grad or name in frozen)


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Inside this context the model is its base; afterwards the adapters are back, merged or not as before.

    Raises ``ValueError`` when an adapter was merged with ``keep_base=False``: the base is gone.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> base, x = model[0], torch.ones(1, 4)
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> _ = nn.init.ones_(model[0].lora_B)
    >>> with disable_adapter(model):
    ...     torch.equal(model(x), base(x))
    True
    """
    layers = [layer for _, layer in require_lora(model)]
    before = [layer.enabled for layer in layers]
    # inside another such context they are swapped
    merged = [layer for layer in layers if layer.merged and layer.enabled]
    for layer in merged:
        layer.check_unmergeable()
    for layer in merged:
        layer.swap()
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled
        for layer in merged:
            layer.swap()


def enable_input_grads(model: nn.Module) -> list[RemovableHandle]:
    """Let the outputs of the embeddings carry a gradient, so that checkpointed blocks of a frozen base train their adapters.

    Gradient checkpointing in its reentrant form runs a block without a graph, and builds one in the backward only if an *input*
    of the block asks for it. With a frozen embedding none does, and A and B get nothing, in silence (huggingface/peft #137).
    Call it once, before training; each handle's ``remove()`` undoes it. Raises ``ValueError`` when the model has no embedding.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)).requires_grad_(False)
    >>> handles = enable_input_grads(model)
    >>> model(torch.tensor([1])).requires_grad
    True
    """
    own = getattr(model, "get_input_embeddings", None)
    try:
        found = [own()] if callable(own) else []
    except NotImplementedError:  # transformers, of a model without one
        found = []
    embeddings = {
        id(m): m
        for m in [*found, *model.modules()]
        if m is not None and (m in found or isinstance(m, nn.Embedding))
    }
    if not embeddings:
        raise ValueError(
            "this model has no embedding whose output could carry a gradient: set requires_grad on its input"
        )
    return [module.register_forward_hook(ask_for_gradient) for module in embeddings.values()]


def ask_for_gradient(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
    """A forward hook: gradients are wanted back to here."""
    if torch.is_grad_enabled():
        output.requires_grad_(True)


def require_lora(model: nn.Module) -> list[tuple[str, LoRALayer]]:
    """The adapters of a model; raise ``ValueError`` when there are none."""
    if layers := list(lora_layers(model)):
        return layers
    raise ValueError("this model has no adapters: inject(model, LoraConfig(...)) first")


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; tied weights count once, a weight in four bits as what it stands for, not by its bytes.

    >>> trainable_parameters(nn.Linear(3, 1).requires_grad_(False))
    (0, 4)
    """
    parameters: Any = list(model.parameters())
    packed: Any = [module for module in model.modules() if is_packed(module)]
    in_four_bits = sum(module.in_features * module.out_features for module in packed)
    total = sum(p.numel() for p in parameters) + in_four_bits
    return sum(p.numel() for p in parameters if p.requires_grad), total


def print_trainable_parameters(model: nn.Module) -> None:
    """Print PEFT's line.

    >>> print_trainable_parameters(nn.Linear(3, 1))
    trainable params: 4 || all params: 4 || trainable%: 100.0000
    """
    trainable, total = trainable_parameters(model)
    print(
        f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
    )

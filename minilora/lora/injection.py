"""Put adapters into a model by the names of its modules, explain what matched, take them out again.

    for every module that the config chooses:  parent.name = config.wrap(parent.name)
    for every other parameter:                 requires_grad = False

``lora/selection.py`` says which modules a config chooses. Everything is checked before anything
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..nf4.linear import NF4Linear
from .adapter_config import AdapterConfig, AttachedConfig
from .adapter_layer import AdapterLayer, adapter_layers
from .attached import adapters_of, attach, attached_modules, detach_all, report_of
from .config import LoraConfig
from .extras import Extras, modules_to_train, plan_extras
from .foreign_saves import warn_before_saving
from .paths import named_modules, plain_path, replace_modules, unwrapped
from .selection import InjectReport, Match, select
from .sites import sites_of
from .token_rows import TiedHead, TokenRows, width_of
from .trained_copies import forget_copies, make_copies, put_copies, switch_copies

WrapAll = Callable[[Mapping[str, nn.Module], Sequence[Match]], Mapping[str, nn.Module]]


def explain_match(model: nn.Module, config: AdapterConfig | AttachedConfig) -> InjectReport:
    """What ``inject`` would do with this model, changing nothing. Raises as ``inject``.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> print(explain_match(model, LoraConfig(r=1, target_modules=["0"])))
    module  count  in → out  r  parameters  matched by
    0       1      4 → 4     1  8           '0'
    1       1      4 → 2     –  0           –
    8 of 38 parameters train (21.05%)
    """
    check_free(model)
    if isinstance(config, AttachedConfig):
        with torch.random.fork_rng([]):  # its first values are thrown away
            return report_of(model, config, config.build(model))
    return plan(model, config)[0]


def check_free(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model that has adapters already."""
    if adapted := [path for path, _ in adapters_of(model)]:
        raise ValueError(
            f"this model has adapters already (at {adapted[0]}, {len(adapted)} in all): "
            "unload(model) or merge_and_unload(model) first. One layer holds one adapter; several "
            "named ones beside each other are minilora.serving.AdapterBank's matter"
        )


def plan(model: nn.Module, config: AdapterConfig) -> tuple[InjectReport, Extras]:
    """The report, and what trains beside the adapters. Changes nothing."""
    extras, whole = Extras(), tuple[str, ...]()
    if isinstance(config, LoraConfig):
        whole = tuple(f"{path}." for path in modules_to_train(model, config))
    sites = sites_of(model, config.takes_norms, config.takes_embeddings)
    matches = select([s for s in sites if not f"{s.path}.".startswith(whole)], config)
    if isinstance(config, LoraConfig):
        extras = plan_extras(model, config, [m.name for m in matches if m.pattern is not None])
    modules = dict(named_modules(model))
    rows = {p: len(tokens) * width_of(modules[p]) for p, tokens in extras.rows.items()}
    beside = [(name, *about) for name, about in extras.parameters.items()]
    beside += [(f"{path}.rows", n, "trainable_token_indices") for path, n in rows.items()]
    added = sum(match.parameters for match in matches) + sum(rows.values())
    trainable = added + sum(count for count, _ in extras.parameters.values())
    total = trainable_parameters(model)[1] + added
    return InjectReport(matches, trainable, total, tuple(beside)), extras


def inject(
    model: nn.Module,
    config: AdapterConfig | AttachedConfig | None = None,
    wrap_all: WrapAll | None = None,
) -> InjectReport:
    """Wrap the modules that a config chooses, in place, and freeze everything but the adapters.

    ``wrap_all`` makes the layers (default: the config's own; methods/injection.py has another).
    Until it is trained, the model computes what it did, to the bit. Raises ``ValueError`` before
    anything changes: a target that matches nothing or is not a Linear, a tied or shared weight, a
    model that has adapters already.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> report = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> trainable_parameters(model)
    (8, 38)
    """
    config = config or LoraConfig()
    check_free(model)
    if isinstance(config, AttachedConfig):
        return attach(model, config)
    report, extras = plan(model, config)
    modules = dict(named_modules(model))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    try:
        layers = dict((wrap_all or config.wrap_all)(modules, report.chosen))
        tables = {path: TokenRows(modules[path], tokens) for path, tokens in extras.rows.items()}
        heads = {p: TiedHead(modules[p], tables[table]) for p, table in extras.heads.items()}
        copies = make_copies(model, extras.parameters)
        layers |= {**tables, **heads}
        for layer in layers.values():
            layer.train(model.training)
    except Exception:  # out of memory, say
        for name in trained:
            model.get_parameter(name).requires_grad_(True)
        raise
    # unload thaws these
    frozen = frozenset(plain_path(model, name) for name in trained)
    unwrapped(model)._frozen_by_inject = frozen  # type: ignore[assignment]
    model.requires_grad_(False)
    replace_modules(model, layers)
    put_copies(model, copies)
    unwrapped(model)._adapter_config = config  # type: ignore[assignment]
    warn_before_saving(model)
    return report


def unload(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place; the base is as it was, to the bit, and trains where it did.

    Returns the model. Merged layers are unmerged first. Raises ``ValueError``, changing nothing,
    when that is impossible (``keep_base=False``) or when there is no adapter.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> unload(model)[0]
    Linear(in_features=4, out_features=2, bias=True)
    """
    layers = [] if any(attached_modules(model)) else require_adapters(model)
    check_container(model)
    merged = [layer for _, layer in layers if layer.merged]
    for layer in merged:
        layer.check_unmergeable()
    for layer in merged:
        layer.unmerge()
    switch_copies(model, on=False)
    take_out(model)
    return model


def check_container(model: nn.Module) -> None:
    """Raise ``ValueError`` for a bare layer: there is no place to put its base back into."""
    if isinstance(model, AdapterLayer):
        raise ValueError(
            f"expected a model with adapters inside, got a {type(model).__name__} itself: "
            "its base is layer.base"
        )


def take_out(model: nn.Module) -> None:
    """Put every base back in its place, merged or not, and restore which parameters train."""
    named = named_modules(model, remove_duplicate=False)  # a layer may stand in two places
    bases = {path: m.base for path, m in named if isinstance(m, AdapterLayer)}
    replace_modules(model, bases)
    detach_all(model)
    forget_copies(model)
    for _, module in named_modules(model):  # inject may have been called on a part of the model
        frozen: Any = getattr(module, "_frozen_by_inject", None)
        if frozen is not None:
            del module._frozen_by_inject, module._adapter_config
            for name, parameter in module.named_parameters():
                known = plain_path(module, name) in frozen
                parameter.requires_grad_(parameter.requires_grad or known)


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Inside this context the model is its base; afterwards the adapters are back, merged or not.

    Raises ``ValueError`` when an adapter was merged with ``keep_base=False``: the base is gone.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> base, x = model[0], torch.ones(1, 4)
    >>> _ = inject(model, LoraConfig(r=1, target_modules=["0"]))
    >>> _ = nn.init.ones_(model[0].lora_B)
    >>> with disable_adapter(model):
    ...     torch.equal(model(x), base(x))
    True
    """
    layers = [layer for _, layer in adapters_of(model) or require_adapters(model)]
    before = [each.enabled for each in layers]
    # inside another such context the merged ones are swapped already
    merged = [la for la in layers if isinstance(la, AdapterLayer) and la.merged and la.enabled]
    for layer in merged:
        layer.check_unmergeable()
    for layer in merged:
        layer.swap()
    for each in layers:
        each.enabled = False
    if any(before):
        switch_copies(model, on=False)
    try:
        yield model
    finally:
        if any(before):  # before the swaps, which look at the biases
            switch_copies(model, on=True)
        for each, enabled in zip(layers, before, strict=True):
            each.enabled = enabled
        for layer in merged:
            layer.swap()


def enable_input_grads(model: nn.Module) -> list[RemovableHandle]:
    """Let the embeddings' outputs carry a gradient, so that checkpointed blocks train adapters.

    Gradient checkpointing in its reentrant form runs a block without a graph, and builds one in the
    backward pass only if an *input* of the block asks for it. With a frozen embedding none does,
    and A and B get nothing, in silence (huggingface/peft #137). Call it once, before training; each
    handle's ``remove()`` undoes it. Raises ``ValueError`` when the model has no embedding.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)).requires_grad_(False)
    >>> handles = enable_input_grads(model)
    >>> model(torch.tensor([1])).requires_grad
    True
    """
    # transformers' models name their embedding themselves, whatever its class
    own = getattr(model, "get_input_embeddings", None)
    try:
        named = [own()] if callable(own) else []
    except NotImplementedError:  # a model of theirs without one
        named = []
    by_class = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    embeddings = {id(m): m for m in [*named, *by_class] if m is not None}
    if not embeddings:
        raise ValueError(
            "this model has no embedding whose output could carry a gradient: "
            "set requires_grad on its input"
        )
    return [module.register_forward_hook(ask_for_gradient) for module in embeddings.values()]


def ask_for_gradient(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
    """A forward hook: gradients are needed back to this output."""
    if torch.is_grad_enabled():
        output.requires_grad_(True)


def require_adapters(model: nn.Module) -> list[tuple[str, AdapterLayer]]:
    """The adapted layers of a model; raise ``ValueError`` when there are none."""
    if layers := list(adapter_layers(model)):
        return layers
    for path, part in attached_modules(model):
        raise ValueError(
            f"{path}: {part.why_not_mergeable}; this works on adapters beside weights, as LoRA's. "
            "Nothing was changed"
        )
    raise ValueError("this model has no adapters: inject(model, LoraConfig(...)) first")


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters.

    Tied weights count once; a weight in four bits counts what it stands for, not its bytes.

    >>> trainable_parameters(nn.Linear(3, 1).requires_grad_(False))
    (0, 4)
    """
    parameters = list(model.parameters())
    packed = [module for module in model.modules() if isinstance(module, NF4Linear)]
    in_four_bits = sum(module.in_features * module.out_features for module in packed)
    total = sum(p.numel() for p in parameters) + in_four_bits
    return sum(p.numel() for p in parameters if p.requires_grad), total


def print_trainable_parameters(model: nn.Module) -> None:
    """Print PEFT's line.

    >>> print_trainable_parameters(nn.Linear(3, 1))
    trainable params: 4 || all params: 4 || trainable%: 100.0000
    """
    trainable, total = trainable_parameters(model)
    share = f"{100 * trainable / total:.4f}"
    print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share}")

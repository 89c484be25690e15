"""Put adapters into a model by the names of its modules, explain what matched, and take them out again.

    for every module whose name matches:  parent.name = LoRALayer(parent.name)
    for every other parameter:            requires_grad = False

The names are matched as PEFT matches them: a list entry fits a module called so or ending in ``.entry``; a string is a
regular expression for the whole path; ``"all-linear"`` is every Linear but the output head. Unlike PEFT, a list entry
that matches nothing is an error: a typo that silently trains half of what was meant cost many users days
(huggingface/peft #1206, #1959).

Everything is checked before anything changes.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .config import LoraConfig
from .lora import LoRALayer, is_linear, linear_shape


@dataclass(frozen=True)
class Match:
    """One Linear of a model: its path and shape, and the pattern that chose it (None when none did)."""

    name: str
    in_features: int
    out_features: int
    pattern: str | None
    r: int

    @property
    def parameters(self) -> int:
        """Trainable parameters here: ``r (in + out)``, or 0 when not chosen."""
        return self.r * (self.in_features + self.out_features) if self.pattern is not None else 0


@dataclass(frozen=True)
class InjectReport:
    """What was chosen and what it costs; ``print(report)`` shows a table, alike modules on one line."""

    matches: tuple[Match, ...]
    trainable: int
    total: int

    @property
    def chosen(self) -> tuple[Match, ...]:
        """Only the modules that have an adapter."""
        return tuple(match for match in self.matches if match.pattern is not None)

    def __str__(self) -> str:
        groups: dict[tuple, list[str]] = defaultdict(list)
        for m in self.matches:
            key = (re.sub(r"\b\d+\b", "*", m.name), f"{m.in_features} → {m.out_features}", m.pattern, m.r, m.parameters)
            groups[key].append(m.name)
        rows = [("module", "count", "in → out", "r", "parameters", "matched by")]
        for (name, shape, pattern, r, parameters), names in groups.items():
            shown = names[0] if len(names) == 1 else name
            rank, cost = (str(r), f"{len(names) * parameters:,}") if pattern is not None else ("–", "0")
            rows.append((shown, str(len(names)), shape, rank, cost, repr(pattern) if pattern is not None else "–"))
        share = f"{self.trainable:,} of {self.total:,} parameters train ({100 * self.trainable / self.total:.2f}%)"
        return "\n".join([*columns(rows), share])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


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
    patterns = {name: matching_pattern(name, module, model, config) for name, module in model.named_modules() if name}
    check_patterns_used(model, config, patterns)
    check_targets(model, patterns)
    matches = tuple(
        Match(name, *linear_shape(module), patterns[name], config.r)
        for name, module in model.named_modules()
        if name and is_linear(module)
    )
    trainable = sum(match.parameters for match in matches)
    total = sum(p.numel() for p in model.parameters()) + trainable
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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped = {
        match.name: LoRALayer(
            model.get_submodule(match.name), config.r, config.lora_alpha, config.lora_dropout, config.use_rslora
        ).train(model.training)
        for match in report.chosen
    }
    model.__dict__["_frozen_by_inject"] = trained  # unload makes these train again
    model.requires_grad_(False)
    for name, layer in wrapped.items():
        replace_module(model, name, layer)
    return report


def unload(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place: the base as it was, to the bit, and trainable where it was. Returns the model.

    Merged layers are unmerged first; raises ``ValueError``, changing nothing, when that is impossible
    (``keep_base=False``) or when there is no adapter.
    """
    layers = require_lora(model)
    for _, layer in layers:
        if layer.merged:
            layer.check_unmergeable()
    for _, layer in layers:
        if layer.merged:
            layer.unmerge()
    take_out(model)
    return model


def take_out(model: nn.Module) -> None:
    """Put every base module back in its place, whatever its weight is now, and restore which parameters train."""
    for name, layer in list(lora_layers(model)):
        replace_module(model, name, layer.base)
    for parameter in model.__dict__.pop("_frozen_by_inject", ()):
        parameter.requires_grad_(True)


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Inside this context the model is its base; afterwards the adapters are back, merged or not as before.

    Raises ``ValueError`` when an adapter was merged with ``keep_base=False``: the base is gone.
    """
    layers = [layer for _, layer in require_lora(model)]
    merged = [layer for layer in layers if layer.merged]
    for layer in merged:
        layer.check_unmergeable()
    weights: list[torch.Tensor] = [layer.weight.data for layer in merged]
    for layer in merged:
        layer.unmerge()
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled
        for layer, weight in zip(merged, weights, strict=True):
            layer.put_merged(weight, keep_base=True)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """Every adapter of a model with its path."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer):
            yield name, module


def require_lora(model: nn.Module) -> list[tuple[str, LoRALayer]]:
    """The adapters of a model; raise ``ValueError`` when there are none."""
    if layers := list(lora_layers(model)):
        return layers
    raise ValueError("this model has no adapters: inject(model, LoraConfig(...)) first")


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; tied weights count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print PEFT's line.

    >>> print_trainable_parameters(nn.Linear(3, 1))
    trainable params: 4 || all params: 4 || trainable%: 100.0000
    """
    trainable, total = trainable_parameters(model)
    print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")


def matching_pattern(name: str, module: nn.Module, model: nn.Module, config: LoraConfig) -> str | None:
    """The pattern of the config that chooses this module, or None."""
    if fits(name, config.exclude_modules) is not None:
        return None
    if config.target_modules == "all-linear":
        return "all-linear" if is_linear(module) and module is not output_head(model) else None
    return fits(name, config.target_modules)


def fits(name: str, patterns: str | Sequence[str]) -> str | None:
    """The entry of a list that a path equals or ends in (``.entry``), or the regular expression that matches all of it.

    >>> fits("layers.0.q_proj", ["proj", "q_proj"]), fits("layers.0.q_proj", r".*\\.[qv]_proj"), fits("xq_proj", ["q_proj"])
    ('q_proj', '.*\\\\.[qv]_proj', None)
    """
    if isinstance(patterns, str):
        return patterns if re.fullmatch(patterns, name) else None
    return next((entry for entry in patterns if name == entry or name.endswith(f".{entry}")), None)


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns the last hidden state into logits: what ``"all-linear"`` leaves alone."""
    if callable(found := getattr(model, "get_output_embeddings", None)) and found() is not None:
        return found()
    return getattr(model, "lm_head", None)


def check_patterns_used(model: nn.Module, config: LoraConfig, patterns: dict[str, str | None]) -> None:
    """Raise ``ValueError`` when nothing matched, or a list entry did not; say what could be meant."""
    targets = config.target_modules
    entries = [targets] if isinstance(targets, str) else targets
    matched = [name for name, pattern in patterns.items() if pattern is not None]
    unused = [
        entry
        for entry in entries
        if (not matched if isinstance(targets, str) else not any(fits(name, [entry]) is not None for name in matched))
    ]
    if not unused:
        return
    names = Counter(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if name and is_linear(module))
    near = [close for entry in unused for close in difflib.get_close_matches(entry.rsplit(".", 1)[-1], names, n=1, cutoff=0.5)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    candidates = ", ".join(f"{name} (×{count})" for name, count in names.items()) or "none: this model has no Linear"
    excluded = f" after exclude_modules={config.exclude_modules!r}" if config.exclude_modules else ""
    raise ValueError(
        f"target_modules: no module matches {', '.join(map(repr, unused))}{excluded}{hint} Linears of this model: {candidates}"
    )


def check_targets(model: nn.Module, patterns: dict[str, str | None]) -> None:
    """Raise ``ValueError`` when a chosen module is no Linear, is shared, or has a weight that another module uses too."""
    owners: dict[int, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].add(name)
    for name, pattern in patterns.items():
        if pattern is None:
            continue
        module = model.get_submodule(name)
        if not is_linear(module):
            raise ValueError(
                f"target_modules: {pattern!r} matches {name}, a {type(module).__name__}: only Linears can be adapted; "
                "write a longer name or a regular expression"
            )
        others = owners[id(module.weight)] - {f"{name}.weight"}
        if others:
            raise ValueError(
                f"target_modules: {pattern!r} matches {name}, whose weight is tied to {', '.join(sorted(others))}: a merge "
                "would change both; leave it out, or untie it first"
            )


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """``parent.child = module`` for a dotted path."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)

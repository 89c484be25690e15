"""Which modules of a model an adapter goes to: names matched as PEFT matches them, and a report of what was found.

A list entry fits a module called so or ending in ``.entry``, and may be narrowed to some layers; a string is a regular
expression for the whole path; ``"all-linear"`` is every Linear but the output head. Rank and alpha of a module are those of
the first pattern that fits its path. (``check_target_module_exists`` and ``get_pattern_key`` in PEFT; compared with them over
random trees and patterns in tests/lora/test_selection.py.)

Unlike PEFT, an entry that matches nothing is an error: a typo that silently trains half of what was meant cost many users
days (huggingface/peft #1206, #1959). And ``"all-linear"`` never takes an ``lm_head``, where PEFT knows the heads of
transformers' models only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..text import columns, nearest
from .config import LoraConfig
from .layer import is_linear, linear_shape


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
    """What was chosen and what it costs; ``print(report)`` shows a table, alike modules on one line.

    >>> from minilora import explain_match
    >>> report = explain_match(nn.Sequential(nn.Linear(4, 2)), LoraConfig(r=1, target_modules=["0"]))
    >>> report.trainable, report.total, report.chosen[0].name
    (6, 16, '0')
    """

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
            key = (
                re.sub(r"\b\d+\b", "*", m.name),
                f"{m.in_features} → {m.out_features}",
                m.pattern,
                m.r,
                m.parameters,
            )
            groups[key].append(m.name)
        rows = [("module", "count", "in → out", "r", "parameters", "matched by")]
        for (name, shape, pattern, r, parameters), names in groups.items():
            shown = names[0] if len(names) == 1 else name
            rank, cost = (
                (str(r), f"{len(names) * parameters:,}") if pattern is not None else ("–", "0")
            )
            rows.append(
                (
                    shown,
                    str(len(names)),
                    shape,
                    rank,
                    cost,
                    repr(pattern) if pattern is not None else "–",
                )
            )
        share = f"{self.trainable:,} of {self.total:,} parameters train ({100 * self.trainable / self.total:.2f}%)"
        return "\n".join([*columns(rows), share, *self.too_high()])

    def too_high(self) -> list[str]:
        """A line when a rank is more than its matrix can have, which only makes A and B bigger."""
        found = [m for m in self.chosen if m.r > min(m.in_features, m.out_features)]
        if not found:
            return []
        m = found[0]
        return [
            f"r={m.r} is more than the rank that {m.name} can have, {min(m.in_features, m.out_features)}: lower it"
        ]


def matching_pattern(
    name: str, module: nn.Module, model: nn.Module, config: LoraConfig
) -> str | None:
    """The pattern of the config that chooses this module, or None."""
    if fits(name, config.exclude_modules) is not None:
        return None
    if is_all_linear(config.target_modules):
        return "all-linear" if is_linear(module) and module is not output_head(model) else None
    found = fits(name, config.target_modules)
    if (
        found is None
        or name in config.target_modules
        or in_layers(name, config.layers_to_transform, config.layers_pattern)
    ):
        return found
    return None


def is_all_linear(patterns: str | Sequence[str]) -> bool:
    """Whether this is the word ``"all-linear"``, in any case of letters."""
    return isinstance(patterns, str) and patterns.lower() == "all-linear"


def in_layers(
    name: str, layers: int | Sequence[int] | None, before: str | Sequence[str] | None
) -> bool:
    """Whether a path lies in one of the layers: the first number in it that follows a name (one of ``before``, if given).

    >>> [in_layers(f"model.layers.{i}.experts.2.up", [0, 2], None) for i in range(3)]
    [True, False, True]
    """
    if layers is None:
        return True
    names = [before] if isinstance(before, str) else before
    forms = (
        [rf"(?:^|.*?\.){name}\.(\d+)\." for name in names] if names else [r".*?\.[^.]*\.(\d+)\."]
    )
    found = next((match for form in forms if (match := re.match(form, name))), None)
    return found is not None and int(found.groups()[-1]) in (
        [layers] if isinstance(layers, int) else layers
    )


def rank_and_alpha(name: str, config: LoraConfig) -> tuple[int, float]:
    """``r`` and ``lora_alpha`` of a module: the pattern's where one fits its path, the config's elsewhere.

    >>> rank_and_alpha("layers.1.k_proj", LoraConfig(r=8, lora_alpha=16, rank_pattern={r"1\\.k_proj": 2, "k_proj": 4}))
    (2, 16)
    """
    r = first_fit(name, config.rank_pattern, config.r)
    lora_alpha = first_fit(name, config.alpha_pattern, config.lora_alpha)
    return r, lora_alpha


def first_fit(name: str, pattern: Mapping[str, Any], default: Any) -> Any:
    """The value of the first key that matches the path or its end after a dot, or that is the path; else the default."""
    key = next((key for key in pattern if fits_pattern(name, key)), name)
    return pattern.get(key, default)


def fits_pattern(name: str, key: str) -> bool:
    """Whether a key of ``rank_pattern`` or ``alpha_pattern`` matches a path."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


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


def check_patterns_used(
    model: nn.Module, config: LoraConfig, patterns: dict[str, str | None]
) -> None:
    """Raise ``ValueError`` when nothing matched, or a list entry did not; say what could be meant."""
    check_exclusions_used(patterns, config)
    chosen = [name for name, pattern in patterns.items() if pattern is not None]
    targets = config.target_modules
    entries = [targets] if isinstance(targets, str) else targets
    unused = [
        entry
        for entry in entries
        if (
            not chosen
            if isinstance(targets, str)
            else not any(fits(name, [entry]) is not None for name in chosen)
        )
    ]
    if unused:
        raise ValueError(nothing_matches(model, config, unused))
    check_keys_used(chosen, config)


def check_exclusions_used(names: Collection[str], config: LoraConfig) -> None:
    """Raise ``ValueError`` when an entry of ``exclude_modules`` is the name of no module."""
    excluded_by = (
        [config.exclude_modules]
        if isinstance(config.exclude_modules, str)
        else [[n] for n in config.exclude_modules]
    )
    if idle := [
        entry
        for entry in excluded_by
        if entry and not any(fits(name, entry) is not None for name in names)
    ]:
        shown = ", ".join(repr(entry if isinstance(entry, str) else entry[0]) for entry in idle)
        raise ValueError(
            f"exclude_modules: no module matches {shown}, so nothing would be left out by it"
        )


def check_keys_used(chosen: Collection[str], config: LoraConfig) -> None:
    """Raise ``ValueError`` when a key of ``rank_pattern`` or ``alpha_pattern`` fits none of the chosen modules."""
    for field in ("rank_pattern", "alpha_pattern"):
        keys = getattr(config, field)
        if idle_keys := [
            key
            for key in keys
            if not any(fits_pattern(name, key) or name == key for name in chosen)
        ]:
            raise ValueError(
                f"{field}: no module that gets an adapter matches {', '.join(map(repr, idle_keys))}"
            )


def nothing_matches(model: nn.Module, config: LoraConfig, unused: Sequence[str]) -> str:
    """The message about targets that match nothing: what stands there instead, and what could have been meant."""
    names = Counter(
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if name and is_linear(module)
    )
    near = [close for entry in unused for close in nearest(entry.rsplit(".", 1)[-1], names)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    candidates = (
        ", ".join(f"{name} (×{count})" for name, count in names.items())
        or "none: this model has no Linear"
    )
    narrowed = (
        f" after exclude_modules={config.exclude_modules!r}" if config.exclude_modules else ""
    )
    narrowed += (
        f" in layers_to_transform={config.layers_to_transform!r}"
        if config.layers_to_transform is not None
        else ""
    )
    return f"target_modules: no module matches {', '.join(map(repr, unused))}{narrowed}{hint} Linears of this model: {candidates}"


def check_targets(model: nn.Module, patterns: dict[str, str | None]) -> None:
    """Raise ``ValueError`` when a chosen module is no Linear, is shared, or has a weight that another module uses too."""
    owners: dict[int, set[str]] = defaultdict(set)
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        owners[id(tensor)].add(name)
    for name, pattern in patterns.items():
        if pattern is None:
            continue
        module, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        if not is_linear(module):
            raise ValueError(
                f"target_modules: {pattern!r} matches {name}, a {type(module).__name__}: only Linears can be adapted; "
                "write a longer name or a regular expression"
            )
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            raise ValueError(
                f"target_modules: {pattern!r} matches {name}, but {type(parent).__name__} reads its weight without calling "
                "it, so an adapter there would be passed by; leave it out with exclude_modules"
            )
        try:
            linear_shape(module)
        except TypeError as error:
            raise ValueError(f"target_modules: {pattern!r} matches {name}: {error}") from error
        stored = {
            f"{name}.{key}": t
            for key, t in {**module._parameters, **module._buffers}.items()
            if key in ("weight", "packed")
        }
        others = set().union(*(owners[id(tensor)] for tensor in stored.values())) - set(stored)
        if others:
            raise ValueError(
                f"target_modules: {pattern!r} matches {name}, whose weight is tied to {', '.join(sorted(others))}: a merge "
                "would change both; leave it out, or untie it first"
            )


def has_plain_weight(module: nn.Module) -> bool:
    """Whether a Linear could be adapted at all: not if its weight is computed from others."""
    try:
        linear_shape(module)
    except TypeError:
        return False
    return True

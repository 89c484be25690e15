"""Which modules an adapter goes to, in a live model or a planned one. No torch.

    sites (a model's modules, or an architecture's)  ──select──>  matches, or one clear error

The rules of matching are PEFT's (patterns.py), with two differences. An entry that matches nothing
is an error, because a typo would silently train half of what was meant; PEFT raises one only when
none of the names matches (huggingface/peft #1959). And ``"all-linear"`` never takes an ``lm_head``;
PEFT knows the heads of transformers' models only.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..text import columns, nearest
from .matches import Match, Site
from .patterns import fits, fits_pattern, in_layers, is_all_linear

if TYPE_CHECKING:
    from .adapter_config import AdapterConfig


def not_a_linear(kind: str, taken: str = "Linears") -> str:
    """Why a module of another kind is refused, to follow its name."""
    article = "an" if kind[0] in "AEIOU" else "a"
    return (
        f"{article} {kind}: only {taken} can be adapted; "
        "write a longer name or a regular expression"
    )


def tied_to(others: Sequence[str]) -> str:
    """Why a tied Linear is refused, to follow its name."""
    return (
        f"whose weight is tied to {', '.join(others)}: a merge would change both; "
        "leave it out, or untie it first"
    )


def select(sites: Sequence[Site], config: AdapterConfig) -> tuple[Match, ...]:
    """Every Linear among the sites, and every chosen Embedding, with the pattern that chooses it.

    Raises one ``ValueError`` when a target, an exclusion or a key of a pattern matches nothing, or
    when a chosen site cannot have an adapter.
    """
    patterns = {site.path: pattern_for(site, config) for site in sites}
    check_exclusions_used(patterns, config)
    chosen = [path for path, pattern in patterns.items() if pattern is not None]
    check_targets_used(sites, chosen, config)
    check_keys_used(chosen, config)
    for site in sites:
        if site.refused and patterns[site.path] is not None:
            matched = f"target_modules: {patterns[site.path]!r} matches {site.path}"
            raise ValueError(f"{matched}, {site.refused}")
    shown = [s for s in sites if s.in_features and (s.is_linear or patterns[s.path] is not None)]
    return tuple(match_of(site, patterns[site.path], config) for site in shown)


def match_of(site: Site, pattern: str | None, config: AdapterConfig) -> Match:
    """A Linear with the pattern that chose it, and the rank that the config gives it."""
    r, cost = config.rank_of(site.path), config.parameters_at(site)
    other = None if cost == r * (site.in_features + site.out_features) else cost
    return Match(site.path, site.in_features, site.out_features, pattern, r, other)


def pattern_for(site: Site, config: AdapterConfig) -> str | None:
    """The pattern of the config that chooses this module, or None."""
    path, targets = site.path, config.target_modules
    if fits(path, config.exclude_modules) is not None:
        return None
    if is_all_linear(targets):
        return "all-linear" if site.is_linear and not site.is_head else None
    pattern = fits(path, targets)
    narrowed = in_layers(path, config.layers_to_transform, config.layers_pattern)
    return pattern if narrowed or path in targets else None


def check_exclusions_used(paths: Collection[str], config: AdapterConfig) -> None:
    """Raise ``ValueError`` when an entry of ``exclude_modules`` is the name of no module."""
    excluded = config.exclude_modules
    entries = [excluded] if isinstance(excluded, str) else [[name] for name in excluded]
    idle = [e for e in entries if e and not any(fits(path, e) is not None for path in paths)]
    if idle:
        shown = ", ".join(repr(entry if isinstance(entry, str) else entry[0]) for entry in idle)
        raise ValueError(f"exclude_modules: no module matches {shown}, so it would exclude nothing")


def check_targets_used(sites: Sequence[Site], chosen: Sequence[str], config: AdapterConfig) -> None:
    """Raise ``ValueError`` when nothing or not every entry matched; suggest what was meant."""
    targets = config.target_modules
    if isinstance(targets, str):
        unused = [] if chosen else [targets]
    else:
        unused = [e for e in targets if not any(fits(path, [e]) is not None for path in chosen)]
    if unused:
        raise ValueError(nothing_matches(sites, config, unused))


def check_keys_used(chosen: Collection[str], config: AdapterConfig) -> None:
    """Raise ``ValueError`` when a key of a pattern fits none of the chosen modules."""
    for field in config.pattern_fields:
        keys = getattr(config, field)
        idle = [k for k in keys if not any(fits_pattern(path, k) or path == k for path in chosen)]
        if idle:
            shown = ", ".join(map(repr, idle))
            raise ValueError(f"{field}: no module that gets an adapter matches {shown}")


def nothing_matches(sites: Sequence[Site], config: AdapterConfig, unused: Sequence[str]) -> str:
    """The message about targets that match nothing, with the names that could have been meant."""
    names = Counter(last_name(site.path) for site in sites if site.is_linear)
    near = [name for entry in unused for name in nearest(last_name(entry), names)]
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if isinstance(config.target_modules, str):
        hint = hint_for_pattern(config.target_modules, [site.path for site in sites]) or hint
    narrowed = ""
    if config.exclude_modules:
        narrowed += f" after exclude_modules={config.exclude_modules!r}"
    if config.layers_to_transform is not None:
        narrowed += f" in layers_to_transform={config.layers_to_transform!r}"
    available = ", ".join(f"{name} (×{count})" for name, count in names.items())
    kind = "norm" if config.takes_norms else "Linear"
    linears = f"{kind}s of this model: {available or f'none: this model has no {kind}'}"
    entries = ", ".join(map(repr, unused))
    return f"target_modules: no module matches {entries}{narrowed}{hint} {linears}"


def hint_for_pattern(pattern: str, paths: Sequence[str]) -> str:
    """What to write where a string names modules, or a part of their paths; empty for a typo.

    >>> hint_for_pattern("q_proj", ["layers.0.q_proj"])
    ': a bare string is a regular expression for the whole path; write ["q_proj"].'
    """
    if any(re.fullmatch(pattern, path) for path in paths):  # it matches, and is excluded
        return ""
    rule = ": a bare string is a regular expression for the whole path; write"
    entries = re.split(r"[,\s]+", pattern.strip(", "))
    if all(any(fits(p, [entry]) is not None for p in paths) for entry in entries):
        return f"{rule} [{', '.join(json.dumps(entry) for entry in entries)}]."
    if any(re.search(pattern, path) for path in paths):
        return f'{rule} r".*({pattern}).*" if a part of it is meant.'
    return ""


def last_name(path: str) -> str:
    """The part of a path after its last dot."""
    return path.rpartition(".")[2]


@dataclass(frozen=True)
class InjectReport:
    """The chosen modules and their cost; ``print(report)`` shows a table.

    Modules that are alike but for their numbers share a line.

    >>> from torch import nn
    >>> from minilora import LoraConfig, explain_match
    >>> config = LoraConfig(r=1, target_modules=["0"])
    >>> report = explain_match(nn.Sequential(nn.Linear(4, 2)), config)
    >>> report.trainable, report.total, report.chosen[0].name
    (6, 16, '0')
    """

    matches: tuple[Match, ...]
    trainable: int
    total: int
    beside: tuple[tuple[str, int, str], ...] = ()  # what else trains: name, parameters, option

    @property
    def chosen(self) -> tuple[Match, ...]:
        """Only the modules that have an adapter."""
        return tuple(match for match in self.matches if match.pattern is not None)

    def __str__(self) -> str:
        groups: dict[tuple, list[Match]] = defaultdict(list)
        for m in self.matches:
            alike = re.sub(r"\b\d+\b", "*", m.name)
            groups[alike, m.in_features, m.out_features, m.pattern, m.r].append(m)
        rows = [("module", "count", "in → out", "r", "parameters", "matched by")]
        for (alike, in_features, out_features, pattern, r), matches in groups.items():
            name = matches[0].name if len(matches) == 1 else alike
            row = (name, str(len(matches)), f"{in_features} → {out_features}")
            if pattern is None:
                rows.append((*row, "–", "0", "–"))
            else:
                cost = sum(match.parameters for match in matches)
                rows.append((*row, str(r or "–"), f"{cost:,}", repr(pattern)))
        for name, parameters, option in self.beside:
            rows.append((name, "1", "–", "–", f"{parameters:,}", option))
        share = f"{100 * self.trainable / self.total:.2f}%"
        total = f"{self.trainable:,} of {self.total:,} parameters train ({share})"
        return "\n".join([*columns(rows), total, *too_high(self.chosen)])


def too_high(chosen: Sequence[Match]) -> list[str]:
    """A line when a rank is more than its matrix can have, which only makes A and B bigger."""
    # VeRA's r counts fixed random directions, and costs next to nothing
    pays = [m for m in chosen if m.parameters >= m.r * (m.in_features + m.out_features)]
    high = [match for match in pays if match.r > match.full_rank]
    if not high:
        return []
    first = min(high, key=lambda match: match.full_rank)
    rest = f" (and {len(high) - 1} more)" if len(high) > 1 else ""
    return [
        f"r={first.r} is above min(in, out) = {first.full_rank} of {first.name}{rest}: "
        "the update cannot have a higher rank than its matrix, so lower it"
    ]

"""The sites of a planned model, and those that a config chooses: as of a live one, without it."""

from __future__ import annotations

import warnings

from ..lora.adapter_config import AdapterConfig
from ..lora.config import LoraConfig
from ..lora.matches import Site
from ..lora.patterns import fits
from ..lora.selection import not_a_linear, select, tied_to, too_high
from .dimensions import Architecture

HEADS = {  # the heads that a task trains, by PEFT's names
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
NOT_A_NORM = not_a_linear("Linear", taken="norms")


def sites_of(arch: Architecture) -> list[Site]:
    """The sites of a planned model: its Linears, embeddings and norms, and what they stand in."""
    names = [linear.name for linear in arch.linears]
    names += [name.removesuffix(".weight").removesuffix(".bias") for name, _ in arch.others]
    parts = [name.split(".") for name in names]
    paths = [".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)]
    refused = not_a_linear("module of another kind")
    sites = {path: Site(path, refused=refused, is_linear=False) for path in paths}
    for x in arch.linears:
        tied = tied_to(["the embedding"]) if x.tied else ""
        sites[x.name] = Site(x.name, x.in_features, x.out_features, tied, is_head=x.role == "head")
    return list(sites.values())


def norm_sites(arch: Architecture) -> list[Site]:
    """The sites of a planned model for a method of norms."""
    norms: dict[str, Site] = {}
    for name, numbers in arch.others:
        path = name.removesuffix(".weight").removesuffix(".bias")
        last = path.rpartition(".")[2].lower()
        if "norm" in last or last.startswith("ln_"):
            norms[path] = Site(path, numbers, numbers, bias=path in norms)  # the weight came first
    others = [Site(x.name, refused=NOT_A_NORM, is_linear=False) for x in arch.linears]
    return [*norms.values(), *others]


def choose(arch: Architecture, config: AdapterConfig) -> list[Site]:
    """The sites that the config chooses, by ``inject``'s own ``select``; warns of idle rank."""
    sites = {x.path: x for x in (norm_sites if config.takes_norms else sites_of)(arch)}
    whole = tuple(f"{path}." for path in sites if trains_whole(path, config))
    sites = {path: site for path, site in sites.items() if not f"{path}.".startswith(whole)}
    chosen = [match for match in select(list(sites.values()), config) if match.pattern is not None]
    for line in too_high(chosen):
        warnings.warn(line, stacklevel=3)
    return [sites[match.name] for match in chosen]


def trains_whole(path: str, config: AdapterConfig) -> bool:
    """Whether ``modules_to_save`` or the task names a module, which then gets no adapter."""
    if not isinstance(config, LoraConfig):
        return False
    entries = (*config.modules_to_save, *HEADS.get(config.task_type or "", ()))
    return fits(path, entries) is not None

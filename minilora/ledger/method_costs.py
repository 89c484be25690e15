"""What each method adds to a step: tensors by name, numbers that autograd keeps, products.

    method      keeps the input   numbers a token           trains a Linear
    LoRA        yes               r                         r (in + out)
    DoRA        yes               r + 2 out                 r (in + out) + out
    PiSSA       yes               r                         r (in + out); the start stays, frozen
    VeRA        no                r + out                   r + out, and A, B once, frozen
    (IA)³       no                out                       out          (keys, values)
                yes               0                         in           (feed-forward)
    BitFit      no                0                         out
    AdaLoRA     yes               r, and E ∘ A once         r (in + out + 1)
    norms       –                 a normalized row a norm   the width, for each norm

Soft prompts, prefixes and bottlenecks stand in attached_costs.py.

``activations.py`` and ``flops.py`` ask here; ``tests/ledger/test_method_costs.py`` measures each on
the shipped base. No torch until a method other than LoRA is planned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..lora.adapter_config import AdapterConfig, AttachedConfig
from ..lora.config import LoraConfig
from ..lora.matches import Site

TOKENS = 20  # rows before a text, where none are named
COUSINS = (
    *("rslora", "dora", "pissa", "olora", "vera", "ia3", "adalora", "bitfit", "ln"),
    *("prompt", "prefix", "bottleneck"),
)


class AtSite(NamedTuple):
    """A method at one Linear: rank, whether it keeps the input, numbers kept a token and once."""

    r: int
    keeps_input: bool
    a_token: int
    once: int = 0
    products: int = 2  # of an adapter's r (in + out) multiply-adds, for a token's forward
    trains_products: bool = True  # whether A and B get gradients


def default_config(method: str, targets: Any, r: int = 8) -> AdapterConfig | AttachedConfig:
    """A method's config for these targets, with LoRA's rank where it has one.

    >>> default_config("dora", ["q_proj"]).use_dora
    True
    """
    alpha = 2 * r
    if method in ("rslora", "dora", "pissa", "olora"):
        return LoraConfig(
            *(r, alpha, targets),
            use_rslora=method == "rslora",
            use_dora=method == "dora",
            init_lora_weights=method if method in ("pissa", "olora") else True,
        )
    if method == "vera":
        from ..methods.vera import VeraConfig

        return VeraConfig(target_modules=targets)
    if method == "adalora":
        from ..methods.adalora import AdaLoraConfig

        init = math.ceil(1.5 * r)  # PEFT's 12 to 8
        return AdaLoraConfig(init, r, alpha, targets, total_step=1000)
    if method == "bitfit":
        from ..methods.bitfit import BitFitConfig

        return BitFitConfig(targets)
    if method == "ia3":
        from ..methods.ia3 import IA3Config

        return IA3Config()  # its own targets: keys, values, the feed-forward's last Linear
    if method in ("prompt", "prefix"):
        from ..methods.prefix_tuning import PrefixTuningConfig
        from ..methods.prompt_tuning import PromptTuningConfig

        return PromptTuningConfig(TOKENS) if method == "prompt" else PrefixTuningConfig(TOKENS)
    if method == "bottleneck":
        from ..methods.bottleneck import BottleneckConfig

        return BottleneckConfig()
    from ..methods.norm_tuning import LNTuningConfig

    return LNTuningConfig()


def method_name(config: AdapterConfig | AttachedConfig) -> str:
    """The method of a config, as the command line writes it."""
    if not isinstance(config, LoraConfig):
        return config.peft_type.lower().removesuffix("_tuning")
    if isinstance(config.init_lora_weights, str):
        return config.init_lora_weights
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"


def at_site(config: AdapterConfig, site: Site) -> AtSite:
    """What a config's method does at one of its sites."""
    method, r = method_name(config), config.rank_of(site.path)
    if method == "dora":
        return AtSite(r, True, r + 2 * site.out_features)
    if method in ("pissa", "olora"):
        return AtSite(r, True, r, products=4)
    if method == "vera":
        return AtSite(r, False, r + site.out_features, trains_products=False)
    if method == "ia3":
        (shape,) = config.shapes(site).values()
        return AtSite(0, shape[0] == 1, 0 if shape[0] == 1 else site.out_features)
    if method == "adalora":
        return AtSite(r, True, r, once=r * site.in_features)
    if method == "bitfit":
        return AtSite(0, False, 0)
    if method in ("lora", "rslora"):
        return AtSite(r, True, r)
    raise ValueError(
        f"no plan for {type(config).__name__}: at_site in minilora/ledger/method_costs.py has no "
        "line that says what a step of it keeps"
    )


def frozen_numbers(config: AdapterConfig, sites: Sequence[Site]) -> int:
    """Numbers that a method stores besides what it trains: PiSSA's starts, VeRA's projections."""
    method = method_name(config)
    if method in ("pissa", "olora"):
        return sum(config.parameters_at(site) for site in sites)
    if method == "vera" and sites:
        widest = max(s.in_features for s in sites) + max(s.out_features for s in sites)
        return config.rank_of("") * widest
    return 0


def file_shapes(config: AdapterConfig, sites: Sequence[Site]) -> Mapping[str, tuple[int, ...]]:
    """The tensors that ``save_adapter`` writes, by their keys."""
    prefix = "base_model.model."
    shapes = {f"{prefix}{s.path}.{name}": n for s in sites for name, n in config.shapes(s).items()}
    method = method_name(config)
    if method in ("pissa", "olora"):  # written as LoRA of twice the rank
        double = {"A": lambda n: (2 * n[0], n[1]), "B": lambda n: (n[0], 2 * n[1])}
        shapes = {k: double[k.removesuffix(".weight")[-1]](n) for k, n in shapes.items()}
    if method == "vera" and sites and getattr(config, "save_projection", False):
        r = config.rank_of("")
        shapes["base_model.vera_A"] = (r, max(s.in_features for s in sites))
        shapes["base_model.vera_B"] = (max(s.out_features for s in sites), r)
    return shapes

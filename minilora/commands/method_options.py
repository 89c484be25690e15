"""``minilora train --method``: the options that choose a method, and the config that they make.

Each method takes the options that mean something to it and refuses the others by name. The rate of
a method that was given none is LoRA's times ``RATES``: what a small search found on the shipped
base (benchmarks/methods.py), rounded; look at the first losses before you believe it elsewhere.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

TAKES: dict[str, tuple[str, ...]] = {
    "lora": ("target", "r", "alpha", "dropout", "rslora", "loraplus_ratio"),
    "rslora": ("target", "r", "alpha", "dropout", "loraplus_ratio"),
    "dora": ("target", "r", "alpha", "dropout", "rslora", "loraplus_ratio"),
    "pissa": ("target", "r", "alpha", "rslora", "loraplus_ratio"),
    "olora": ("target", "r", "alpha", "rslora", "loraplus_ratio"),
    "adalora": ("target", "r", "alpha", "dropout"),
    "vera": ("target", "r", "dropout"),
    "ia3": (),
    "bitfit": ("target",),
    "ln": (),
    "prompt": ("virtual_tokens", "prompt_text"),
    "prefix": ("virtual_tokens",),
    "bottleneck": ("kind", "size"),
}
UNSET: dict[str, Any] = {
    **{"target": ["q_proj", "v_proj"], "r": None, "alpha": None, "dropout": 0.0, "rslora": False},
    **{"loraplus_ratio": None, "virtual_tokens": None, "prompt_text": None},
    **{"kind": None, "size": None},
}
RANK, VERA_RANK, TOKENS = 8, 256, 20
RATES = {
    **{"pissa": 0.5, "olora": 0.5, "vera": 5.0, "ia3": 20.0, "bitfit": 2.0, "ln": 8.0},
    **{"prompt": 5.0, "prefix": 10.0},
}


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora train`` about the adapter."""
    add = parser.add_argument
    add("--method", choices=TAKES, default="lora", help="(default: %(default)s)")
    modules = "modules to adapt, or all-linear (default: q_proj v_proj)"
    add("--target", nargs="+", default=UNSET["target"], help=modules)
    add("--r", type=int, help=f"rank (default: {RANK}; vera {VERA_RANK})")
    add("--alpha", type=float, help="lora_alpha (default: 2 r)")
    add("--dropout", type=float, default=0.0, help="of the adapter's input (default: %(default)s)")
    add("--rslora", action="store_true", help="scale by alpha / sqrt(r)")
    faster = "LoRA's B learns so many times as fast as A (LoRA+; the paper takes 16)"
    add("--loraplus-ratio", type=float, metavar="RATIO", help=faster)
    rows = f"rows before each text, of prompt and prefix (default: {TOKENS})"
    add("--virtual-tokens", type=int, metavar="K", help=rows)
    add("--prompt-text", metavar="TEXT", help="the text that a soft prompt starts as")
    add("--kind", choices=["houlsby", "pfeiffer", "parallel"], help="of bottleneck")
    add("--size", type=int, help="a bottleneck's width (default: the model's / 16)")


def unused(options: argparse.Namespace) -> list[str]:
    """The options given that the method has no use for, as they are written."""
    takes = TAKES[options.method]
    given = [name for name, default in UNSET.items() if getattr(options, name) != default]
    return [flag(name) for name in given if name not in takes]


def flag(name: str) -> str:
    """An option as it is written.

    >>> flag("prompt_text")
    '--prompt-text'
    """
    return f"--{name.replace('_', '-')}"


def config_of(options: argparse.Namespace) -> Any:
    """The method's config. Raises ``ValueError`` for an option that it has no use for."""
    from ..ledger.method_costs import default_config
    from ..lora.config import LoraConfig, read_targets

    method, targets = options.method, read_targets(options.target)
    if options.full and method != "lora":
        raise ValueError(f"--full trains every parameter, no adapter: leave --method {method} out")
    if wrong := unused(options):
        raise ValueError(
            f"--method {method} has no use for {' and '.join(wrong)}: leave it out"
            + ("" if method not in ("ia3", "ln") else "; its modules are its own")
        )
    r = RANK if options.r is None else options.r
    if method in ("lora", "rslora", "dora", "pissa", "olora"):
        return LoraConfig(
            *(r, 2 * r if options.alpha is None else options.alpha, targets, options.dropout),
            use_rslora=options.rslora or method == "rslora",
            use_dora=method == "dora",
            init_lora_weights=method if method in ("pissa", "olora") else True,
        )
    if method == "vera":
        from ..methods.vera import VeraConfig

        r = VERA_RANK if options.r is None else options.r
        return VeraConfig(r, targets, vera_dropout=options.dropout)
    if method == "adalora":
        config: Any = default_config(method, targets, r)
        alpha = config.lora_alpha if options.alpha is None else options.alpha
        return replace(config, lora_alpha=alpha, lora_dropout=options.dropout)
    if method in ("prompt", "prefix"):
        return soft_config(options)
    if method == "bottleneck":
        from ..methods.bottleneck import BottleneckConfig

        return BottleneckConfig(options.kind or "pfeiffer", options.size)
    if method == "bitfit" and options.target == UNSET["target"]:
        targets = "all-linear"
    return default_config(method, targets)


def soft_config(options: argparse.Namespace) -> Any:
    """A soft prompt that starts as a text or as random tokens of the base's; or a prefix."""
    from ..methods.prefix_tuning import PrefixTuningConfig
    from ..methods.prompt_tuning import PromptTuningConfig

    k = TOKENS if options.virtual_tokens is None else options.virtual_tokens
    if options.method == "prefix":
        return PrefixTuningConfig(k)
    text = options.prompt_text
    return PromptTuningConfig(k, "SAMPLE_VOCAB" if text is None else "TEXT", text)


def for_steps(config: Any, steps: int) -> Any:
    """The same for a run of so many steps: AdaLoRA prunes from a tenth to four fifths of them."""
    if getattr(config, "total_step", None) is None:
        return config
    return replace(config, total_step=steps, tinit=steps // 10, tfinal=steps // 5)

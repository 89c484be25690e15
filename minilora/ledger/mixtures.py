"""Mixtures of experts: a router sends each token to a few of many MLPs (arXiv 2401.04088).

    parameters   all experts: they lie in memory
    active       what one token passes through: the FLOPs

Mixtral has experts in every block. Qwen's mixtures may leave some blocks dense, and Qwen 2's have
one expert more that every token passes. In transformers 5 a block's experts are two parameters, not
Linears: no adapter stands on them, and bitsandbytes keeps them in floats. The attention's Linears
and the shared expert's are ordinary. ``tests/ledger/test_mixtures.py`` counts the real ones.

Left out: the uneven load of experts, adapters on experts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .dimensions import Architecture, LinearShape, whole
from .families import Config, llama

# The dense family with the same attention; qwen2_moe without biases has a Llama's.
DENSE = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}


def mixture(config: Config, name: str) -> Architecture:
    """Mixtral, Qwen2-MoE and Qwen3-MoE."""
    kind, size = config["model_type"], partial(whole, config, name=name)
    is_mixtral = kind == "mixtral"
    count = size("num_local_experts" if is_mixtral else "num_experts")
    active, d = size("num_experts_per_tok"), size("hidden_size")
    inner = size("intermediate_size" if is_mixtral else "moe_intermediate_size")
    if active > count:
        raise ValueError(f"{name}: num_experts_per_tok={active} is more than all {count} experts")
    dense = llama(dense_config(config, d // max(1, size("num_attention_heads"))), name)
    linears, others, passed = [], list(dense.others), []
    for i, (block, inside) in enumerate(dense.blocks.items()):
        if not has_experts(config, i):
            linears += inside
            continue
        linears += [linear for linear in inside if linear.role not in ("gate", "up", "down")]
        others.append((f"{block}.mlp.gate", count * d))
        others.append((f"{block}.mlp.experts.gate_up_proj", count * 2 * inner * d))
        others.append((f"{block}.mlp.experts.down_proj", count * inner * d))
        path = f"{block}.mlp.experts"
        passed.append(LinearShape(path, d, active * 3 * inner, role="experts", block=block))
        if kind == "qwen2_moe":
            width, path = size("shared_expert_intermediate_size"), f"{block}.mlp.shared_expert"
            linears += [
                LinearShape(f"{path}.gate_proj", d, width, False, "gate", block),
                LinearShape(f"{path}.up_proj", d, width, False, "up", block),
                LinearShape(f"{path}.down_proj", width, d, False, "down", block),
                LinearShape(f"{path}_gate", d, 1, False, "dense", block),
            ]
    linears += [linear for linear in dense.linears if not linear.block]
    idle = len(passed) * (count - active) * 3 * inner * d
    changed = {"family": kind, "linears": tuple(linears), "others": tuple(others)}
    return replace(dense, **changed, experts=tuple(passed), idle=idle)


def dense_config(config: Config, head_dim: int) -> Config:
    """The config of the dense model with the same attention."""
    kind = DENSE[config["model_type"]]
    if kind == "qwen2" and not config.get("qkv_bias", True):
        kind, config = "llama", {**config, "attention_bias": False, "mlp_bias": False}
    own = config.get("head_dim")
    return {**config, "model_type": kind, "head_dim": head_dim if own is None else own}


def has_experts(config: Config, layer: int) -> bool:
    """Whether a block has experts; of Qwen's, ``mlp_only_layers`` and a step say which do."""
    if config["model_type"] == "mixtral":
        return True
    step = whole(config, "decoder_sparse_step", name="decoder_sparse_step", default=1)
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0

"""The adapter: what it is to be, the layer, where it goes, how it is merged.

In reading order:

    config.py          ``LoraConfig``, with PEFT's field names
    layer.py           ``LoRALayer``: A, B, scaling, a hand-written backward, merge and unmerge
    selection.py       which modules a config chooses, by PEFT's rules
    injection.py       wrap the chosen Linears, freeze the rest, take the adapters out again
    merging.py         merge a whole model or nothing; add adapters exactly
    requantization.py  what a merge back into four bits loses
    weight_diff.py     ``audit``: what differs between two models

Imports ``nf4`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .config import LoraConfig
    from .injection import (
        disable_adapter,
        enable_input_grads,
        explain_match,
        inject,
        print_trainable_parameters,
        trainable_parameters,
        unload,
    )
    from .layer import LoRALayer, lora_layers
    from .merging import LowRank, combine, low_rank_parts, merge, merge_and_unload, unmerge
    from .requantization import Requantized
    from .selection import InjectReport
    from .weight_diff import Audit, audit

__all__ = [
    "Audit",
    "InjectReport",
    "LoRALayer",
    "LoraConfig",
    "LowRank",
    "Requantized",
    "audit",
    "combine",
    "disable_adapter",
    "enable_input_grads",
    "explain_match",
    "inject",
    "lora_layers",
    "low_rank_parts",
    "merge",
    "merge_and_unload",
    "print_trainable_parameters",
    "trainable_parameters",
    "unload",
    "unmerge",
]
__getattr__, __dir__ = lazy_imports(__name__)

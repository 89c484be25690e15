"""The adapter: what it is to be, the layer, where it goes, how it is merged.

In reading order:

    hyperparameters.py r, alpha, dropout: their checks, and the scale that follows
    linears.py         the three kinds of Linear behind one set of questions
    adapter_layer.py   what every adapted Linear has: a base, a switch, a merge that is taken back
    layer.py           ``LoRALayer``: A, B, scaling, a hand-written backward
    watchers.py        who might see what passes between a base and its adapter
    embedding.py       ``LoRAEmbedding``: the same beside a table of vectors
    token_rows.py      a few rows of such a table, trained
    trained_copies.py  Parameters that train whole: a head, biases; the originals set aside
    rows.py            many adapters beside one Linear, a group of rows each
    patterns.py        how names and patterns match, by PEFT's rules
    matches.py         a module that a config may name, and what became of it
    adapter_config.py  what ``inject`` asks of any method's config
    config.py          ``LoraConfig``, with PEFT's field names
    selection.py       which sites a config chooses, of a live model or a planned one
    paths.py           module paths without the wrappers of training
    sites.py           a live model's modules as sites
    twin.py            a second tree of modules around the same weights
    extras.py          what a config trains beside the adapters
    attached.py        methods beside the stream of activations: hooks, no weight
    foreign_saves.py   a warning before transformers saves a model with adapters inside
    injection.py       wrap the chosen modules, freeze the rest, take the adapters out again
    merging.py         merge a whole model or nothing
    scaling.py         the dial: an adapter at t times its strength
    combining.py       several adapters as one: exactly, or by PEFT's rules
    swapping.py        another adapter in place of the one inside
    requantization.py  what a merge back into four bits loses
    weight_diff.py     ``audit``: what differs between two models

Imports ``nf4`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .combining import LowRank, combine, low_rank_parts
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
    from .merging import merge, merge_and_requantize, merge_and_unload, unmerge
    from .requantization import Requantized
    from .scaling import scale_adapter
    from .selection import InjectReport
    from .swapping import AdapterSwitch, swap_adapter
    from .weight_diff import Audit, audit

__all__ = [
    "AdapterSwitch",
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
    "merge_and_requantize",
    "merge_and_unload",
    "print_trainable_parameters",
    "scale_adapter",
    "swap_adapter",
    "trainable_parameters",
    "unload",
    "unmerge",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)

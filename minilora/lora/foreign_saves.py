"""A warning before transformers' ``save_pretrained`` writes what it cannot read.

    model.q_proj.weight      in a base
    model.q_proj.base.weight in a base with an adapter inside

The folder would open, with fresh weights wherever an adapter was.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from .adapter_layer import adapter_layers


def warn_before_saving(model: nn.Module) -> None:
    """Let a model of transformers warn when its state dict is taken with adapters inside."""
    if not hasattr(model, "save_pretrained"):  # transformers' method
        return
    if all(hook is not warn_of_names for hook in model._state_dict_pre_hooks.values()):
        model.register_state_dict_pre_hook(warn_of_names)


def warn_of_names(model: nn.Module, *_: Any) -> None:
    """Warn before a foreign model with adapters inside gives its state dict, as to save it.

    Its weights have another name there (``q_proj.base.weight``), so a folder that transformers'
    ``save_pretrained`` writes from it reloads with fresh weights in their place.
    """
    if adapted := [path for path, _ in adapter_layers(model)]:
        warnings.warn(
            f"adapters are inside, so this state dict has {adapted[0]}.base.weight where a base "
            f"has {adapted[0]}.weight: from_pretrained would start those afresh. For a folder that "
            "reloads, minilora.save_adapter(model, folder), or merge_and_unload(model) first",
            stacklevel=4,
        )

"""Who might see what passes between a base and its adapter, or keep it.

An adapter that adds itself into its base's output, in place, or that computes the gradient of both
at once, is right only where nobody else looks. That is the usual case; this module knows the
others.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..nf4.linear import NF4Linear
from .linears import is_conv1d

MODULE = nn.Module.__module__


def can_share(base: nn.Module, x: Tensor) -> bool:
    """Whether one backward may do for a base and its adapter: plain x, frozen weights, no watcher.

    The base's output is plain then, too.
    """
    plain = type(x) is Tensor and x.is_contiguous()
    own = [p for p in base._parameters.values() if p is not None]
    frozen = all(type(p) is nn.Parameter and not p.requires_grad for p in own)
    rounds = isinstance(base, NF4Linear) and base.compute_dtype is not None
    return plain and frozen and not rounds and is_unwatched(base)


def is_ours_alone(base: nn.Module, y: Tensor) -> bool:
    """Whether the base's output is a plain tensor that nobody else holds, so we may write to it."""
    return type(y) is Tensor and y.is_contiguous() and is_unwatched(base)


def is_unwatched(base: nn.Module) -> bool:
    """Whether nobody sees what passes between a base and its adapter.

    Who might: a hook, the base's or a global one; a ``forward`` that someone replaced; a
    subclass; a mode that records operations, as selective checkpointing does; torch.func,
    forward-mode differentiation and torch.compile, which replay operations; autocast, which casts
    between them. tests/lora/test_layer.py has a case for each.
    """
    known = type(base) is nn.Linear or type(base) is NF4Linear or is_conv1d(base)
    hooks = base._forward_hooks or base._backward_hooks or base._backward_pre_hooks
    if not known or hooks or _has_any_global_hook() or is_replaced(base):
        return False
    if torch._C._is_any_autocast_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_function_stack():
        return False
    return not torch._C._len_torch_dispatch_stack() or not any_recorder()


def is_replaced(base: nn.Module) -> bool:
    """Whether someone replaced the ``forward`` or ``__call__`` of a base, or ``F.linear``."""
    kind = type(base)
    own = "forward" in vars(base) or F.linear is not torch._C._nn.linear
    return own or module_of(kind.forward) != kind.__module__ or module_of(kind.__call__) != MODULE


def module_of(function: Any) -> str:
    """The module in which a function was written, whatever it says of itself."""
    return getattr(function, "__globals__", {}).get("__name__", "")


def any_recorder() -> bool:
    """Whether a dispatch mode may keep the tensors it sees; the ledger's says that it does not."""
    return any(getattr(mode, "keeps_tensors", True) for mode in _get_current_dispatch_mode_stack())

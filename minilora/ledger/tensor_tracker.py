"""A watch over one training step: which tensors it makes, in which role, and when each is freed.

A storage counts once, under one role: a weight, a gradient, optimizer state, an *activation* from
the moment autograd asks to keep it for the backward pass, or a temporary, which may still become
another. A weak reference tells when it is freed.

``ledger.measure`` makes a watch and reads its counts.

Left out: memory that a kernel takes and gives back inside one operation.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Pack = Callable[[Tensor], Any]
Unpack = Callable[[Any], Tensor]


class Watch(TorchDispatchMode):
    """Sees the result of every tensor operation; weak references tell how long a storage lives."""

    keeps_tensors = False  # so a layer may write into a result that passed by here

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[int, str] = {}
        self.references: dict[int, Any] = {}
        self.live: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: Tensor, role: str = "temporary") -> None:
        """Count a tensor's storage; a temporary may change its role, every other role stays."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        role_before = self.roles.get(key)
        if role_before is None:
            self.references[key] = weakref.ref(storage, lambda _: self.forget(key, size))
        elif role_before == "temporary" and role != "temporary":
            self.live[role_before] -= size
        else:
            return
        self.roles[key] = role
        self.live[role] += size
        self.peaks[role] = max(self.peaks[role], self.live[role])
        if sum(self.live.values()) >= sum(self.at_peak.values()):
            self.at_peak = self.live.copy()

    def see_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Count an optimizer's state, Adam's step counters of four bytes included."""
        for leaf in tree_leaves(list(optimizer.state.values())):
            if isinstance(leaf, Tensor):
                self.see(leaf, "optimizer")

    def forget(self, key: int, size: int) -> None:
        """A storage was freed."""
        self.live[self.roles.pop(key)] -= size
        self.references.pop(key, None)


@contextmanager
def watched(watch: Watch, model: nn.Module) -> Iterator[None]:
    """Let a watch see every operation, the tensors that autograd keeps, gradients, optimizer state.

    Autograd calls only the innermost pair of hooks for saved tensors, and gradient checkpointing
    brings a pair of its own. So every pair that is made meanwhile notes its tensors; those that
    checkpointing then drops are dropped here too.
    """
    make_pair = saved_tensors_hooks.__init__

    def make_noting_pair(pair: Any, pack: Pack, unpack: Unpack) -> None:
        def noting(tensor: Tensor) -> Any:
            watch.see(tensor, "activations")
            return pack(tensor)

        make_pair(pair, noting, unpack)

    def see_gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None  # the hook runs after it was accumulated
        watch.see(parameter.grad, "gradients")

    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(see_gradient)
                stack.callback(hook.remove)
        after = register_optimizer_step_post_hook(lambda optimizer, *_: watch.see_state(optimizer))
        stack.callback(after.remove)
        stack.enter_context(mock.patch.object(saved_tensors_hooks, "__init__", make_noting_pair))
        stack.enter_context(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        stack.enter_context(watch)
        yield

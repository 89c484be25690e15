"""A watch over one training step: which tensors are born in it, what for, and when each of them dies.

A storage is booked once, under one role: a weight, a gradient, optimizer state, an *activation* from the moment autograd
asks to keep it for the backward pass, or a temporary, which may still become another. A weak reference tells of its death.

``ledger.measure`` makes a watch and reads its books.

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


class Watch(TorchDispatchMode):
    """Sees the result of every tensor operation, and by weak references to the storages how long each lives."""

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[int, str] = {}
        self.references: dict[int, Any] = {}
        self.live: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for found in tree_leaves(result):
            if isinstance(found, Tensor):
                self.see(found)
        return result

    def see(self, tensor: Tensor, role: str = "temporary") -> None:
        """Book a tensor's storage; a temporary may become more, everything else stays what it was first."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        before = self.roles.get(key)
        if before is None:
            self.references[key] = weakref.ref(storage, lambda _: self.forget(key, size))
        elif before == "temporary" and role != "temporary":
            self.live[before] -= size
        else:
            return
        self.roles[key] = role
        self.live[role] += size
        self.peaks[role] = max(self.peaks[role], self.live[role])
        if sum(self.live.values()) >= sum(self.at_peak.values()):
            self.at_peak = self.live.copy()

    def see_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Book an optimizer's state (Adam's step counts are tensors of four bytes, and count)."""
        for found in tree_leaves(list(optimizer.state.values())):
            if isinstance(found, Tensor):
                self.see(found, "optimizer")

    def forget(self, key: int, size: int) -> None:
        """A storage died."""
        self.live[self.roles.pop(key)] -= size
        self.references.pop(key, None)


@contextmanager
def watched(watch: Watch, model: nn.Module) -> Iterator[None]:
    """Let a watch see every operation, what autograd keeps, gradients as they arrive, and optimizers as they step.

    Autograd calls only the innermost pair of hooks for saved tensors, and gradient checkpointing brings a pair of its own.
    So the note is taken in every pair that is made meanwhile; what checkpointing then drops is dropped here too.
    """
    make_pair = saved_tensors_hooks.__init__

    def make_noting_pair(
        pair: Any, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]
    ) -> None:
        def noting(tensor: Tensor) -> Any:
            watch.see(tensor, "activations")
            return pack(tensor)

        make_pair(pair, noting, unpack)

    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(
                    lambda p: watch.see(p.grad, "gradients")
                )  # type: ignore
                stack.callback(hook.remove)
        after = register_optimizer_step_post_hook(lambda optimizer, *_: watch.see_state(optimizer))
        stack.callback(after.remove)
        stack.enter_context(mock.patch.object(saved_tensors_hooks, "__init__", make_noting_pair))
        stack.enter_context(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        stack.enter_context(watch)
        yield

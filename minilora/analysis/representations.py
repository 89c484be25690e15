"""What a fine-tune did to the hidden states, seen twice: cumulatively, and block by block.

    linear CKA(X, Y) = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖)        X, Y (tokens, d), columns centred
                                                        (Kornblith et al. 2019, arXiv 1905.00414)

CKA by depth is cumulative: a block that never changed gets another input and so gives another
output. That is why it falls with depth, whatever was trained, and why it cannot show that "lower
layers change least". ``block_changes`` gives each block the *same* input, the base's.

Left out: CKA with other kernels, minibatch estimates, canonical correlations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .updates import Updates, with_updates


def centered_alignment(X: Tensor, Y: Tensor) -> float:
    """Linear CKA of two representations of the same tokens, (tokens, d) and (tokens, e): 0 to 1.

    Rotations and one scale for all do not change it.

    >>> X = torch.eye(3, dtype=torch.float64)
    >>> round(centered_alignment(X, 2 * X.flip(1)), 6)
    1.0
    """
    X, Y = X.double() - X.double().mean(0), Y.double() - Y.double().mean(0)
    return ((Y.T @ X).norm() ** 2 / ((X.T @ X).norm() * (Y.T @ Y).norm())).item()


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """A model's blocks: the longest ``ModuleList`` in it. Raises ``ValueError`` without one.

    >>> import minilora
    >>> len(blocks_of(minilora.load_base()))
    6
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"expected a model with a ModuleList of blocks, got {type(model)}")
    return max(lists, key=len)


@contextmanager
def recorded(model: nn.Module) -> Iterator[tuple[list[Any], list[Tensor]]]:
    """The arguments and the output of each block, in order, as the model runs."""
    arguments: list[Any] = []
    outputs: list[Tensor] = []

    def record(_: nn.Module, args: Any, named: Any, output: Any) -> None:
        arguments.append((args, named))
        outputs.append(stream(output))

    hooks = [block.register_forward_hook(record, with_kwargs=True) for block in blocks_of(model)]
    try:
        yield arguments, outputs
    finally:
        for hook in hooks:
            hook.remove()


def stream(output: Any) -> Tensor:
    """A block's hidden states; other libraries' blocks may return a tuple that begins with them."""
    return (output[0] if isinstance(output, tuple) else output).detach()


def stream_in(call: Any) -> Tensor:
    """The hidden states that a block was called with."""
    args, named = call
    return (args[0] if args else named["hidden_states"]).detach()


@torch.no_grad()
def hidden_states(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """What goes into the first block, and what each block gives: blocks + 1 of (tokens, d).

    ``ids`` (rows, time); with ``mask`` (rows, time) only the tokens where it is true. Rows may be
    padded on the right, as no token sees what comes after it.

    >>> import minilora
    >>> [tuple(each.shape) for each in hidden_states(minilora.load_base(), torch.ones(2, 3).long())]
    [(6, 128), (6, 128), (6, 128), (6, 128), (6, 128), (6, 128), (6, 128)]
    """
    with recorded(model) as (arguments, outputs):
        model(ids)
    states = [stream_in(arguments[0]), *outputs]  # (rows, time, d) each
    chosen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return [state[chosen] for state in states]


def cumulative_similarity(
    before: nn.Module, after: nn.Module, ids: Tensor, mask: Tensor | None = None
) -> list[float]:
    """CKA of two models' hidden states at each depth, the embedding first.

    >>> import minilora
    >>> base = minilora.load_base()
    >>> [round(value, 6) for value in cumulative_similarity(base, base, torch.arange(9)[None])][:2]
    [1.0, 1.0]
    """
    pairs = zip(hidden_states(before, ids, mask), hidden_states(after, ids, mask), strict=True)
    return [centered_alignment(one, other) for one, other in pairs]


@torch.no_grad()
def block_changes(
    before: nn.Module, after: nn.Module, ids: Tensor, mask: Tensor | None = None
) -> list[float]:
    """How much each block's *own* contribution changed, on the inputs that it has in ``before``.

    With f(x) what a block adds to the stream x: ``‖f1(x) − f0(x)‖ / ‖f0(x)‖``, one a block.

    >>> import minilora
    >>> base = minilora.load_base()
    >>> block_changes(base, base, torch.ones(1, 3).long())
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    with recorded(before) as (arguments, outputs):
        before(ids)
    return contributions_changed(after, arguments, outputs, mask)


def contributions_changed(
    after: nn.Module, arguments: list[Any], outputs: list[Tensor], mask: Tensor | None = None
) -> list[float]:
    """The same from what ``recorded`` kept of the model before."""
    changes = []
    for block, call, old in zip(blocks_of(after), arguments, outputs, strict=True):
        args, named = call
        new, x = stream(block(*args, **named)), stream_in(call)  # (rows, time, d)
        chosen = slice(None) if mask is None else mask.bool()
        changes.append(((new - old)[chosen].norm() / (old - x)[chosen].norm()).item())
    return changes


def additivity(
    base: nn.Module,
    one: Updates,
    other: Updates,
    ids: Tensor,
    mask: Tensor | None = None,
    dose: float = 1.0,
) -> list[float]:
    """How far two adapters' effects are from adding up, at each block's output.

    With Δh(U) the change of the hidden states under the updates U, times ``dose``:
    ``‖Δh(A + B) − Δh(A) − Δh(B)‖ / ‖Δh(A + B)‖``. A linear model has 0 everywhere. Raises
    ``ValueError`` when the two together change nothing.

    >>> import minilora
    >>> base = minilora.load_base()
    >>> ones = {"model.layers.0.self_attn.v_proj": torch.full((64, 128), 1e-3)}
    >>> errors = additivity(base, ones, ones, torch.arange(9)[None], dose=0.01)
    >>> len(errors), max(errors) < 0.05
    (6, True)
    """
    start = hidden_states(base, ids, mask)[1:]
    paths = one.keys() | other.keys()
    both: Mapping[str, Tensor] = {
        path: sum_of([u[path] for u in (one, other) if path in u]) for path in paths
    }
    effects = []
    for changes in (one, other, both):
        with with_updates(base, {path: dose * update for path, update in changes.items()}):
            states = hidden_states(base, ids, mask)[1:]
        effects.append([new - old for new, old in zip(states, start, strict=True)])
    if not any(together.any() for together in effects[2]):
        raise ValueError("these updates change nothing together, so there is nothing to compare")
    return [
        ((together - a - b).norm() / together.norm()).item()
        for a, b, together in zip(*effects, strict=True)
    ]


def sum_of(tensors: list[Tensor]) -> Tensor:
    """Their sum."""
    return torch.stack(tensors).sum(0)


def anisotropy(
    model: nn.Module, ids: Tensor, mask: Tensor | None = None, pairs: int = 1000, seed: int = 0
) -> list[float]:
    """The mean cosine of two random tokens' hidden states at each depth, the embedding first.

    0: they point everywhere; 1: all in one direction (Ethayarajh 2019, arXiv 1909.00512, section
    3). Raises ``ValueError`` with fewer than two tokens.

    >>> import minilora
    >>> values = anisotropy(minilora.load_base(), torch.arange(60)[None])
    >>> len(values), all(-1 <= value <= 1 for value in values)
    (7, True)
    """
    states = hidden_states(model, ids, mask)
    tokens = len(states[0])
    if tokens < 2:
        raise ValueError(f"anisotropy needs at least two tokens, got {tokens}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(tokens, (pairs,), generator=generator)
    second = (first + torch.randint(1, tokens, (pairs,), generator=generator)) % tokens  # another
    return [
        nn.functional.cosine_similarity(state[first], state[second], dim=-1).mean().item()
        for state in states
    ]

"""Federated rounds: what a client does, what the server does, and both in one process.

    server   sends what the clients begin with              ``first_parts``, then ``next_parts``
    client   base + that, so many steps on its own data     ``client_update``
    server   many A and B become one                        ``made_one``

``federate`` calls them in turn, which is the experiment and the oracle; on real machines Flower
carries the same three calls (flower.py). Nothing here knows of Flower.

What begins a round depends on how updates become one (``how``):

    factors, svd   the clients go on from the common A and B
    frozen_a       from the common B; A is drawn from the seed, never trained, never sent
    stack          the sum of all rounds so far is merged into the client's base, and a new A is
                   drawn from the seed and the round; what is sent back grows by Σ r a round

Under ``svd`` and ``stack`` a client may train a smaller rank than the others (``ranks``); under
``svd`` it goes on from the best of its rank to what was sent, and what comes out has the run's rank
whoever answered. The scaling α / r is one for all.

A round is made of the clients that answer. A server that is killed goes on after its last whole
round (``out``). Each round's AdamW is new: no moments are kept between rounds. Left out: a share of
the clients drawn for each round (here all that are online take part), FedProx, server momentum.
"""

from __future__ import annotations

import math
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..lora.combining import LowRank, combine, low_rank_parts
from ..lora.injection import inject
from ..lora.layer import lora_layers
from ..lora.merging import merge_and_unload
from ..lora.swapping import swap_adapter
from ..model.pretrained import load_base
from ..training.batches import IGNORE, encode_all
from ..training.config import TrainConfig
from ..training.examples import Example
from ..training.loop import train
from .federated import Update, aggregate, relative_error
from .privacy import add_noise, clip
from .settings import Rounds
from .wire import Parts, read_round, received, sent, size, write_round

Load = Callable[[], nn.Module]


@dataclass(frozen=True)
class Round:
    """What a round was: its number from 1, who answered, their tokens, how far the result is from
    the exact average (‖·‖ over ‖·‖), and the bytes of one client's message each way.

    >>> Round(1, ("a", "b"), 300, error=0.0, bytes_down=0, bytes_up=86_124).clients
    ('a', 'b')
    """

    number: int
    clients: tuple[str, ...]
    tokens: int
    error: float
    bytes_down: int
    bytes_up: int


def federate(
    data: Mapping[str, Sequence[Example]],
    rounds: Rounds,
    *,
    load: Load = load_base,
    online: Callable[[int], Sequence[str]] | None = None,
    out: str | Path | None = None,
    watch: Callable[[Round, Parts], None] | None = None,
    noise_seed: int | None = None,
    ranks: Mapping[str, int] | None = None,
) -> tuple[dict[str, LowRank], list[Round]]:
    """All rounds in one process; the adapter that comes out, and what each round was.

    - ``data``: each client's own examples, by its name. ``load`` makes the base anew.
    - ``online``: who answers in a round (numbers from 1; default: everybody).
    - ``out``: a folder whose ``rounds.safetensors`` holds the last whole round; where it is there,
      the run goes on after it. ``watch`` gets each round with the adapter after it.
    - ``noise_seed``: for a run that repeats. None draws noise that nobody can take off again.
    - ``ranks``: of clients that take a smaller one than ``rounds.r`` (``stack`` and ``svd``).

    Raises ``ValueError`` as ``aggregate``, or where ``out`` holds a run of other settings.

    >>> from minilora import data
    >>> logs = data.naval_log(40, 1).train
    >>> short = Rounds(rounds=1, steps=1, batch_size=2, r=2)
    >>> parts, history = federate({"a": logs[:20], "b": logs[20:]}, short)
    >>> history[0].clients, history[0].error < 1e-6, len(parts["model.layers.0.self_attn.q_proj"].A)
    (('a', 'b'), True, 4)
    """
    own = {name: rounds.of_rank((ranks or {}).get(name)) for name in data}
    parts, done = first_parts(load, rounds), 0
    if out is not None and (file := Path(out, "rounds.safetensors")).exists():
        parts, done = read_round(file, rounds)
    history = []
    for number in range(done + 1, rounds.rounds + 1):
        names = [*data] if online is None else [*online(number)]
        updates = {
            name: client_update(load, data[name], parts, own[name], number, name, noise_seed)
            for name in names
        }
        result = made_one(updates, rounds, number)
        record = Round(
            number,
            tuple(sorted(names)),
            sum(update.tokens for update in updates.values()),
            relative_error(updates, result),
            size(sent(parts, rounds)),
            size(sent(updates[names[0]].parts, rounds)),
        )
        parts = next_parts(parts, result, rounds)
        if out is not None:
            write_round(Path(out, "rounds.safetensors"), parts, number, rounds)
        history.append(record)
        if watch is not None:
            watch(record, parts)
    return parts, history


def first_parts(load: Load, rounds: Rounds) -> dict[str, LowRank]:
    """What the server begins with: A from the seed and B zero; for ``stack`` nothing."""
    if rounds.how == "stack":
        return {}
    return low_rank_parts(new_adapter(load(), rounds, 0))


def made_one(updates: Mapping[str, Update], rounds: Rounds, number: int) -> dict[str, LowRank]:
    """A round's updates as one adapter; raises ``ValueError`` as ``aggregate``."""
    if rounds.how != "svd":
        return aggregate(updates, rounds.how, fewest=rounds.fewest)
    result = aggregate(updates, "svd", rank=rounds.r, fewest=rounds.fewest)
    return {
        path: padded(part, rounds.r, f"A {rounds.seed} {number} {path}")
        for path, part in result.items()
    }


def padded(part: LowRank, r: int, seed: str) -> LowRank:
    """The same product B A in at least rank r: B gets columns of zeros, A fresh rows to learn with.

    Without them a round of small clients alone would leave its small rank to all rounds after it,
    for nobody begins with more than was sent.

    >>> small = LowRank(torch.ones(1, 4), torch.ones(3, 1), 2.0)
    >>> large = padded(small, 3, "any")
    >>> large.A.shape, bool(large.A[1:].any()), torch.equal(large.B @ large.A, small.B @ small.A)
    (torch.Size([3, 4]), True, True)
    """
    missing = max(0, r - len(part.A))
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    bound = 1 / math.sqrt(part.A.shape[1])
    rows = part.A.new_empty(missing, part.A.shape[1]).uniform_(-bound, bound, generator=generator)
    columns = part.B.new_zeros(len(part.B), missing)
    return LowRank(torch.cat([part.A, rows]), torch.cat([part.B, columns], 1), part.scaling)


def next_parts(parts: Parts, result: Parts, rounds: Rounds) -> dict[str, LowRank]:
    """What the next round begins with, which is the adapter so far, from this round's result."""
    return combine([parts, result]) if rounds.how == "stack" and parts else dict(result)


def client_update(
    load: Load,
    examples: Sequence[Example],
    parts: Parts,
    rounds: Rounds,
    number: int,
    name: str,
    noise_seed: int | None = None,
) -> Update:
    """One client's round: its factors after ``steps`` steps on its own examples, and its tokens."""
    model = model_with(load, parts, rounds, number)
    if rounds.how == "frozen_a":
        for _, layer in lora_layers(model):
            layer.lora_A.requires_grad_(False)
    start = low_rank_parts(model)
    train(model, list(examples), rounds.settings(name, number))
    trained = low_rank_parts(model)
    if rounds.clipping_norm:
        trained = made_private(trained, start, rounds, noise_seed)
    return Update(trained, answer_tokens(model, examples))


def model_with(load: Load, parts: Parts, rounds: Rounds, number: int) -> nn.Module:
    """The base with the adapter that a client trains in a round."""
    model = load()
    if rounds.how != "stack":
        return swap_adapter(new_adapter(model, rounds, 0), of_rank(parts, rounds.r))
    if parts:
        model = merge_and_unload(swap_adapter(new_adapter(model, rounds, 0), parts))
    return new_adapter(model, rounds, number)


def of_rank(parts: Parts, r: int) -> dict[str, LowRank]:
    """A copy that a client of a smaller rank can go on from: the best of that rank (FlexLoRA).

    >>> big = {"q": LowRank(torch.eye(4), torch.diag(torch.tensor([9.0, 5.0, 0.1, 0.2])), 1.0)}
    >>> small = of_rank(big, 2)["q"]
    >>> (small.B @ small.A).diagonal().round().tolist()
    [9.0, 5.0, 0.0, 0.0]
    """
    if any(len(part.A) > r and part.B.any() for part in parts.values()):
        return aggregate({"": Update(parts, 1)}, "svd", rank=r)
    return {
        path: LowRank(part.A[:r].clone(), part.B[:, :r].clone(), part.scaling)
        for path, part in parts.items()
    }


def new_adapter(model: nn.Module, rounds: Rounds, number: int) -> nn.Module:
    """The model with a fresh adapter; its A is that of the seed and the round, on every machine."""
    with torch.random.fork_rng([]):
        torch.manual_seed(zlib.crc32(f"A {rounds.seed} {number}".encode()))
        inject(model, rounds.lora())
    return model


def made_private(
    trained: Parts, start: Parts, rounds: Rounds, noise_seed: int | None
) -> dict[str, LowRank]:
    """The factors with their change clipped as one vector, and noise on what is sent of it."""
    before, after = (sent(parts, rounds) for parts in (start, trained))
    change = {key: after[key] - before[key] for key in after}
    change, _ = clip(change, rounds.clipping_norm)
    seed = secrets.randbits(63) if noise_seed is None else noise_seed
    digest = zlib.crc32(b"".join(value.numpy().tobytes() for value in change.values()))
    generator = torch.Generator().manual_seed(seed ^ digest)
    change = add_noise(change, 2 * rounds.noise_multiplier * rounds.clipping_norm, generator)
    return received({key: before[key] + change[key] for key in change}, start)


def answer_tokens(model: Any, examples: Sequence[Example]) -> int:
    """How many tokens of these examples the loss counts, in one pass over them."""
    rows = encode_all(model.tokenizer, examples, TrainConfig.max_length)
    return sum(label != IGNORE for row in rows for label in row.labels[1:])


def final_model(load: Load, parts: Parts, rounds: Rounds) -> nn.Module:
    """The base with the federation's adapter in it, to ask or to save.

    >>> base = nn.Linear(2, 2)
    >>> final_model(lambda: base, {}, Rounds()) is base  # no round was made
    True
    """
    return swap_adapter(new_adapter(load(), rounds, 0), parts) if parts else load()

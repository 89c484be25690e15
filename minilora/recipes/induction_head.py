"""First weights that already hold a rough induction head (arXiv 2209.11895).

An induction head finds where a token stood before, and copies what came after it. Left to itself it
forms late, so two attention heads of a new model are written by hand:

*Layer 0 looks one token back.* All embeddings get a common direction u. A query and a key made from
u alone are the same for every token, so only the rotary angles decide: q turned back by one step is
largest against the key one step earlier. The values of that key, P x, are written into directions Q
of the stream: "my predecessor was …".

*Layer 1 matches and copies.* Its query reads the token itself, P x, and its key reads the note of
layer 0, Qᵀ x, both in the slow rotary pairs, which hardly care for distance. So a token finds the
place *after* its former occurrence, and copies the token there.

Training sharpens all of it; nothing is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.transformer import Llama

FAST = 4  # rotary pairs that turn far enough in one step to tell neighbours apart
SLOW = 6  # the first of the rotary pairs that hardly turn over the length of a log
NOTE, MATCH = 0.2, 3.5  # how strongly layer 0 writes its note, and how sharply layer 1 matches


@torch.no_grad()
def initialise(model: Llama) -> None:
    """Larger first weights than Llama's 0.02, which suits wide models; then the induction head."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.06 if "embed_tokens" in name else 0.04)
    plant_induction_head(model)


@torch.no_grad()
def plant_induction_head(model: Llama) -> None:
    """Write a rough induction head into layers 0 and 1: two heads that work together."""
    d, size = model.config.hidden_size, model.config.head_dim
    blocks: Any = model.model.layers
    u = add_common_direction(model.model.embed_tokens.weight)
    # layer 0: the right neighbour leads by several units before the softmax
    looking = blocks[0].self_attn
    gain = (7 * size**0.5) ** 0.5 / (d / 2) ** 0.5
    one_back, two_back, unturned = (turned(model, steps) for steps in (1, 2, 0))
    looking.q_proj.weight[:size] = gain * torch.outer(one_back, u)
    looking.q_proj.weight[size : 2 * size] = gain * torch.outer(two_back, u)  # the head beside it
    looking.k_proj.weight[:size] = gain * torch.outer(unturned, u)
    P, Q = orthonormal(size, d), orthonormal(d, size)
    looking.v_proj.weight[:size] = P
    looking.o_proj.weight[:, :size] = NOTE * Q
    # layer 1: the second key/value head, and the first query head that reads it
    matching = blocks[1].self_attn
    queries = slice(matching.groups * size, (matching.groups + 1) * size)
    keys = slice(size, 2 * size)
    slow = [i for i in range(size) if i % (size // 2) >= SLOW]
    among_slow = torch.zeros(size, size)
    among_slow[slow] = orthonormal(len(slow), size)
    matching.q_proj.weight[queries] = MATCH * among_slow @ P
    matching.k_proj.weight[keys] = MATCH * among_slow @ Q.T
    copy = orthonormal(size, d)
    matching.v_proj.weight[keys] = copy
    matching.o_proj.weight[:, queries] = copy.T


def add_common_direction(embedding: Tensor) -> Tensor:
    """Give every embedding half of its energy in one random direction u, and return u."""
    u = F.normalize(torch.randn(embedding.shape[1]), dim=0)
    embedding -= torch.outer(embedding @ u, u)
    embedding += embedding.norm(dim=1).mean() * u
    return u


def turned(model: Llama, steps: float) -> Tensor:
    """A vector (head_dim) in the fast rotary pairs, turned back by so many positions."""
    size = model.config.head_dim
    frequencies = 1 / model.config.rope_theta ** (torch.arange(0, size, 2).float() / size)
    vector = torch.zeros(size)
    vector[:FAST] = torch.cos(frequencies[:FAST] * steps)
    vector[size // 2 : size // 2 + FAST] = -torch.sin(frequencies[:FAST] * steps)
    return vector


def orthonormal(rows: int, columns: int) -> Tensor:
    """A random (rows, columns) matrix with orthonormal rows or columns, whichever are fewer."""
    return nn.init.orthogonal_(torch.empty(rows, columns))

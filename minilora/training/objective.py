"""The loss of a batch: cross-entropy over the answer tokens, for any model that gives logits.

    loss = Σ over answer tokens of -log p(token) / answer tokens in the whole batch

It is divided by the answer tokens of *all* parts of a batch, not averaged part by part: otherwise
accumulation changes the objective whenever parts differ in length.

A model is asked through one small protocol, ``CausalLM.logits_at``: ids in, logits where there is a
label. Our Llama computes its head only there; any other model gives all its logits, and the rest is
dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.attached import attached_modules
from ..lora.paths import unwrapped
from ..model.generation import CausalLM
from .batches import IGNORE, Batch
from .loss_scaling import LossScaler
from .ranks import Alone, part_seeds, seed_part


def mean_over_answers(
    model: nn.Module,
    parts: Sequence[Batch],
    bf16: bool = False,
    scaler: LossScaler | None = None,
    ranks: Alone | None = None,
) -> float:
    """The loss of a batch given in parts, in nats an answer token; leaves its gradient behind.

    With a ``scaler`` it is computed in float16, and the gradient is that of scale · loss. Each of
    several ``ranks`` computes some of the parts, and all get the loss and gradient of the whole.
    """
    ranks = ranks or Alone()
    tokens = sum(part.answer_tokens for part in parts)
    dtype = half(bf16, scaler)
    scale = 1.0 if scaler is None else scaler.scale
    losses, seeds = [0.0] * len(parts), part_seeds(len(parts))
    for number in ranks.own(len(parts)):
        part = parts[number]
        seed_part(seeds, number)
        with autocast(part.ids.device, dtype):
            part_loss = summed_loss(model, part) / tokens
        (scale * part_loss).backward()
        losses[number] = part_loss.item()
    return sum(ranks.add_up(model, losses))


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy summed over the answer tokens, in nats."""
    logits, labels = labelled_logits(model, batch)
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def labelled_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits (label tokens, vocab) where a batch has labels, and those labels."""
    # (rows, time - 1): the last token predicts nothing
    ids, labels = batch.ids[:, :-1], batch.labels[:, 1:]
    labelled = labels != IGNORE
    segments = None if batch.segments is None else batch.segments[:, :-1]
    return logits_at(model, ids, labelled, segments), labels[labelled]


def logits_at(model: nn.Module, ids: Tensor, labelled: Tensor, segments: Tensor | None) -> Tensor:
    """Logits (labels, vocab) at the labelled places of ids (rows, time)."""
    if isinstance(model, CausalLM):
        return model.logits_at(ids, labelled, segments)
    if keeps_examples_apart(model):  # one of ours, compiled or on several devices
        return model(ids, segments)[labelled]
    output = model(ids)
    return getattr(output, "logits", output)[labelled]  # transformers' models wrap theirs


def keeps_examples_apart(model: nn.Module) -> bool:
    """Whether a model can be given several examples in a row without mixing them."""
    before = any(part.rows_before for _, part in attached_modules(model))
    return isinstance(unwrapped(model), CausalLM) and not before


def half(bf16: bool, scaler: LossScaler | None) -> torch.dtype | None:
    """bfloat16, or float16 where the loss is scaled; None where neither is asked for."""
    return torch.bfloat16 if bf16 else torch.float16 if scaler is not None else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Half precision for the matrix products, or nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

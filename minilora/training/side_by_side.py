"""Batches side by side, and a Linear with a group of rows for each adapter that is trained.

    y[j] = x[j] W0ᵀ + b + s[j] · (x[j] A[j]ᵀ) B[j]ᵀ

training/many.py says what for. A and B are the layers' own Parameters, so the gradient arrives
there; adapters of lower rank are filled up with zeros, batches of fewer rows or places with rows
and places that have no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.layer import LoRALayer, lora_layers
from ..lora.rows import add_rows, add_rows_plainly
from .batches import IGNORE, Batch
from .objective import labelled_logits


def check_trained(model: nn.Module) -> None:
    """Raise ``ValueError`` unless A and B of Linears before the head are all that trains.

    The head sees only the places with a label, whose number differs from job to job.
    """
    layers = dict(lora_layers(model))
    if heads := [path for path in layers if path.rpartition(".")[2] == "lm_head"]:
        raise ValueError(
            f"an adapter on the output head ({heads[0]}) needs a run alone: "
            f"exclude_modules={heads} leaves it out"
        )
    ours = {id(p) for layer in layers.values() for p in (layer.lora_A, layer.lora_B)}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
    if others:
        raise ValueError(
            f"train_many trains LoRA's A and B of Linears only, and here {others[0]} would train "
            f"too ({len(others)} such parameters): train this job alone, or leave out "
            "modules_to_save, bias, trainable_token_indices and embeddings"
        )


def side_by_side(parts: Sequence[Batch]) -> Batch:
    """Batches as one: equally many rows each, filled up with rows and places without labels."""
    rows, time = (max(part.ids.shape[axis] for part in parts) for axis in (0, 1))

    def filled(tensor: Tensor, value: int) -> Tensor:
        right, below = time - tensor.shape[1], rows - tensor.shape[0]
        return F.pad(tensor, (0, right, 0, below), value=value)

    ids = torch.cat([filled(part.ids, 0) for part in parts])
    labels = torch.cat([filled(part.labels, IGNORE) for part in parts])
    if all(part.segments is None for part in parts):
        return replace(parts[0], ids=ids, labels=labels, segments=None)
    own = [torch.ones_like(p.ids) if p.segments is None else p.segments for p in parts]
    return replace(
        parts[0], ids=ids, labels=labels, segments=torch.cat([filled(s, 0) for s in own])
    )


def summed_losses(model: nn.Module, parts: Sequence[Batch]) -> list[Tensor]:
    """Each part's cross-entropy summed over its answer tokens, from one pass."""
    logits, labels = labelled_logits(model, side_by_side(parts))
    counts = [part.answer_tokens for part in parts]
    pairs = zip(logits.split(counts), labels.split(counts), strict=True)
    return [F.cross_entropy(each.float(), own, reduction="sum") for each, own in pairs]


class SharedLinear(nn.Module):
    """A frozen Linear, and beside it the adapters of everybody who is in the pass."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def take(
        self,
        layers: Sequence[LoRALayer | None],
        parts: Sequence[Batch],
        states: dict[str, Tensor],
        names: Sequence[str],
    ) -> None:
        """The next call is about these adapters, a group of rows each; None for none here."""
        self.layers = list(layers)
        self.shapes = [(p.ids.shape[0], p.ids.shape[1] - 1) for p in parts]
        self.states, self.names = states, names

    def forward(self, x: Tensor) -> Tensor:
        """(groups · rows, time, in) to (groups · rows, time, out)."""
        y, known = self.base(x), [layer for layer in self.layers if layer is not None]
        if not known:
            return y
        rank, dtype = max(layer.r for layer in known), known[0].lora_A.dtype
        A = y.new_zeros(len(self.layers), rank, x.shape[-1], dtype=dtype)
        B = y.new_zeros(len(self.layers), rank, y.shape[-1], dtype=dtype)
        for group, layer in enumerate(self.layers):
            if layer is not None:
                A[group, : layer.r] = layer.lora_A
                B[group, : layer.r] = layer.scaling * layer.lora_B.T
        if any(layer.lora_dropout for layer in known):
            x = self.dropped(x)
        if x.dtype == y.dtype == dtype and not torch.is_autocast_enabled(x.device.type):
            return add_rows(y, x, A, B)
        return add_rows_plainly(y, x, A, B)

    def dropped(self, x: Tensor) -> Tensor:
        """x with each group's own dropout, drawn as its own run would draw it."""
        groups = []
        for group, layer, (rows, time), name in zip(
            x.chunk(len(self.layers)), self.layers, self.shapes, self.names, strict=True
        ):
            if layer is not None and layer.lora_dropout:
                torch.set_rng_state(self.states[name])
                own = F.dropout(group[:rows, :time].contiguous(), layer.lora_dropout)
                self.states[name] = torch.get_rng_state()
                group = F.pad(own, (0, 0, 0, group.shape[1] - time, 0, len(group) - rows))
            groups.append(group)
        return torch.cat(groups)

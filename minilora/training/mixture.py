"""Batches of several sources, and their one loss.

    L = Σᵢ wᵢ Lᵢ        Lᵢ: mean over the label tokens of source i;  wᵢ: its weight in this step

With wᵢ = rows of source i / all rows, n task rows and k replayed ones give

    L = (n · L_task + k · L_replay) / (n + k)

so a row weighs the same whatever it holds, though a window of prose has ten times the label tokens
of a short answer. The share in tokens is another number, and ``shares`` gives both.

A source whose parts carry a teacher's logits is not fitted to its tokens, but to the teacher:

    Lᵢ = KL(p ‖ q) = Σ_v p_v (log p_v - log q_v)        p: the teacher's, q: the model's

the mean over tokens, as in knowledge distillation. This direction asks q to cover all that p says;
KL(q ‖ p) would be content with a part of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .batches import IGNORE, Batch, Encoded
from .history import Record
from .loss_scaling import LossScaler
from .objective import autocast, half, labelled_logits, summed_loss
from .ranks import Alone, part_seeds, seed_part

TASK = "task"


@dataclass(frozen=True)
class Part(Batch):
    """A batch of one source. ``weight`` is its source's in the step's loss, whatever the parts.

    ``teacher`` (label tokens, vocab): the logits to stay near; None where labels are learnt.
    """

    source: str = TASK
    weight: float = 1.0
    teacher: Tensor | None = None


class MixedLoss:
    """The objective of a step whose parts are of several sources; ``losses`` keeps each source's.

    >>> from minilora.training.batches import Encoded, pad
    >>> batch = pad([Encoded([1, 2], [1, 2])])
    >>> model = nn.Sequential(nn.Embedding(3, 3))
    >>> objective = MixedLoss()
    >>> total = objective(model, [Part(batch.ids, batch.labels, None, 0, "old", 0.25)])
    >>> round(total / objective.losses["old"], 6)
    0.25
    """

    def __init__(
        self, bf16: bool = False, scaler: LossScaler | None = None, ranks: Alone | None = None
    ):
        self.dtype, self.scaler, self.ranks = half(bf16, scaler), scaler, ranks or Alone()
        self.losses: dict[str, float] = {}

    def noted(self, records: Iterator[Record]) -> Iterator[Record]:
        """Each step's record with the loss of each source in it, ``<source>_loss``."""
        for record in records:
            yield record | {f"{source}_loss": loss for source, loss in self.losses.items()}

    def __call__(self, model: nn.Module, parts: Sequence[Any]) -> float:
        """Σᵢ wᵢ Lᵢ in nats a label token, of ``Part``s; leaves its gradient behind."""
        tokens: Counter[str] = Counter()
        for part in parts:
            tokens[part.source] += part.answer_tokens
        scale = 1.0 if self.scaler is None else self.scaler.scale
        losses, seeds = [0.0] * len(parts), part_seeds(len(parts))
        for number in self.ranks.own(len(parts)):
            part = parts[number]
            seed_part(seeds, number)
            with autocast(part.ids.device, self.dtype):
                loss = summed_part(model, part) / tokens[part.source]
            (scale * part.weight * loss).backward()
            losses[number] = loss.item()
        self.losses, total = dict.fromkeys(tokens, 0.0), 0.0
        for part, value in zip(parts, self.ranks.add_up(model, losses), strict=True):
            self.losses[part.source] += value
            total += part.weight * value
        return total


def summed_part(model: nn.Module, part: Part) -> Tensor:
    """Cross-entropy, or divergence from the teacher, summed over the label tokens, in nats."""
    if part.teacher is None:
        return summed_loss(model, part)
    logits, _ = labelled_logits(model, part)
    return divergence(part.teacher, logits)


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """Σ over tokens of KL(softmax teacher ‖ softmax logits): both (tokens, vocab), in nats."""
    p, q = teacher.float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)  # torch puts the model's side first


def rows_until(step: int, task_rows: int, share: float, all_shares: float) -> int:
    """How many rows of a source come before a step, if each step has ``task_rows`` of the task.

    Of all rows a ``share`` is the source's, and 1 - ``all_shares`` the task's. So a step has
    n · share / (1 - all_shares) rows on average; each gets the whole rows that are due.

    >>> [rows_until(step, 16, 0.25, 0.25) for step in range(4)]
    [0, 5, 10, 16]
    """
    return math.floor(round(step * task_rows * share / (1 - all_shares), 6))


def label_tokens(rows: Sequence[Encoded]) -> float:
    """Label tokens a row, on average; the first of a row is given, not predicted.

    >>> label_tokens([Encoded([1, 2, 3], [IGNORE, 2, 3]), Encoded([4, 5], [4, 5])])
    1.5
    """
    return sum(label != IGNORE for row in rows for label in row.labels[1:]) / len(rows)


def shares(
    task: Sequence[Encoded], sources: Sequence[tuple[float, Sequence[Encoded]]]
) -> list[tuple[float, float]]:
    """For each source (share in rows, its rows): the share in rows, and that in label tokens.

    >>> answer, window = Encoded([0] * 9, [IGNORE] * 7 + [1] * 2), Encoded([0] * 7, [1] * 7)
    >>> shares([answer], [(0.25, [window])])
    [(0.25, 0.5)]
    """
    task_share = 1 - sum(share for share, _ in sources)
    weighted = [share * label_tokens(rows) for share, rows in sources]
    all_tokens = task_share * label_tokens(task) + sum(weighted)
    by_source = zip(sources, weighted, strict=True)
    return [(share, tokens / all_tokens) for (share, _), tokens in by_source]

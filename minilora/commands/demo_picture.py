"""What the demo asks, and its figure: the answers, what was learned, what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plots.charts import finetune_figure
from ..training.history import History

ASKED = (
    ("Log: Hull 90%, Fuel 12%, Oxygen 98%.", "How much Fuel is left?"),
    ("Log: Engines stop, Fuel 12%, Oxygen 98%.", "Status?"),
    ("Log: Shield 7%, Cargo 61%, Engines half, Radar 33%.", "How are the Radar and the Engines?"),
)


def picture_of(
    old: Sequence[str],
    new: Sequence[str],
    before: dict[str, float],
    after: dict[str, float],
    without: dict[str, float] | None,
) -> dict[str, Any]:
    """The answers and the losses on prose, as ``finetune_figure`` takes them."""
    kinds = {"this adapter": after}
    if without is not None:
        kinds = {"with replay": after, "without, after\na fifth of\nthe steps": without}
    bits = {kind: each["bits_per_byte"] - before["bits_per_byte"] for kind, each in kinds.items()}
    log, question = ASKED[1]
    return {
        "forgotten": bits,
        "answers": [f"{log}  {question}", f"  before  {old[1]}", f"  after   {new[1]}"],
    }


def draw(history: History, full: int, trainable: int, told: dict[str, Any]) -> Any:
    """The demo's figure from its history."""
    keys = ("step", "valid_loss", "exact_match")
    curves = ([record[key] for record in history.validations] for key in keys)
    return finetune_figure(history.losses, *curves, full, trainable, **told)

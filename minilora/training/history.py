"""What happened in a run: its records, in memory and on disk, and the warnings they lead to."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..files import write_text
from .config import TrainConfig

Record = dict[str, Any]
Callback = Callable[[Record], None]


@dataclass
class History:
    """One record a step (``step, loss, lr, grad_norm, tokens, seconds``), one a validation.

    With replay a step's record has each source's loss too (``task_loss``, ``windows_loss``, …), and
    ``replay`` says of each source which share of the rows and of the label tokens it has.

    >>> History(steps=[{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]).losses
    [2.5, 2.0]
    """

    steps: list[Record] = field(default_factory=list)
    validations: list[Record] = field(default_factory=list)
    best_step: int | None = None
    interrupted: bool = False
    unsaved: bool = False  # interrupted, and the state could not be written
    warnings: list[str] = field(default_factory=list)
    memory: Record | None = None  # with measure_memory: the fields of ledger.Measured
    replay: list[Record] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Training loss of each step, nats an answer token."""
        return [record["loss"] for record in self.steps]


def overfitting(history: History, window: int = 3) -> str | None:
    """A warning when the validation loss rose ``window`` times in a row, to 5% above its best."""
    losses = [v["valid_loss"] for v in history.validations]
    recent = losses[-window - 1 :]
    rising = len(recent) == window + 1 and all(a < b for a, b in pairwise(recent))
    if not rising or losses[-1] < 1.05 * min(losses):
        return None
    step = history.validations[losses.index(min(losses))]["step"]
    best = f"{min(losses):.4f} at step {step}"
    return (
        f"validation loss rose {window} times running, from {best} to {losses[-1]:.4f}: the model "
        "begins to memorise; stop here, or use more examples, a smaller rank or rate, or dropout"
    )


def diverged(step: int, loss: float, norm: float, history: History, config: TrainConfig) -> str:
    """The message about a loss or a gradient that is not finite, with its likely cause."""
    failed = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    recent = history.losses[-5:]
    if recent and recent[-1] > 2 * min(history.losses):
        cause = f"the loss had been rising, so lr={config.lr} is probably too high"
    elif not recent:
        cause = (
            "it is the first step, so the weights or the data are probably bad already "
            "(NaN in the base?)"
        )
    else:
        cause = (
            "it came without warning, so look at the examples of this step, "
            f"then try a smaller lr than {config.lr}"
        )
        cause += "; bf16 may overflow" if config.bf16 else ""
    last = [round(x, 4) for x in recent]
    kept = f"The weights of step {step} are kept"
    return f"step {step + 1}: the {failed}. Last losses: {last}; {cause}. {kept}"


def overflowed(step: int, checkpoint: Path | None, config: TrainConfig) -> str:
    """The message about a step, sound itself, that made a weight infinite or NaN."""
    if checkpoint is not None and checkpoint.is_file():
        earlier = f"go on from {checkpoint}, which is older, with resume=True"
    else:
        earlier = "load the base again; checkpoint_every=N keeps earlier weights on disk"
    return (
        f"step {step + 1}: a trained weight is not finite after the step, though its loss and "
        f"gradient were. lr={config.lr} is probably too high for this dtype. The weights of step "
        f"{step} are gone: {earlier}"
    )


class MetricsLog:
    """``metrics.jsonl``: a line a step or validation.

    A resumed run drops the lines that came after its checkpoint. A full disk does not end a run: it
    is warned of once, and the file is written anew, with all lines, as soon as that works.
    """

    def __init__(self, file: Path, history: History):
        self.file, self.history, self.is_behind, self.warned = file, history, False, False
        self.write_all()

    def write_all(self) -> None:
        """Every record there is."""
        history = self.history
        records = sorted([*history.steps, *history.validations], key=lambda record: record["step"])
        write_text(self.file, "".join(json_line(record) for record in records))

    def write(self, record: Record) -> None:
        """Append one record, which is in the history already."""
        try:
            if self.is_behind:
                self.write_all()
            else:
                with self.file.open("a", encoding="utf-8", newline="\n") as log:
                    log.write(json_line(record))
            self.is_behind = False
        except OSError as error:
            self.is_behind = True
            if not self.warned:
                warnings.warn(f"{self.file} lacks lines, training continues: {error}", stacklevel=2)
            self.warned = True


def json_line(record: Record) -> str:
    """One record as a line of JSON."""
    return json.dumps(record, ensure_ascii=False) + "\n"

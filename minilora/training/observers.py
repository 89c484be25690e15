"""Who watches a run: each observer gets a step's record, and none of them changes the step.

    Journal      the history, metrics.jsonl, the callbacks, the bar
    Validation   loss and answers on the held-out side, every so many steps; the best state
    Checkpoints  the state on disk, every so many steps

``interrupt_flag`` turns Ctrl-C into a flag that the loop reads between steps.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..methods.training_hooks import best_from
from .batches import Batch
from .checkpoint import State, save_checkpoint
from .config import TrainConfig
from .evaluation import answers, share_right
from .examples import Document, Example, Learnt, asked_and_expected
from .history import Callback, History, MetricsLog, Record, overfitting
from .objective import summed_loss
from .progress import Progress
from .ranks import Alone


class Journal:
    """Writes every record down, and passes a copy on to each callback."""

    def __init__(
        self, history: History, out: Path | None, callbacks: Sequence[Callback], bar: Progress
    ):
        self.history, self.callbacks, self.bar = history, callbacks, bar
        self.metrics = None if out is None else MetricsLog(out / "metrics.jsonl", history)

    def __call__(self, record: Record) -> None:
        """One step is done."""
        self.history.steps.append(record)
        self.report(record)
        self.bar.advance(record["step"], record)

    def report(self, record: Record) -> None:
        """A record of any kind, to the log on disk and the callbacks."""
        if self.metrics is not None:
            self.metrics.write(record)
        for callback in self.callbacks:
            callback(copy.deepcopy(record))  # a callback may change its copy


@dataclass
class Validation:
    """Measures the held-out side, remembers the best state, warns of overfitting."""

    model: nn.Module
    batches: Sequence[Batch]
    examples: Sequence[Learnt]
    config: TrainConfig
    state: State
    journal: Journal
    ranks: Alone = field(default_factory=Alone)

    def __call__(self, record: Record) -> None:
        """One step is done: validate when it is time, and after the last one."""
        every, step = self.config.validate_every, record["step"]
        if every and (step % every == 0 or step == self.config.steps):
            self.validate(step)

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Loss on the held-out side and, if asked for, exact match and a sample answer."""
        if not self.batches:
            return
        history, config = self.journal.history, self.config
        self.model.eval()
        losses = self.ranks.each(
            len(self.batches), lambda n: summed_loss(self.model, self.batches[n]).item()
        )
        tokens = sum(batch.answer_tokens for batch in self.batches)
        record: Record = {"step": step, "valid_loss": sum(losses) / tokens}
        asked = [example for example in self.examples if not isinstance(example, Document)]
        if config.valid_answers and asked:
            record |= self.answer(asked[: config.valid_answers])
        self.model.train()
        history.validations.append(record)
        self.journal.report(record)
        self.journal.bar.validated(record)
        first = best_from(self.model)
        losses = [v["valid_loss"] for v in history.validations if v["step"] >= first]
        if step >= first and record["valid_loss"] == min(losses):
            history.best_step = step
            if config.keep_best:
                self.state.remember_best()
        if (message := overfitting(history)) and not history.warnings:
            history.warnings.append(message)
            warnings.warn(message, stacklevel=2)

    def answer(self, asked: Sequence[Learnt]) -> dict[str, Any]:
        """The share of held-out examples answered to the letter, and the first answer."""
        at_once = self.config.valid_batch or self.config.part_size
        given = answers(self.model, asked, at_once)
        messages, expected = asked_and_expected(asked[0])
        question = (
            asked[0].instruction if isinstance(asked[0], Example) else messages[-1]["content"]
        )
        sample = {"asked": question, "answer": given[0], "wanted": expected}
        return {"exact_match": share_right(given, asked), "sample": sample}


@dataclass
class Checkpoints:
    """Writes the run's state every so many steps, and whenever it is told to."""

    file: Path | None
    state: State
    identity: Record
    history: History
    config: TrainConfig

    def __call__(self, record: Record) -> None:
        """One step is done: save when it is time, and after the last one."""
        step, every = record["step"], self.config.checkpoint_every
        if every and (step % every == 0 or step == self.config.steps):
            self.save()

    def save(self) -> bool:
        """Write the state, if the run has a folder, and say whether it is there.

        A full disk is warned of and does not end the run: the next save may succeed.
        """
        if self.file is None:
            return False
        try:
            save_checkpoint(self.file, self.state, self.identity, asdict(self.history))
        except OSError as error:
            warnings.warn(f"no checkpoint of step {self.state.step}: {error}", stacklevel=2)
            return False
        return True


@contextlib.contextmanager
def interrupt_flag(flag: threading.Event | None = None) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, which the loop reads between steps; a second one stops."""
    flag = flag or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals belong to the main thread
        return

    def set_flag(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, set_flag)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)

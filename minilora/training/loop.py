"""One training loop, for an adapter or for everything: what has ``requires_grad`` is what trains.

    for each step:   draw the batch that (seed, step) fixes, in ``accumulate`` parts
                     loss = Σ over answer tokens of -log p(token) / answer tokens in the whole batch
                     clip the gradient, set the rate, step AdamW

The loss is divided by the answer tokens of *all* parts, not averaged part by part: otherwise accumulation changes the
objective whenever parts differ in length. Rates follow a linear warm-up and a cosine to zero (arXiv 1608.03983 eq. 5).

Nothing random survives a step: dropout is seeded by (seed, step), the order of examples too. A resumed run therefore
continues to the same bits (tests/training/test_loop.py). Denormal numbers are flushed to zero, for the whole process: vanishing
gradients made a CPU matrix product 50 times slower.

Left out: several machines, loss scaling (bf16 needs none), other optimizers."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.layer import lora_layers
from ..model.transformer import Llama
from .batches import IGNORE, Batch, Encoded, batch_indices, encode_all, pack, pad
from .checkpoint import State, checksum, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Example, Task
from .evaluation import answers, check_answers, share_right
from .history import Callback, History, MetricsLog, Record, diverged, overfitting
from .progress import Progress


def train(
    model: nn.Module,
    data: Task | Sequence[Example],
    config: TrainConfig | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> History:
    """Train what has ``requires_grad``, in place, on a task (its ``valid`` side validates) or on plain examples.

    ``settings`` are fields of ``TrainConfig``. Callbacks get each step's and each validation's record. Ctrl-C ends after
    the step in progress, with the state saved if there is an ``out``. Raises ``ValueError`` when nothing would train, and
    ``FloatingPointError``, leaving the last good weights, when the loss or the gradient is not finite.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> history = minilora.train(model, minilora.data.naval_log(8, 2), steps=2, batch_size=4, progress=False)
    >>> len(history.losses)
    2
    """
    config = replace(config or TrainConfig(), **settings)
    task = data if isinstance(data, Task) else Task("examples", tuple(data), ())
    check_trainable(model)
    check_examples(task)
    if config.pack and not isinstance(model, Llama):
        raise ValueError(
            f"pack=True needs a minilora Llama: {type(model).__name__} would let packed examples see each other"
        )
    if config.valid_answers and task.valid:
        check_answers(model)
    run = Run(model, task, config, callbacks)
    torch.set_flush_denormal(True)
    was_training = model.training
    devices = [p.device for p in run.parameters.values() if p.device.type == "cuda"][:1]
    with (
        torch.random.fork_rng(devices),
        interrupt_flag() as interrupted,
        Progress(config.steps, config.progress) as bar,
    ):
        try:
            model.train()
            run.go(interrupted, bar)
        finally:
            model.train(was_training)
    return run.state.history


def check_trainable(model: nn.Module) -> None:
    """Raise ``ValueError`` when no parameter would learn, or when an adapter is merged and so would not."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "nothing would train: no parameter has requires_grad; inject(model, LoraConfig(...)) first"
        )
    if any(not layer.enabled for _, layer in lora_layers(model)):
        raise ValueError(
            "the adapters are switched off by disable_adapter: train outside that context"
        )
    if merged := [name for name, layer in lora_layers(model) if layer.merged]:
        raise ValueError(
            f"{merged[0]} is merged, so its A and B take no part: unmerge(model) before training"
        )
    # transformers' tokenizers have none
    if not hasattr(found := getattr(model, "tokenizer", None), "prompt"):
        raise ValueError(
            f"train needs model.tokenizer, got {type(found).__name__}: load_base() finds it in a folder with a tokenizer.json; "
            "elsewhere set model.tokenizer = minilora.tokenizer.Tokenizer('folder/tokenizer.json')"
        )


def check_examples(task: Task) -> None:
    """Raise ``ValueError`` when there is nothing to learn from, or something else than examples."""
    if not task.train:
        raise ValueError("train needs at least one example, got none")
    if wrong := [e for e in (*task.train, *task.valid) if not isinstance(e, Example)]:
        raise ValueError(
            f"train needs minilora.Example(instruction, output, input), got {type(wrong[0]).__name__}: {wrong[0]!r:.80}"
        )


class Run:
    """One run's moving parts: the data as tokens, the optimizer, and the ``State`` that a checkpoint holds."""

    def __init__(
        self, model: nn.Module, task: Task, config: TrainConfig, callbacks: Sequence[Callback]
    ):
        self.model, self.task, self.config, self.callbacks = model, task, config, callbacks
        tokenizer: Any = model.tokenizer
        self.train_rows = encode_all(tokenizer, task.train, config.max_length)
        self.valid_rows = encode_all(tokenizer, task.valid, config.max_length) if task.valid else []
        self.parameters: dict[str, Tensor] = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = build_optimizer(self.parameters, config)
        self.state = State(self.parameters, self.optimizer, History())
        self.out = None if config.out is None else Path(config.out)
        settings = {
            k: v
            for k, v in asdict(config).items()
            if k not in ("out", "resume", "progress", "checkpoint_every")
        }
        self.identity: Record = {
            **settings,
            "data": zlib.crc32(
                repr(
                    [[row.ids for row in rows] for rows in (self.train_rows, self.valid_rows)]
                ).encode()
            ),
            "adapters": zlib.crc32(
                repr(
                    [(name, repr(layer), layer.lora_dropout) for name, layer in lora_layers(model)]
                ).encode()
            ),
            "frozen weights": checksum(
                [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
            ),
            "parameters": sum(p.numel() for p in self.parameters.values()),
        }
        if config.resume:
            self.state.history = History(
                **load_checkpoint(self.checkpoint_file, self.state, self.identity)
            )
        if self.out is not None:
            self.metrics = MetricsLog(self.out / "metrics.jsonl", self.state.history)

    @property
    def checkpoint_file(self) -> Path:
        """Where the state goes."""
        assert self.out is not None
        return self.out / "checkpoint.safetensors"

    def go(self, interrupted: threading.Event, bar: Progress) -> None:
        """All steps that are left."""
        config, history = self.config, self.state.history
        if (
            not history.validations
            and not history.steps
            and config.validate_every
            and self.valid_rows
        ):
            self.validate(0, bar)
        while self.state.step < config.steps and not interrupted.is_set():
            started = time.perf_counter()
            record = self.step(self.state.step)
            record["seconds"] = round(time.perf_counter() - started, 4)
            self.state.step += 1
            history.steps.append(record)
            self.report(record)
            bar.advance(self.state.step, record)
            last = self.state.step == config.steps
            if (
                self.valid_rows
                and config.validate_every
                and (self.state.step % config.validate_every == 0 or last)
            ):
                self.validate(self.state.step, bar)
            if config.checkpoint_every and (self.state.step % config.checkpoint_every == 0 or last):
                save_checkpoint(self.checkpoint_file, self.state, self.identity, asdict(history))
        history.interrupted = self.state.step < config.steps
        if history.interrupted:
            if self.out is not None:
                save_checkpoint(self.checkpoint_file, self.state, self.identity, asdict(history))
            saved = f"; go on with resume=True, out={str(self.out)!r}" if self.out else ""
            bar.say(f"interrupted after step {self.state.step}{saved}")
        elif (
            config.keep_best
            and self.state.best is not None
            and history.best_step != self.state.step
        ):
            self.state.restore_best()
            bar.say(
                f"kept the state of step {history.best_step}, which has the lowest validation loss"
            )

    def step(self, step: int) -> Record:
        """One optimizer step; returns its record. Weights change only if loss and gradient are finite."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        self.optimizer.zero_grad()  # whatever an earlier, failed attempt left behind
        parts = self.batches(step)
        tokens = sum(part.answer_tokens for part in parts)
        loss = 0.0
        for part in parts:
            with autocast(self.device, config.bf16):
                part_loss = summed_loss(self.model, part) / tokens
            part_loss.backward()
            loss += part_loss.item()
        norm = nn.utils.clip_grad_norm_(
            list(self.parameters.values()), config.clip or math.inf
        ).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise FloatingPointError(diverged(step, loss, norm, self.state.history, config))
        rate = rate_at(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "step": step + 1,
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "tokens": sum(p.ids.numel() for p in parts),
        }

    def batches(self, step: int) -> list[Batch]:
        """The parts of one step's batch, on the model's device."""
        config = self.config
        chosen = [
            self.train_rows[i]
            for i in batch_indices(len(self.train_rows), config.batch_size, step, config.seed)
        ]
        size = config.batch_size // config.accumulate
        return [self.collate(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Padded or packed, as configured."""
        return (pack(rows, self.config.max_length) if self.config.pack else pad(rows)).to(
            self.device
        )

    @torch.no_grad()
    def validate(self, step: int, bar: Progress) -> None:
        """Loss on the held-out side, exact match if wanted, a sample answer; keep the best state, warn of overfitting."""
        self.model.eval()
        history, config = self.state.history, self.config
        parts = [
            self.collate(self.valid_rows[i : i + 32]) for i in range(0, len(self.valid_rows), 32)
        ]
        total = sum(summed_loss(self.model, part).item() for part in parts)
        record: Record = {
            "step": step,
            "valid_loss": total / sum(part.answer_tokens for part in parts),
        }
        if config.valid_answers:
            asked = self.task.valid[: config.valid_answers]
            found = answers(self.model, asked)
            record["exact_match"] = share_right(found, asked)
            record["sample"] = {
                "asked": asked[0].instruction,
                "answer": found[0],
                "wanted": asked[0].output,
            }
        self.model.train()
        history.validations.append(record)
        self.report(record)
        bar.validated(record)
        lowest = min(v["valid_loss"] for v in history.validations)
        if record["valid_loss"] == lowest:
            history.best_step = step
            if config.keep_best:
                self.state.remember_best()
        if (message := overfitting(history)) and not history.warnings:
            history.warnings.append(message)
            warnings.warn(message, stacklevel=2)

    def report(self, record: Record) -> None:
        """To the metrics log and the callbacks (a copy each: a callback may do with it what it likes)."""
        if self.out is not None:
            self.metrics.write(record)
        for callback in self.callbacks:
            callback(copy.deepcopy(record))


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy summed over the answer tokens, in nats. Our Llama computes logits only where there is a label."""
    # (rows, time - 1): the last token predicts nothing
    ids, wanted = batch.ids[:, :-1], batch.labels[:, 1:]
    answer = wanted != IGNORE
    if isinstance(model, Llama):
        segments = None if batch.segments is None else batch.segments[:, :-1]
        logits = model.lm_head(model.model(ids, segments, None)[answer])  # (answer tokens, vocab)
    else:
        found = model(ids)
        logits = getattr(found, "logits", found)[answer]  # transformers' models wrap theirs
    return F.cross_entropy(logits.float(), wanted[answer], reduction="sum")


def rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of a step: up in a line, then down in a cosine (arXiv 1608.03983 eq. 5).

    >>> round(rate_at(99, TrainConfig(steps=100, lr=1.0)), 4)
    0.0003
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step + 1 - warm) / (config.steps + 1 - warm)))


def build_optimizer(parameters: dict[str, Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); norms and biases are not decayed."""
    groups = [
        {
            "params": [p for p in parameters.values() if p.dim() > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager:
    """bfloat16 for the matrix products, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


@contextlib.contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag that the loop reads between steps; a second one stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals belong to the main thread
        return

    def note(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)

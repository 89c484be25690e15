"""One training loop, for an adapter or for everything: whatever has ``requires_grad`` is trained.

    for each step:   the batch that (seed, step) fixes, in ``accumulate`` parts
                     the loss of the batch, and its gradient       (objective.py)
                     clip the gradient, set the rate, step AdamW   (optimizer.py)
                     yield a record; whoever watches looks at it   (observers.py)

Nothing random survives a step: dropout is seeded by (seed, step), the order of examples too. A
resumed run therefore continues to the same bits (tests/training/test_loop.py). ``train`` flushes
denormal numbers to zero, for the whole process: vanishing gradients made a CPU matrix product 50
times slower.

Left out: several machines, loss scaling (bf16 needs none), other optimizers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import adapter_layers
from .batches import Batch, ChatTokenizer, batch_indices, encode_all, pack, pad
from .checkpoint import State, checksum, digest, load_checkpoint
from .config import TrainConfig
from .data import Example, Task
from .evaluation import check_answers
from .history import Callback, History, Record, diverged
from .objective import keeps_examples_apart, mean_over_answers
from .observers import Checkpoints, Journal, Validation, interrupt_flag
from .optimizer import build_optimizer, rate_at
from .progress import Progress

VALID_ROWS = 32  # held-out examples computed at once


def steps(
    model: nn.Module,
    batches: Callable[[int], Sequence[Batch]],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    objective: Callable[[nn.Module, Sequence[Batch]], float] = mean_over_answers,
    schedule: Callable[[int, float], float] | None = None,
    start: int = 0,
) -> Iterator[Record]:
    """One optimizer step after the other; yields each step's record.

    ``batches(step)`` gives the parts of a step's batch; ``objective(model, parts)`` their loss,
    with its gradient left in the parameters; ``schedule(step, peak)`` the rate of a group. Weights
    change only if loss and gradient are finite; otherwise raises ``NotFinite``. A step seeds
    torch's generator.
    """
    rate = schedule or partial(rate_at, config=config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()  # whatever an earlier, failed attempt left behind
    for step in range(start, config.steps):
        began = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        parts = batches(step)
        loss = objective(model, parts)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            optimizer.zero_grad()
            raise NotFinite(step, loss, norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, group["initial_lr"])
        optimizer.step()
        optimizer.zero_grad()
        yield {
            "step": step + 1,
            "loss": loss,
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "tokens": sum(part.ids.numel() for part in parts),
            "seconds": round(time.perf_counter() - began, 4),
        }


class NotFinite(FloatingPointError):
    """The loss or the gradient of a step is not finite."""

    def __init__(self, step: int, loss: float, norm: float):
        super().__init__(f"step {step + 1}: loss {loss}, gradient norm {norm}")
        self.step, self.loss, self.norm = step, loss, norm


def train(
    model: nn.Module,
    data: Task | Sequence[Example],
    config: TrainConfig | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> History:
    """Train what has ``requires_grad``, in place, on examples or on a task.

    A task's ``valid`` side validates. ``settings`` are fields of ``TrainConfig``. Callbacks get
    each step's and each validation's record. Ctrl-C ends after the step in progress, with the state
    saved if there is an ``out``.
    Raises ``ValueError`` when nothing would train, and ``FloatingPointError``, leaving the last
    good weights, when the loss or the gradient is not finite.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> task = minilora.data.naval_log(8, 2)
    >>> history = minilora.train(model, task, steps=2, batch_size=4, progress=False)
    >>> len(history.losses)
    2
    """
    config = replace(config or TrainConfig(), **settings)
    task = data if isinstance(data, Task) else Task("examples", tuple(data), ())
    check_run(model, task, config)
    run = set_up(model, task, config)
    torch.set_flush_denormal(True)
    was_training = model.training
    devices = [p.device for p in run.parameters.values() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices), Progress(config.steps, config.progress) as bar:
        try:
            model.train()
            return go(model, task, config, run, callbacks, bar)
        finally:
            model.train(was_training)


def go(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    run: Run,
    callbacks: Sequence[Callback],
    bar: Progress,
) -> History:
    """All steps that are left, observed; then the best state, or word of the interruption."""
    state, history = run.state, run.state.history
    out = None if config.out is None else Path(config.out)
    journal = Journal(history, out, callbacks, bar)
    validation = Validation(model, run.valid_batches, task.valid, config, state, journal)
    checkpoints = Checkpoints(checkpoint_file(config), state, run.identity, history, config)
    with interrupt_flag() as interrupted:
        if config.validate_every and not history.validations and not history.steps:
            validation.validate(0)
        records = run.steps(model, config)
        try:
            while not interrupted.is_set() and (record := next(records, None)) is not None:
                for observe in (journal, validation, checkpoints):
                    observe(record)
        except NotFinite as error:
            message = diverged(error.step, error.loss, error.norm, history, config)
            raise FloatingPointError(message) from error
    history.interrupted = state.step < config.steps
    if history.interrupted:
        checkpoints.save()
        resume = f"; continue with resume=True, out={str(out)!r}" if out else ""
        bar.say(f"interrupted after step {state.step}{resume}")
    elif config.keep_best and state.best is not None and history.best_step != state.step:
        state.restore_best()
        best = f"step {history.best_step}, which has the lowest validation loss"
        bar.say(f"kept the state of {best}")
    return history


@dataclass
class Run:
    """One run's parts: batches, trained parameters, optimizer, and the state a checkpoint holds."""

    batches: Callable[[int], Sequence[Batch]]
    valid_batches: Sequence[Batch]
    parameters: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    state: State
    identity: Record

    def steps(self, model: nn.Module, config: TrainConfig) -> Iterator[Record]:
        """The steps that are left."""
        objective, start = partial(mean_over_answers, bf16=config.bf16), self.state.step
        return steps(model, self.batches, self.optimizer, config, objective=objective, start=start)


def set_up(model: nn.Module, task: Task, config: TrainConfig) -> Run:
    """Encode the data, build the optimizer, and with ``resume`` read the checkpoint."""
    tokenizer: Any = model.tokenizer
    rows = encode_all(tokenizer, task.train, config.max_length)
    valid = encode_all(tokenizer, task.valid, config.max_length) if task.valid else []
    parameters: dict[str, Tensor] = {
        name: p for name, p in model.named_parameters() if p.requires_grad
    }
    device = next(iter(parameters.values())).device
    optimizer = build_optimizer(parameters, config.lr, config.weight_decay)
    state = State(parameters, optimizer, History())

    def collate(rows: Sequence[Any]) -> Batch:
        return (pack(rows, config.max_length) if config.pack else pad(rows)).to(device)

    def batches(step: int) -> list[Batch]:
        """The parts of one step's batch, on the model's device."""
        chosen = [rows[i] for i in batch_indices(len(rows), config.batch_size, step, config.seed)]
        size = config.batch_size // config.accumulate
        return [collate(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    valid_batches = [collate(valid[i : i + VALID_ROWS]) for i in range(0, len(valid), VALID_ROWS)]
    identity = identity_of(model, config, [row.ids for row in [*rows, *valid]])
    file = checkpoint_file(config)
    if config.resume and file is not None:
        state.history = History(**load_checkpoint(file, state, identity))
    return Run(batches, valid_batches, parameters, optimizer, state, identity)


def checkpoint_file(config: TrainConfig) -> Path | None:
    """Where a run's state is saved; None without ``out``."""
    return None if config.out is None else Path(config.out) / "checkpoint.safetensors"


def identity_of(model: nn.Module, config: TrainConfig, ids: Sequence[list[int]]) -> Record:
    """What a checkpoint must have in common with a run that resumes it."""
    settings = asdict(config)
    for name in ("out", "resume", "progress", "checkpoint_every"):  # these may change
        del settings[name]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        **settings,
        "data": digest(ids),
        "adapters": digest({path: repr(layer) for path, layer in adapter_layers(model)}),
        "frozen weights": checksum([*frozen, *model.buffers()]),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def check_run(model: nn.Module, task: Task, config: TrainConfig) -> None:
    """Raise ``ValueError`` when this model cannot be trained on this task in this way."""
    check_trainable(model)
    check_examples(task)
    if config.pack and not keeps_examples_apart(model):
        raise ValueError(
            f"pack=True needs a minilora Llama: {type(model).__name__} would let packed examples "
            "see each other"
        )
    if config.valid_answers and task.valid:
        check_answers(model)


def check_trainable(model: nn.Module) -> None:
    """Raise ``ValueError`` when nothing would learn, or the model cannot be asked for logits."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "nothing would train: no parameter has requires_grad; "
            "inject(model, LoraConfig(...)) first"
        )
    layers = list(adapter_layers(model))
    if any(not layer.enabled for _, layer in layers):
        raise ValueError(
            "the adapters are switched off by disable_adapter: train outside that context"
        )
    if merged := [path for path, layer in layers if layer.merged]:
        raise ValueError(
            f"{merged[0]} is merged, so its adapter takes no part: unmerge(model) before training"
        )
    # transformers' models say so in their config
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: minilora.train continues one text, and "
            "has no second input; train it with transformers' Trainer, where injected adapters "
            "work as they are"
        )
    if not isinstance(tokenizer := getattr(model, "tokenizer", None), ChatTokenizer):
        raise ValueError(
            f"train needs model.tokenizer, got {type(tokenizer).__name__}: load_base() finds it in "
            "a folder with a tokenizer.json; elsewhere set "
            "model.tokenizer = minilora.Tokenizer('folder/tokenizer.json')"
        )


def check_examples(task: Task) -> None:
    """Raise ``ValueError`` when there is nothing to learn from, or anything but examples."""
    if not task.train:
        raise ValueError("train needs at least one example, got none")
    for example in (*task.train, *task.valid):
        if not isinstance(example, Example):
            raise ValueError(
                "train needs minilora.Example(instruction, output, input), "
                f"got {type(example).__name__}: {example!r:.80}"
            )

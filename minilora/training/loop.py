"""One training loop, for an adapter or for everything: whatever has ``requires_grad`` is trained.

    for each step:   the batch that (seed, step) fixes, in ``accumulate`` parts
                     the loss of the batch, and its gradient       (objective.py)
                     clip the gradient, set the rate, step AdamW   (optimizer.py)
                     yield a record; whoever watches looks at it   (observers.py)

Nothing random survives a step: dropout is seeded by (seed, step), the order of examples too. A
resumed run therefore continues to the same bits (tests/training/test_loop.py). ``train`` flushes
denormal numbers to zero, for the whole process: vanishing gradients made a CPU matrix product 50
times slower.

Left out: several machines, loss scaling (bf16 needs none), other optimizers, models that see the
whole text at once (a masked one would be asked for answers that it is shown).
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
from ..lora.paths import plain_path, unwrapped
from .batches import Batch, Encoded, batch_indices, encode_all, pack, pad
from .checkpoint import State, checksum, digest, load_checkpoint
from .config import TrainConfig
from .examples import Learnt, Task
from .history import Callback, History, Record, diverged, overflowed
from .limits import all_finite, check_run, check_sizes
from .mixture import MixedLoss
from .objective import mean_over_answers
from .observers import Checkpoints, Journal, Validation, interrupt_flag
from .optimizer import build_optimizer, rate_at
from .progress import Progress
from .replay import Mixture, Replay, as_list, describe


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
    change only if loss and gradient are finite. Raises ``NotFinite`` when they are not, or when
    the step leaves weights that are not. A step seeds torch's generator.
    """
    rate = schedule or partial(rate_at, config=config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as torch's own schedules
    for step in range(start, config.steps):
        began = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        optimizer.zero_grad()  # what a failed attempt, or whoever watches, left behind
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
        if not all_finite(parameters):
            raise NotFinite(step, loss, norm, weights=True)
        yield {
            "step": step + 1,
            "loss": loss,
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "tokens": sum(part.ids.numel() for part in parts),
            "seconds": round(time.perf_counter() - began, 4),
        }


class NotFinite(FloatingPointError):
    """The loss or the gradient of a step is not finite, or what the step made of the weights."""

    def __init__(self, step: int, loss: float, norm: float, weights: bool = False):
        super().__init__(f"step {step + 1}: loss {loss}, gradient norm {norm}")
        self.step, self.loss, self.norm, self.weights = step, loss, norm, weights


def train(
    model: nn.Module,
    data: Task | Sequence[Learnt],
    config: TrainConfig | None = None,
    *,
    replay: Replay | Sequence[Replay] | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> History:
    """Train what has ``requires_grad``, in place, on examples or on a task.

    A task's ``valid`` side validates. ``settings`` are fields of ``TrainConfig``. ``replay`` puts
    other rows beside the task's, so that less is forgotten: ``SelfReplay``, ``Examples``, ``Prose``
    or a list of them. Callbacks get each step's and each validation's record. Ctrl-C ends after the
    step in progress, with the state saved if there is an ``out``. Raises ``ValueError`` when
    nothing would train, and ``FloatingPointError``, leaving the last good weights, when the loss or
    the gradient is not finite.

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
    run = set_up(model, task, config, replay)
    config = run.config
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
    for account in history.replay:
        bar.say(describe(account))
    with interrupt_flag() as interrupted:
        if config.validate_every and not history.validations and not history.steps:
            validation.validate(0)
        records = run.steps(model, config)
        try:
            while not interrupted.is_set() and (record := next(records, None)) is not None:
                state.step = record["step"]
                for observe in (journal, validation, checkpoints):
                    observe(record)
        except NotFinite as error:
            if error.weights:
                message = overflowed(error.step, checkpoints.file, config)
            else:
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
    config: TrainConfig
    objective: Callable[[nn.Module, Sequence[Batch]], float]

    def steps(self, model: nn.Module, config: TrainConfig) -> Iterator[Record]:
        """The steps that are left."""
        objective, start = self.objective, self.state.step
        records = steps(
            model, self.batches, self.optimizer, config, objective=objective, start=start
        )
        return objective.noted(records) if isinstance(objective, MixedLoss) else records


def set_up(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    replay: Replay | Sequence[Replay] | None = None,
) -> Run:
    """Encode the data, build the optimizer, and with ``resume`` read the checkpoint."""
    tokenizer: Any = unwrapped(model).tokenizer
    rows = encode_all(tokenizer, task.train, config.max_length)
    valid = encode_all(tokenizer, task.valid, config.max_length) if task.valid else []
    check_sizes(model, [*rows, *valid])
    config = config.for_examples(len(rows))
    parameters: dict[str, Tensor] = {
        plain_path(model, name): p for name, p in model.named_parameters() if p.requires_grad
    }
    device = next(iter(parameters.values())).device
    optimizer = build_optimizer(parameters, config.lr, config.weight_decay)
    state = State(parameters, optimizer, History())

    def collate(rows: Sequence[Encoded]) -> Batch:
        return (pack(rows, config.max_length) if config.pack else pad(rows)).to(device)

    def batches(step: int) -> list[Batch]:
        """The parts of one step's batch, on the model's device."""
        chosen = [rows[i] for i in batch_indices(len(rows), config.batch_size, step, config.seed)]
        size = config.part_size
        return [collate(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    at_once = config.valid_batch or config.part_size
    valid_batches = [collate(valid[i : i + at_once]) for i in range(0, len(valid), at_once)]
    identity = identity_of(model, config, rows, valid) | {"replay": None, "teacher": None}
    step_batches: Callable[[int], Sequence[Batch]] = batches
    objective: Any = partial(mean_over_answers, bf16=config.bf16)
    if replays := as_list(replay):
        mixture = Mixture(replays, model, task, config)
        check_sizes(model, mixture.rows)
        state.history.replay = mixture.accounts(rows)
        identity |= mixture.identity()
        step_batches, objective = mixture.batches(batches), MixedLoss(config.bf16)
    file = checkpoint_file(config)
    if config.resume and file is not None:
        state.history = History(**load_checkpoint(file, state, identity))
    return Run(
        step_batches, valid_batches, parameters, optimizer, state, identity, config, objective
    )


# settings that a resumed run may have otherwise; epochs have become steps
MAY_CHANGE = ("out", "resume", "progress", "checkpoint_every", "epochs", "valid_batch")


def checkpoint_file(config: TrainConfig) -> Path | None:
    """Where a run's state is saved; None without ``out``."""
    return None if config.out is None else Path(config.out) / "checkpoint.safetensors"


def identity_of(
    model: nn.Module, config: TrainConfig, rows: Sequence[Encoded], valid: Sequence[Encoded]
) -> Record:
    """What a checkpoint must have in common with a run that resumes it."""
    settings = asdict(config)
    for name in MAY_CHANGE:
        del settings[name]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        **settings,
        "data": digest([[(row.ids, row.labels) for row in side] for side in (rows, valid)]),
        "adapters": digest({path: repr(layer) for path, layer in adapter_layers(model)}),
        "frozen weights": checksum([*frozen, *model.buffers()]),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }

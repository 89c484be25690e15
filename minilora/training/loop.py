"""One training run, for an adapter or for everything: its steps, watched from start to end.

``train`` checks the model and the task (limits.py), makes the run's parts (run.py), takes its steps
(steps.py) and lets the observers see each (observers.py).

``train`` flushes denormal numbers to zero, for the whole process: vanishing gradients made a CPU
matrix product 50 times slower.

Left out: models that see the whole text at once (a masked one would be asked for answers that it is
shown).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..ledger.measurement import measure
from .config import TrainConfig, TrainSettings
from .examples import Learnt, Task
from .history import Callback, History, Record, diverged, overflowed
from .limits import check_run
from .observers import Checkpoints, Journal, Validation, interrupt_flag
from .progress import Progress
from .ranks import Alone, RankLost
from .recomputation import recomputing
from .replay import Replay
from .rounding import Standstill
from .run import Run, checkpoint_file, set_up
from .steps import NotFinite

if TYPE_CHECKING:
    from typing_extensions import Unpack


def train(
    model: nn.Module,
    data: Task | Sequence[Learnt],
    config: TrainConfig | None = None,
    *,
    replay: Replay | Sequence[Replay] | None = None,
    callbacks: Sequence[Callback] = (),
    ranks: Alone | None = None,
    **settings: Unpack[TrainSettings],
) -> History:
    """Train what has ``requires_grad``, in place, on examples or on a task.

    A task's ``valid`` side validates. ``settings`` are fields of ``TrainConfig``. ``replay`` puts
    other rows beside the task's, so that less is forgotten: ``SelfReplay``, ``Examples``, ``Prose``
    or a list of them. Callbacks get each step's and each validation's record. ``ranks``, as
    ``scale.join`` gives them, train together. Ctrl-C ends after the step in progress, with the
    state saved if there is an ``out``. Raises ``ValueError`` when nothing would train, and
    ``FloatingPointError``, leaving the last good weights, when the loss or the gradient is not
    finite.

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
    run = set_up(model, task, config, replay, ranks=ranks)
    torch.set_flush_denormal(True)
    was_training = model.training
    devices = [p.device for p in run.parameters.values() if p.device.type == "cuda"][:1]
    with (
        torch.random.fork_rng(devices),
        recomputing(model, config.checkpointing),
        Progress(run.config.steps, config.progress and run.ranks.writes) as bar,
    ):
        try:
            model.train()
            return go(model, task, run, callbacks, bar)
        finally:
            model.train(was_training)


def go(
    model: nn.Module, task: Task, run: Run, callbacks: Sequence[Callback], bar: Progress
) -> History:
    """All steps that are left, observed; then the best state, or word of the interruption."""
    ranks = run.ranks
    with interrupt_flag(ranks.interrupted):
        records = observed(model, task, run, callbacks, bar)
        while not ranks.stopped() and next(records, None) is not None:
            pass
    return end(run, bar)


def observed(
    model: nn.Module, task: Task, run: Run, callbacks: Sequence[Callback], bar: Progress
) -> Iterator[Record]:
    """The first validation, at once; then the steps that are left, each seen by the observers."""
    state, history, config = run.state, run.state.history, run.config
    out = Path(config.out) if config.out is not None and run.ranks.writes else None
    journal = Journal(history, out, callbacks if run.ranks.writes else (), bar)
    validation = Validation(model, run.valid_batches, task.valid, config, state, journal, run.ranks)
    observers = (journal, validation, checkpoints_of(run), Standstill(state))
    for note in run.notes:
        bar.say(note)
    if config.validate_every and not history.validations and not history.steps:
        validation.validate(0)
    records = run.steps(model, config)
    if config.measure_memory:
        records = measured(records, model, run)
    return seen(records, run, observers)


def seen(
    records: Iterator[Record], run: Run, observers: Sequence[Callable[[Record], None]]
) -> Iterator[Record]:
    """The same records, each given out once the observers have seen it.

    Raises ``FloatingPointError``, leaving the last good weights.
    """
    state, history, config = run.state, run.state.history, run.config
    try:
        for record in records:
            state.step = record["step"]
            for observe in observers:
                observe(record)
            yield record
    except NotFinite as error:
        if error.weights:
            message = overflowed(error.step, checkpoint_file(config), config)
        else:
            message = diverged(error.step, error.loss, error.norm, history, config)
        raise FloatingPointError(message) from error
    except RankLost as error:  # the weights are those of the last step that all ranks took
        saved = run.ranks.writes and checkpoints_of(run).save()
        then = f"{how_to_continue(config)} (a command: --resume)" if saved else ""
        raise RankLost(f"step {state.step + 1}: {error}{then}") from error


def end(run: Run, bar: Progress) -> History:
    """Save what was interrupted; or go back to the best state."""
    state, history, config = run.state, run.state.history, run.config
    history.interrupted = state.step < config.steps
    if history.interrupted:
        saved = checkpoints_of(run).save()
        history.unsaved = config.out is not None and not saved
        then = how_to_continue(config) if saved else ""
        bar.say(f"interrupted after step {state.step}{then}")
    elif config.keep_best and state.best is not None and history.best_step != state.step:
        state.restore_best()
        best = f"step {history.best_step}, which has the lowest validation loss"
        bar.say(f"kept the state of {best}")
    return history


def how_to_continue(config: TrainConfig) -> str:
    """The end of a message, for whoever called ``train``; a command adds its own."""
    return f"; continue with resume=True, out={str(config.out)!r}"


def checkpoints_of(run: Run) -> Checkpoints:
    """What writes a run's state to its folder, if it has one."""
    file = checkpoint_file(run.config) if run.ranks.writes else None
    history = run.state.history
    return Checkpoints(file, run.state, run.identity, history, run.config)


def measured(records: Iterator[Record], model: nn.Module, run: Run) -> Iterator[Record]:
    """The same records; the memory of the second step, or of the only one, is measured."""
    left = run.config.steps - run.state.step
    if left > 1:
        yield next(records)  # AdamW makes its moments
    taken: list[Record] = []
    if left:
        memory = measure(lambda: taken.append(next(records)), model, run.optimizer)
        run.state.history.memory = asdict(memory)
    yield from taken
    yield from records

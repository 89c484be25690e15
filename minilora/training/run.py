"""One run's parts: its batches, what it trains, the optimizer, and the state a checkpoint holds.

``set_up`` makes them out of a model, a task and settings, or, with ``resume``, out of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.attached import adapters_of
from ..lora.paths import plain_path, unwrapped
from ..methods.training_hooks import check_run as check_method
from ..methods.training_hooks import training_state, update_and_allocate, with_extra_loss
from .batches import Batch, Encoded, encode_all
from .checkpoint import State, checksum, digest, load_checkpoint
from .config import TrainConfig
from .examples import Task
from .history import History, Record
from .limits import check_sizes
from .loss_scaling import LossScaler
from .mixture import MixedLoss
from .objective import keeps_examples_apart, mean_over_answers
from .optimizer import build_optimizer, rate_at
from .order import Layout, choose_layout, in_parts
from .ranks import Alone
from .replay import Mixture, Replay, as_list, describe
from .steps import steps


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
    notes: list[str]  # what to know before the first step
    ranks: Alone  # the processes that train together

    def steps(self, model: nn.Module, config: TrainConfig) -> Iterator[Record]:
        """The steps that are left."""
        records = steps(
            model,
            self.batches,
            self.optimizer,
            config,
            objective=with_extra_loss(self.objective, self.state.scaler),
            scaler=self.state.scaler,
            start=self.state.step,
        )
        if isinstance(self.objective, MixedLoss):
            records = self.objective.noted(records)
        for record in records:
            if record["grad_norm"] is None:  # skipped, and an allocation may be due all the same
                update_and_allocate(model, record["step"])
            yield record


def set_up(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    replay: Replay | Sequence[Replay] | None = None,
    encode: Callable[..., list[Encoded]] = encode_all,
    ranks: Alone | None = None,
) -> Run:
    """Encode the data, build the optimizer, and with ``resume`` read the checkpoint."""
    ranks = ranks or Alone()
    replays = as_list(replay)
    if ranks.sharded and replays:  # the rows that are due vary, and with them a step's parts
        raise ValueError("replay does not work on a sharded base: train without replay=")
    tokenizer: Any = unwrapped(model).tokenizer
    rows = encode(tokenizer, task.train, config.max_length)
    held_out = encode(tokenizer, task.valid, config.max_length) if task.valid else []
    valid = sample_of(held_out, config)
    check_sizes(model, [*rows, *valid])
    config = config.for_examples(len(rows))
    parameters: dict[str, Tensor] = {
        plain_path(model, name): p for name, p in model.named_parameters() if p.requires_grad
    }
    device = next(iter(parameters.values())).device
    check_method(model, config.steps)
    rates: dict[str, Any] = {"weight_decay": config.weight_decay, "model": model}
    rates["loraplus_ratio"] = config.loraplus_ratio
    optimizer = build_optimizer(parameters, config.lr, **rates)
    scaler = LossScaler() if config.fp16 else None
    state = State(parameters, optimizer, History(), config.steps, scaler, training_state(model))
    optimizer.register_step_post_hook(lambda *_: update_and_allocate(model, state.step + 1))
    layout = choose_layout(rows, config, keeps_examples_apart(model))
    identity = identity_of(model, config, rows, valid) | {"layout": asdict(layout)}
    config = ranks.divide(config)  # after the identity: a run may go on with other ranks
    lengths = tuple(len(row.ids) for row in rows)

    def batches(step: int) -> list[Batch]:
        """The parts of one step's batch, on the model's device."""
        chosen = [rows[i] for i in layout.indices(lengths, config, step)]
        return [layout.collate(part).to(device) for part in in_parts(chosen, config)]

    valid_batches = [batch.to(device) for batch in valid_parts(valid, config, layout)]
    step_batches: Callable[[int], Sequence[Batch]] = batches
    objective: Any = partial(mean_over_answers, bf16=config.bf16, scaler=scaler, ranks=ranks)
    if replays:  # before the checkpoint is read: the teacher is the model as it is now
        mixture = Mixture(replays, model, task, config)
        check_sizes(model, mixture.rows)
        state.history.replay = mixture.accounts(rows)
        identity |= mixture.identity()
        step_batches, objective = mixture.batches(batches), MixedLoss(config.bf16, scaler, ranks)
    ranks.check_same(identity | start_of(parameters, valid_batches, config))
    file = checkpoint_file(config)
    if config.resume and file is not None:
        with ranks.copy_of(file) as own_file:
            state.history = History(**load_checkpoint(own_file, state, identity))
    notes = [*what_trains(model, parameters, config), *layout.notes(), *longer(state, config)]
    notes += [*ranks.notes(model, config), *drawn_from(held_out, len(valid))]
    notes += map(describe, state.history.replay)
    state.planned = config.steps
    made = parameters, optimizer, state, identity, config, objective, notes
    return Run(step_batches, valid_batches, *made, ranks)


def drawn_from(held_out: Sequence[Encoded], taken: int) -> Iterator[str]:
    """Whether a validation takes a part of the held-out examples only."""
    if taken < len(held_out):
        yield (
            f"a validation takes {taken} of {len(held_out)} held-out examples, drawn by the "
            "seed (valid_examples=0: all)"
        )


def what_trains(
    model: nn.Module, parameters: dict[str, Tensor], config: TrainConfig
) -> Iterator[str]:
    """A note where no adapter was injected, so that the model itself changes."""
    trained = sum(p.numel() for p in parameters.values())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if trained > frozen and not adapters_of(model):
        yield (
            f"no adapter: {'all' if not frozen else 'most'} parameters of the model itself train "
            f"({trained:,}), at a peak rate of {config.lr:g}; inject(model, LoraConfig(...)) first "
            "trains an adapter instead"
        )


def longer(state: State, config: TrainConfig) -> Iterator[str]:
    """A note where a run is resumed with other steps: what the cosine does then."""
    if state.planned is not None and state.planned != config.steps:
        last = rate_at(state.step - 1, config.lr, replace(config, steps=state.planned))
        next_one = rate_at(state.step, config.lr, config)
        yield (
            f"resumed with steps={config.steps} instead of {state.planned}: warm-up and cosine are "
            f"those of {config.steps} steps, so the rate goes from {last:.3g} in step {state.step} "
            f"to {next_one:.3g} in the next"
        )


def start_of(
    parameters: dict[str, Tensor], valid_batches: Sequence[Batch], config: TrainConfig
) -> Record:
    """What ranks must have in common besides the identity: where they begin and where they end."""
    return {
        "steps": config.steps,
        "validation": len(valid_batches),
        "first weights": checksum(parameters.values()),
        "resume": config.resume and config.out is not None,  # who resumes asks for rank 0's file
    }


def sample_of(valid: Sequence[Encoded], config: TrainConfig) -> list[Encoded]:
    """As many held-out examples as the settings want, drawn by the seed, in their own order."""
    most = config.valid_examples or len(valid)
    random = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(valid), generator=random)[:most].tolist()
    return [valid[i] for i in sorted(drawn)]


def valid_parts(valid: Sequence[Encoded], config: TrainConfig, layout: Layout) -> Iterator[Batch]:
    """The held-out examples in batches of the size that is trained."""
    rows = sorted(valid, key=lambda row: len(row.ids)) if layout.grouped else valid
    at_once = config.valid_batch or config.part_size
    for start in range(0, len(rows), at_once):
        yield layout.collate(rows[start : start + at_once])


# settings that a resumed run may have otherwise; epochs have become steps
MAY_CHANGE = (
    *("steps", "epochs", "out", "resume", "progress", "checkpoint_every", "valid_batch"),
    *("checkpointing", "measure_memory"),
)


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
    learnt = {id(tensor) for tensor in training_state(model).values()}
    buffers = [buffer for buffer in model.buffers() if id(buffer) not in learnt]
    layers = dict(adapters_of(model))
    kinds = ", ".join(sorted({type(layer).__name__ for layer in layers.values()}))
    return {
        **settings,
        "data": digest([[(row.ids, row.labels) for row in side] for side in (rows, valid)]),
        "adapters": f"{kinds} {digest({path: repr(layer) for path, layer in layers.items()})}",
        "frozen weights": checksum([*frozen, *buffers]),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "replay": None,
        "teacher": None,
    }

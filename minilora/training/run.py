"""One run's parts: its batches, what it trains, the optimizer, and the state a checkpoint holds.

``set_up`` makes them out of a model, a task and settings, or, with ``resume``, out of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_layer import adapter_layers
from ..lora.paths import plain_path, unwrapped
from ..methods.training_hooks import check_run as check_method
from ..methods.training_hooks import training_state, update_and_allocate, with_extra_loss
from .batches import Batch, Encoded, encode_all
from .checkpoint import State, checksum, digest, load_checkpoint
from .config import TrainConfig
from .examples import Task
from .history import History, Record
from .limits import check_sizes
from .mixture import MixedLoss
from .objective import keeps_examples_apart, mean_over_answers
from .optimizer import build_optimizer
from .order import Layout, choose_layout, in_parts
from .replay import Mixture, Replay, as_list
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

    def steps(self, model: nn.Module, config: TrainConfig) -> Iterator[Record]:
        """The steps that are left."""
        objective, start = self.objective, self.state.step
        total = with_extra_loss(objective)
        records = steps(model, self.batches, self.optimizer, config, objective=total, start=start)
        return objective.noted(records) if isinstance(objective, MixedLoss) else records


def set_up(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    replay: Replay | Sequence[Replay] | None = None,
) -> Run:
    """Encode the data, build the optimizer, and with ``resume`` read the checkpoint."""
    replays = as_list(replay)
    tokenizer: Any = unwrapped(model).tokenizer
    rows = encode_all(tokenizer, task.train, config.max_length)
    valid = encode_all(tokenizer, task.valid, config.max_length) if task.valid else []
    valid = sample_of(valid, config)
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
    state = State(parameters, optimizer, History(), training_state(model))
    optimizer.register_step_post_hook(lambda *_: update_and_allocate(model, state.step + 1))
    layout = choose_layout(rows, config, keeps_examples_apart(model))
    lengths = tuple(len(row.ids) for row in rows)

    def batches(step: int) -> list[Batch]:
        """The parts of one step's batch, on the model's device."""
        chosen = [rows[i] for i in layout.indices(lengths, config, step)]
        return [layout.collate(part).to(device) for part in in_parts(chosen, config)]

    valid_batches = [batch.to(device) for batch in held_out(valid, config, layout)]
    identity = identity_of(model, config, rows, valid) | {"layout": asdict(layout)}
    step_batches: Callable[[int], Sequence[Batch]] = batches
    objective: Any = partial(mean_over_answers, bf16=config.bf16)
    if replays:  # before the checkpoint is read: the teacher is the model as it is now
        mixture = Mixture(replays, model, task, config)
        check_sizes(model, mixture.rows)
        state.history.replay = mixture.accounts(rows)
        identity |= mixture.identity()
        step_batches, objective = mixture.batches(batches), MixedLoss(config.bf16)
    file = checkpoint_file(config)
    if config.resume and file is not None:
        state.history = History(**load_checkpoint(file, state, identity))
    made = parameters, optimizer, state, identity, config, objective
    return Run(step_batches, valid_batches, *made)


def sample_of(valid: Sequence[Encoded], config: TrainConfig) -> list[Encoded]:
    """As many held-out examples as the settings want, drawn by the seed, in their own order."""
    most = config.valid_examples or len(valid)
    random = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(valid), generator=random)[:most].tolist()
    return [valid[i] for i in sorted(drawn)]


def held_out(valid: Sequence[Encoded], config: TrainConfig, layout: Layout) -> Iterator[Batch]:
    """The held-out examples in batches of the size that is trained."""
    rows = sorted(valid, key=lambda row: len(row.ids)) if layout.grouped else valid
    at_once = config.valid_batch or config.part_size
    for start in range(0, len(rows), at_once):
        yield layout.collate(rows[start : start + at_once])


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
    learnt = {id(tensor) for tensor in training_state(model).values()}
    buffers = [buffer for buffer in model.buffers() if id(buffer) not in learnt]
    layers = dict(adapter_layers(model))
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

"""Several adapters trained at once on one base: their batches stand side by side in one.

    ids     = [job 1's rows; job 2's rows; …]                 one pass through the frozen base
    y[j]   += (x[j] A[j]ᵀ) B[j]                               lora/rows.py: a group of rows a job
    losses  = each job's own, over its own answers            one backward of their sum

No job's loss depends on another's A or B, so the gradient of the sum is each job's own gradient,
and its optimizer, clipping, rate and validation are those of a run of its own: ``steps`` and the
observers, unchanged. Each only gets its loss and gradient from the common pass. So every adapter
ends where its own run would have, up to the order of sums.

A run that diverges is taken out, and the others go on: a NaN stays in the rows of its job.

What it saves is what a small batch wastes, the calls of a pass, and the encoding of a task that
several jobs have. It saves no arithmetic, and a CPU's core is busy with few rows. On one core a
step of five runs of the shipped base took 3.4 times the processor time of one run's step with one
row (a pass of 2,048 places), 3.7 times with four and 4.5 times with eight (passes of 600).

Source: mLoRA (arXiv 2312.02515), several adapters trained over one copy of the base.

Left out: methods other than LoRA, adapters on the head or an embedding, modules that train whole,
replay, float16, dropout on a card, rows of transformers' models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.config import LoraConfig
from ..lora.injection import check_container, inject
from ..lora.layer import LoRALayer, lora_layers
from ..lora.paths import unwrapped
from ..lora.twin import twin
from ..model.generation import CausalLM
from .batches import Batch, encoder
from .config import TrainConfig
from .examples import Task
from .history import History, Record
from .limits import check_run
from .loop import end, observed
from .objective import autocast
from .observers import interrupt_flag
from .progress import Progress
from .ranks import part_seeds
from .run import Run, set_up
from .side_by_side import SharedLinear, check_trained, summed_losses


@dataclass(frozen=True)
class Job:
    """One adapter to train: on what, of which config, with which settings.

    >>> from minilora import data
    >>> Job(data.naval_log(8, 2), settings=TrainConfig(seed=3)).config.r
    8
    """

    task: Task
    config: LoraConfig = field(default_factory=LoraConfig)
    settings: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Outcome:
    """A job's end: the model with its adapter, to ask or to save, and what happened.

    ``error`` says why the run was taken out; the adapter is then that of its last good step.

    >>> from minilora import data, load_base
    >>> jobs = {"a": Job(data.naval_log(8, 2), settings=TrainConfig(steps=1, batch_size=2))}
    >>> outcome = train_many(load_base(), jobs)["a"]
    >>> outcome.error, len(outcome.history.losses)
    ('', 1)
    """

    model: Any
    history: History
    error: str = ""


def train_many(
    base: nn.Module,
    jobs: Mapping[str, Job],
    *,
    callbacks: Sequence[Callable[[str, Record], None]] = (),
) -> dict[str, Outcome]:
    """Train an adapter for each job, side by side; each comes out as from a run of its own.

    That run is: ``torch.manual_seed(seed); inject(base, job.config); train(base, job.task,
    job.settings)``. Seeds, ranks, rates, targets, tasks and numbers of steps may differ; bf16 may
    not. The base is frozen, as by ``inject``, and otherwise stays as it is; the models that come
    out share its weights. Callbacks get a job's name and each record. Ctrl-C ends all after the
    step in progress. Raises ``ValueError``, before anything is trained, for a job that could not
    be trained alone, or not in this company.

    >>> from minilora import data, load_base
    >>> settings = TrainConfig(steps=2, batch_size=4, validate_every=0)
    >>> jobs = {s: Job(data.naval_log(8, 2), settings=replace(settings, seed=s)) for s in (0, 1)}
    >>> [len(outcome.history.losses) for outcome in train_many(load_base(), jobs).values()]
    [2, 2]
    """
    check_jobs(base, jobs)
    wanted = [(p, p.requires_grad) for p in base.parameters()]
    try:
        with torch.random.fork_rng(devices_of(base)):
            encode = encoder()
            trainees = [Trainee(name, base, job, encode) for name, job in jobs.items()]
    except Exception:
        for parameter, required in wanted:
            parameter.requires_grad_(required)
        raise
    common = CommonPass(base, trainees)
    torch.set_flush_denormal(True)
    with torch.random.fork_rng(devices_of(base)), interrupt_flag() as interrupted:
        for trainee in trainees:
            trainee.start(common, callbacks)
        while common.running and not interrupted.is_set():
            for trainee in list(common.running):
                trainee.advance(common)
    return {trainee.name: trainee.outcome() for trainee in trainees}


QUIET = Progress(0, show=False)
MOST_TOKENS = 640  # of a pass on a CPU


def check_jobs(base: nn.Module, jobs: Mapping[str, Job]) -> None:
    """Raise ``ValueError`` for a model or jobs that cannot be trained together."""
    check_container(base)
    if not isinstance(unwrapped(base), CausalLM):
        raise ValueError(f"train_many needs a minilora Llama, got a {type(base).__name__}")
    if not jobs:
        raise ValueError("train_many needs at least one job, got none")
    for name, job in jobs.items():
        if not isinstance(job, Job):
            raise ValueError(f"{name}: expected a Job(task, config, settings), got {job!r:.80}")
        lora, settings = job.config, job.settings
        if not isinstance(lora, LoraConfig) or lora.use_dora or lora.init_lora_weights is not True:
            raise ValueError(f"{name}: train_many trains plain LoRA, got {lora!r:.80}")
        if lora.lora_dropout and devices_of(base):
            raise ValueError(
                f"{name}: lora_dropout={lora.lora_dropout} on a card needs a run alone: side by "
                "side each job draws its dropout from the CPU's generator"
            )
        if settings.fp16 or settings.measure_memory or settings.checkpointing:
            raise ValueError(f"{name}: fp16, measure_memory and checkpointing need a run alone")
    if len({job.settings.bf16 for job in jobs.values()}) > 1:
        raise ValueError("bf16 must be the same for all jobs: they go through the base together")


def devices_of(model: nn.Module) -> list[torch.device]:
    """The card that a model is on, if any; its random state is to be kept."""
    return [p.device for p in model.parameters() if p.device.type == "cuda"][:1]


class Trainee:
    """A job on its way: its own model and run, and the generator of its steps."""

    def __init__(self, name: str, base: nn.Module, job: Job, encode: Callable[..., Any]):
        self.name, self.error = name, ""
        self.model, self.task = twin(unwrapped(base)), job.task
        settings = replace(job.settings, progress=False)
        torch.manual_seed(settings.seed)
        try:
            inject(self.model, job.config)
            check_trained(self.model)
            check_run(self.model, job.task, settings)
            self.run: Run = set_up(self.model, job.task, settings, encode=encode)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self.layers: dict[str, LoRALayer] = dict(lora_layers(self.model))
        self.parameters = list(self.run.parameters.values())
        self.own_batches, self.run.batches = self.run.batches, self.batches
        self.next_batch: tuple[int, Sequence[Batch]] = (-1, ())

    def batches(self, step: int) -> Sequence[Batch]:
        """The parts of a step's batch, made once for the common pass and for ``steps``."""
        if self.next_batch[0] != step:
            self.next_batch = (step, self.own_batches(step))
        return self.next_batch[1]

    def start(self, common: CommonPass, callbacks: Sequence[Callable[[str, Record], None]]) -> None:
        """Make the generator of steps, whose losses come from the common pass."""
        own = [partial(each, self.name) for each in callbacks]
        self.run.objective = lambda model, parts: common.loss(self)
        self.records: Iterator[Record] = observed(self.model, self.task, self.run, own, QUIET)
        self.model.train()

    def advance(self, common: CommonPass) -> None:
        """Take the next step, or leave."""
        try:
            if next(self.records, None) is not None:
                return
        except FloatingPointError as error:
            self.error = str(error)
        self.model.eval()
        common.leave(self)

    def outcome(self) -> Outcome:
        """What came out; a run that was taken out keeps its last good weights."""
        history = self.run.state.history if self.error else end(self.run, QUIET)
        return Outcome(self.model, history, self.error)


class CommonPass:
    """The base with everybody's adapters beside it, and the losses and gradients of a pass."""

    def __init__(self, base: nn.Module, trainees: Sequence[Trainee]):
        self.running = list(trainees)
        self.model: Any = twin(unwrapped(base)).train()
        self.sharing: dict[str, SharedLinear] = {}
        self.ready: dict[str, tuple[float, list[Tensor | None]]] = {}
        self.bf16 = trainees[0].run.config.bf16
        for path in dict.fromkeys(path for trainee in trainees for path in trainee.layers):
            self.sharing[path] = SharedLinear(self.model.get_submodule(path))
            self.model.set_submodule(path, self.sharing[path])

    def leave(self, trainee: Trainee) -> None:
        """This trainee takes no further steps."""
        self.running.remove(trainee)
        self.ready.pop(trainee.name, None)

    def loss(self, trainee: Trainee) -> float:
        """A trainee's loss, with its gradient left in its parameters, as an objective does."""
        if trainee.name not in self.ready:
            self.compute()
        loss, gradients = self.ready.pop(trainee.name)
        for parameter, gradient in zip(trainee.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def compute(self) -> None:
        """One forward and backward for the next step of everybody who is still here."""
        batches = {each.name: each.batches(each.run.state.step) for each in self.running}
        losses = dict.fromkeys(batches, 0.0)
        for each in self.running:
            each.run.optimizer.zero_grad()
        for number in range(max(map(len, batches.values()))):
            present = [each for each in self.running if number < len(batches[each.name])]
            parts = {each.name: len(batches[each.name]) for each in present}
            states = {each.name: dropout_state(each, number, parts[each.name]) for each in present}
            for group in in_passes([(each, batches[each.name][number]) for each in present]):
                self.pass_over(group, batches, states, losses)
        for each in self.running:
            self.ready[each.name] = losses[each.name], [p.grad for p in each.parameters]
            each.run.optimizer.zero_grad()

    def pass_over(
        self,
        group: Sequence[tuple[Trainee, Batch]],
        batches: Mapping[str, Sequence[Batch]],
        states: dict[str, Tensor],
        losses: dict[str, float],
    ) -> None:
        """Some trainees' parts through the base together; adds to their losses and gradients."""
        present, parts = [each for each, _ in group], [part for _, part in group]
        names = [each.name for each in present]
        for path, shared in self.sharing.items():
            shared.take([each.layers.get(path) for each in present], parts, states, names)
        with autocast(parts[0].ids.device, torch.bfloat16 if self.bf16 else None):
            summed = summed_losses(self.model, parts)
        tokens = [sum(part.answer_tokens for part in batches[name]) for name in names]
        shares = [loss / count for loss, count in zip(summed, tokens, strict=True)]
        torch.stack(shares).sum().backward()
        for name, share in zip(names, shares, strict=True):
            losses[name] += share.item()


def in_passes(pairs: Sequence[tuple[Trainee, Batch]]) -> Iterator[list[tuple[Trainee, Batch]]]:
    """The parts in groups that go through the base together: all of them on a card, and on a CPU
    as many as have ``MOST_TOKENS`` places. More would not fit its caches, and take longer.
    """
    group: list[tuple[Trainee, Batch]] = []
    for pair in pairs:
        parts = [part for _, part in [*group, pair]]
        rows, time = (max(part.ids.shape[axis] for part in parts) for axis in (0, 1))
        full = pair[1].ids.device.type == "cpu" and len(parts) * rows * time > MOST_TOKENS
        if group and full:
            yield group
            group = []
        group.append(pair)
    yield group


def dropout_state(trainee: Trainee, part: int, parts: int) -> Tensor:
    """The random state with which a part of a trainee's next step begins in a run alone."""
    config, step = trainee.run.config, trainee.run.state.step
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    if seeds := part_seeds(parts, generator):
        generator.manual_seed(seeds[part])
    return generator.get_state()

"""Replay: old rows beside the new ones, so that a fine-tune forgets less.

    L = (n · L_task + k · L_replay) / (n + k)      n task rows and k replayed rows in a step

    Examples, Prose   L_replay = cross-entropy of old examples, of old text
    SelfReplay        L_replay = KL(p ‖ q), with p the model before and q the model now

A fine-tune moves the model on every input, and its loss looks at the new ones only. Replay puts
other inputs beside them. ``SelfReplay`` needs none of the old data: before the first step the model
samples windows of text from itself, and in training it stays near its own former distribution there
(``teacher.py``). With prompts it answers those, and its answers are replayed: a model keeps what is
replayed and no more, so windows of prose keep its prose, not its manners.

Sources. Sampling from the model itself and staying near it by KL(p ‖ q): arXiv 2505.13811, which
penalizes the estimate -log q of its own samples, and draws them from the first token of all texts,
where ours begin with any token; arXiv 2605.26097, which takes the KL too. Text that the model
writes, refined and learnt as text: Self-Synthesized Rehearsal (arXiv 2403.01244). (Read: abstracts,
and summaries of the methods.) Left out: choosing among the windows, a temperature.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..checks import is_number
from ..lora.paths import unwrapped
from .batches import Batch, Encoded, encode_all, pad
from .checkpoint import checksum, digest
from .config import TrainConfig, check_count
from .examples import Document, Example, Learnt, Task, asked_and_expected
from .history import Record
from .mixture import TASK, Part, rows_until, shares
from .order import indices_between
from .teacher import Teacher, sample_answers, sample_windows

Prompt = str | tuple[str, str] | Learnt


@dataclass(frozen=True)
class Examples:
    """Replay old examples: ``share`` of all rows are theirs, on average over the steps.

    >>> import minilora
    >>> minilora.Examples(minilora.data.polite_log(100, 1), share=0.1).share
    0.1
    """

    task: Task | Sequence[Learnt]
    share: float = 0.1

    def __post_init__(self) -> None:
        check_share(self.share)
        if not self.examples:
            raise ValueError("Examples needs at least one old example, got none")

    @property
    def examples(self) -> tuple[Learnt, ...]:
        """What is replayed: a task's train side, or the examples given."""
        return tuple(self.task.train if isinstance(self.task, Task) else self.task)


@dataclass(frozen=True)
class Prose:
    """Replay old text, cut into windows of ``tokens``.

    >>> import minilora
    >>> minilora.Prose(["To the Congress of the United States."], share=0.1).tokens
    80
    """

    texts: Sequence[str]
    share: float = 0.1
    tokens: int = 80

    def __post_init__(self) -> None:
        check_share(self.share)
        check_count("tokens", self.tokens, 2)
        if isinstance(self.texts, str) or not all(isinstance(text, str) for text in self.texts):
            raise ValueError(f"Prose needs a list of texts, got {self.texts!r:.60}; one text: [it]")
        if not any(text.strip() for text in self.texts):
            raise ValueError("Prose needs at least one text with words in it, got none")


@dataclass(frozen=True)
class SelfReplay:
    """Replay what the model writes itself, and stay near what it was there (KL). No old data.

    What it was: the model with its adapter switched off. Where more than an adapter trains, in a
    full fine-tune or beside trained biases, it is a frozen copy of the model as the run begins.
    With ``teacher="start"`` it always is, adapter and all: for one that is trained on and shall
    keep what it knows.

    ``windows`` of ``tokens`` tokens, sampled once, before the first step. With ``prompts`` it is
    the model's answers to those that are replayed, at most ``windows`` of them: texts,
    (instruction, context) pairs, examples; or a function that makes one of each example of the new
    task, such as its question without the key word that the new answers need.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> task, own = minilora.data.naval_log(8, 2), minilora.SelfReplay(windows=4, tokens=16)
    >>> short = {"steps": 2, "batch_size": 3, "progress": False}
    >>> history = minilora.train(model, task, replay=own, **short)
    >>> history.replay[0]["rows"], history.steps[0]["windows_loss"] < 1e-6  # still the same model
    (0.25, True)
    """

    share: float = 0.25
    windows: int = 384
    tokens: int = 80
    prompts: Sequence[Prompt] | Callable[[Any], Prompt] | None = None
    teacher: Literal["base", "start"] = "base"

    def __post_init__(self) -> None:
        check_share(self.share)
        check_count("windows", self.windows, 1)
        check_count("tokens", self.tokens, 2)
        if self.teacher not in ("base", "start"):
            raise ValueError(f'teacher must be "base" or "start", got {self.teacher!r}')
        if isinstance(self.prompts, str):
            raise ValueError(f"prompts must be a list, got the text {self.prompts!r:.60}")
        if self.prompts is not None and not callable(self.prompts) and not self.prompts:
            raise ValueError("prompts must hold at least one prompt, got none; None: plain windows")


Replay = Examples | Prose | SelfReplay


def check_share(share: float) -> None:
    """Raise ``ValueError`` unless a share leaves room for the task."""
    if not is_number(share) or not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, a share of all rows, got {share!r}")


def as_list(replay: Replay | Sequence[Replay] | None) -> list[Replay]:
    """One replay, several or none. Raises ``ValueError`` unless they leave room for the task."""
    given = [] if replay is None else [replay] if isinstance(replay, Replay) else list(replay)
    if wrong := [each for each in given if not isinstance(each, Replay)]:
        raise ValueError(
            "replay must be minilora.SelfReplay, Examples or Prose, or a list of them, "
            f"got {type(wrong[0]).__name__}: {wrong[0]!r:.60}"
        )
    if (total := sum(each.share for each in given)) >= 1:
        raise ValueError(
            f"the shares of replay add up to {total:g}: they must leave rows for the task"
        )
    return given


def chosen_prompts(replay: SelfReplay, task: Task, seed: int) -> list[Any]:
    """At most ``windows`` prompts, as ``generate_texts`` takes them, in an order of the seed's."""
    given: Any = replay.prompts
    prompts = [given(example) for example in task.train] if callable(given) else list(given)
    if len(prompts) > replay.windows:
        prompts = random.Random(seed).sample(prompts, replay.windows)
    return [as_asked(prompt) for prompt in prompts]


def as_asked(prompt: Prompt) -> Any:
    """A prompt as (instruction, context), or as the messages before a conversation's answer."""
    if isinstance(prompt, str):
        return prompt, ""
    if isinstance(prompt, Example):
        return prompt.instruction, prompt.input
    if isinstance(prompt, tuple) and [type(part) for part in prompt] == [str, str]:
        return prompt
    if isinstance(prompt, Learnt):
        return asked_and_expected(prompt)[0]
    raise ValueError(
        f"a prompt must be a text, an (instruction, context) pair or an example, got {prompt!r:.60}"
    )


class Source:
    """One replay of a run: its share of all rows, its rows as tokens, and who judges them."""

    def __init__(self, name: str, replay: Replay, run: Any):
        self.name, self.share = name, replay.share
        self.seed = run.config.seed + 1 + len(run.sources)  # an order of its own
        self.rows = rows_of(replay, run)
        self.teacher = run.teacher_of(replay) if isinstance(replay, SelfReplay) else None
        self.states = [] if self.teacher is None else self.teacher.states(self.rows)

    def part(self, chosen: Sequence[int], weight: float, device: torch.device) -> Part:
        """Some of the rows, as a part of a step."""
        batch = pad([self.rows[i] for i in chosen]).to(device)
        logits = None
        if self.teacher is not None:
            logits = self.teacher.logits(batch, [self.states[i] for i in chosen if self.states])
        return Part(batch.ids, batch.labels, None, batch.padding, self.name, weight, logits)


class Mixture:
    """The sources that one run replays beside its task, and the parts of each step.

    It is made before a checkpoint is read: the teacher is the model as it is now.
    """

    def __init__(self, replay: Sequence[Replay], model: nn.Module, task: Task, config: TrainConfig):
        self.model, self.task, self.config = model, task, config
        self.teachers: dict[str, Teacher] = {}
        self.sources: list[Source] = []
        for each in replay:
            name = name_of(each)
            taken = sum(source.name.split("_")[0] == name for source in self.sources)
            self.sources.append(Source(f"{name}_{taken + 1}" if taken else name, each, self))

    def teacher_of(self, replay: SelfReplay) -> Teacher:
        """The model before, one for all that replay with it."""
        if replay.teacher not in self.teachers:
            self.teachers[replay.teacher] = Teacher(self.model, replay.teacher == "start")
        return self.teachers[replay.teacher]

    @property
    def rows(self) -> list[Encoded]:
        """All rows of all sources."""
        return [row for source in self.sources for row in source.rows]

    def batches(self, of_task: Callable[[int], Sequence[Batch]]) -> Callable[[int], list[Part]]:
        """The parts of a step, given the task's."""
        return lambda step: self.parts(step, of_task(step))

    def parts(self, step: int, task_parts: Sequence[Batch]) -> list[Part]:
        """The task's parts of a step, and those of the rows that are due beside them."""
        n, shares = self.config.batch_size, [source.share for source in self.sources]
        spans = [
            [rows_until(at, n, share, sum(shares)) for at in (step, step + 1)] for share in shares
        ]
        total = n + sum(stop - start for start, stop in spans)
        parts = [Part(b.ids, b.labels, b.segments, b.padding, TASK, n / total) for b in task_parts]
        device, size = parts[0].ids.device, self.config.part_size
        for source, (start, stop) in zip(self.sources, spans, strict=True):
            chosen = indices_between(len(source.rows), start, stop, source.seed)
            weight = (stop - start) / total
            pieces = [chosen[i : i + size] for i in range(0, len(chosen), size)]
            parts += [source.part(piece, weight, device) for piece in pieces]
        return parts

    def accounts(self, task: Sequence[Encoded]) -> list[Record]:
        """For each source its name, how many rows it has, and its share of rows and of tokens."""
        sources = [(source.share, source.rows) for source in self.sources]
        return [
            {"source": source.name, "of": len(source.rows), "rows": rows, "label_tokens": tokens}
            for source, (rows, tokens) in zip(self.sources, shares(task, sources), strict=True)
        ]

    def identity(self) -> Record:
        """What a run that resumes must have in common: the rows, the shares, the teacher."""
        copies = [teacher.model for teacher in self.teachers.values() if teacher.is_copy]
        copied = [parameter for model in copies for parameter in model.parameters()]
        rows = [[source.share, [(r.ids, r.labels) for r in source.rows]] for source in self.sources]
        return {"replay": digest(rows), "teacher": checksum(copied)}


def name_of(replay: Replay) -> str:
    """What a source is called in the records: ``<name>_loss``."""
    if isinstance(replay, SelfReplay):
        return "windows" if replay.prompts is None else "answers"
    return type(replay).__name__.lower()


def rows_of(replay: Replay, run: Mixture) -> list[Encoded]:
    """The rows to replay, as tokens and labels."""
    tokenizer: Any = unwrapped(run.model).tokenizer
    if isinstance(replay, Examples):
        return encode_all(tokenizer, replay.examples, run.config.max_length)
    if isinstance(replay, Prose):
        documents = [Document(text) for text in replay.texts if text.strip()]
        return encode_all(tokenizer, documents, replay.tokens)
    seed = run.config.seed
    with run.teacher_of(replay).at_work() as model:
        if replay.prompts is None:
            return sample_windows(model, replay.windows, replay.tokens, seed)
        return sample_answers(model, chosen_prompts(replay, run.task, seed), replay.tokens, seed)


def describe(account: Record) -> str:
    """A source's shares, for people.

    >>> describe({"source": "windows", "of": 384, "rows": 0.25, "label_tokens": 0.815})
    'replay: 25% of the rows are windows (384 of them), with 82% of the label tokens'
    """
    rows, tokens = account["rows"], account["label_tokens"]
    name = account["source"].replace("_", " ")
    named = f"{rows:.3g}" if rows < 0.01 else f"{rows:.0%}"
    beside = f"with {tokens:.0%} of the label tokens"
    return f"replay: {named} of the rows are {name} ({account['of']} of them), {beside}"

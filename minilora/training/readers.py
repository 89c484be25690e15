"""``read_examples``: whatever file people bring, as examples, with an account of what was read.

    data_files.py   a file, a folder, a table      ->  rows with their lines
    data_forms.py   Alpaca, messages, ShareGPT, …  ->  Example, Conversation, Document
    here            both, for a whole data set; broken rows; the summary that training begins with

Nothing is left out in silence. A row that cannot be learnt from stops the reading, named with its
line, unless ``skip_bad`` says to go on without it; then the summary names it. ``load_jsonl`` stays
the strict reader of one form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from ..files import read_text
from ..text import listed
from .batches import IGNORE, ChatTokenizer, encode_one
from .data_files import Row, rows_of
from .data_forms import read_row
from .examples import Conversation, Document, Example, Learnt, content
from .replay import Examples, Prose, Replay, SelfReplay


@dataclass(frozen=True)
class DataSet(Sequence[Learnt]):
    """The examples of a source, in order, and what was found beside them.

    - ``places``: where each example stands (``my.jsonl, line 3``).
    - ``skipped``: rows left out, each with its line and the reason.
    - ``forms``: how many rows had which form; ``unused``: in how many rows a column was not used.
    """

    source: str
    examples: tuple[Learnt, ...]
    places: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    forms: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Learnt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Learnt, ...]: ...
    def __getitem__(self, index: int | slice) -> Learnt | tuple[Learnt, ...]:
        return self.examples[index]


def read_examples(
    source: str | Path | Iterable[Any], *, skip_bad: bool = False, name: str = "row"
) -> DataSet:
    """Read examples from a file, a folder, several of them, or a list of dicts.

    Files: JSON lines, a JSON array, CSV, TSV, parquet (with pyarrow), each of them gzipped too.
    Rows: Alpaca, OpenAI ``messages``, ShareGPT ``conversations``, prompt and completion, ``text``.
    ``skip_bad`` leaves out rows that cannot be learnt from; ``name`` is what a list's rows are
    called in messages. Raises ``ValueError`` that names the bad rows, or the unreadable file.

    >>> data = read_examples([{"instruction": "Greet.", "output": "Ahoy!", "id": 7}])
    >>> data[0], dict(data.unused)
    (Example(instruction='Greet.', output='Ahoy!', input=''), {'id': 1})
    """
    examples, places, skipped = [], [], []
    forms: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for row in rows_of_source(source, name):
        try:
            if row.problem:
                raise ValueError(row.problem)
            read = read_row(row.value)
        except ValueError as error:
            skipped.append(f"{row.where}: {error}")
            continue
        examples.append(read.example)
        places.append(row.where)
        forms[read.form] += 1
        unused.update(read.unused)
    label = str(source) if isinstance(source, str | Path) else "the list"
    if skipped and not skip_bad:
        rows = len(examples) + len(skipped)
        raise ValueError(
            f"{label}: {len(skipped)} of {rows} rows cannot be learnt from. {listed(skipped, 3)}. "
            "Mend them, or go on without them: --skip-bad (in Python skip_bad=True)"
        )
    if not examples:
        reasons = (
            f": {listed(skipped, 3)}" if skipped else ', as {"instruction": "…", "output": "…"}'
        )
        raise ValueError(f"{label} holds no example{reasons}")
    return DataSet(label, tuple(examples), tuple(places), tuple(skipped), forms, unused)


def rows_of_source(source: str | Path | Iterable[Any], name: str) -> Iterator[Row]:
    """The rows of a path, of several paths, or the values of a list."""
    if isinstance(source, str | Path):
        yield from rows_of(source)
        return
    for number, value in enumerate(source, 1):
        if isinstance(value, str | Path):
            yield from rows_of(value)
        else:
            yield Row(f"{name} {number}", value)


def read_replay(
    source: str, share: float, *, skip_bad: bool = False, teacher: Literal["base", "start"] = "base"
) -> Replay:
    """What is replayed: ``self`` (what the model writes itself), a text file, or old examples.

    ``teacher``: the base, or the model with its adapter as the run starts (``SelfReplay``).

    >>> read_replay("self", 0.25).share
    0.25
    """
    if source == "self":
        return SelfReplay(share, teacher=teacher)
    if Path(source).suffix != ".txt":
        return Examples(read_examples(source, skip_bad=skip_bad).examples, share)
    return Prose([read_text(source)], share)


@dataclass(frozen=True)
class Summary:
    """A data set in figures, counted as the model will see it; ``print(summary)`` shows them.

    ``answer_tokens`` are those that have a loss. ``too_long`` examples do not fit ``max_length``
    and are left out whole, because an answer that is cut teaches to stop in the middle.
    """

    data: DataSet
    turns: int
    tokens: int
    answer_tokens: int
    longest: int
    longest_place: str
    too_long: int
    max_length: int
    duplicates: int

    @property
    def rows(self) -> int:
        """All rows that were read, those left out too."""
        return len(self.data) + len(self.data.skipped)

    def __str__(self) -> str:
        data = self.data
        forms = ", ".join(f"{form} ×{count:,}" for form, count in data.forms.items())
        texts = sum(isinstance(example, Document) for example in data)
        kinds = [f"turns of the assistant: {self.turns:,}"] * bool(self.turns)
        kinds += [f"texts: {texts:,}"] * bool(texts)
        learnt = len(data) - self.too_long
        lines = [
            f"{data.source}: {self.rows:,} rows ({forms}), {learnt:,} to learn from",
            f"  {', '.join(kinds)}; tokens: {self.tokens:,}, learnt: {self.answer_tokens:,}",
            f"  longest: {self.longest:,} tokens ({self.longest_place})",
        ]
        if self.too_long:
            lines.append(f"  left out, longer than {self.max_length:,} tokens: {self.too_long:,}")
        if data.skipped:
            lines.append(f"  left out, bad rows: {len(data.skipped):,} ({listed(data.skipped, 3)})")
        if self.duplicates:
            lines.append(f"  rows that repeat an earlier one, and are kept: {self.duplicates:,}")
        if data.unused:
            columns = [f"{name} ({count:,} rows)" for name, count in data.unused.items()]
            lines.append(f"  columns not used: {listed(columns, 8, ', ')}")
        if "text" in data.forms and "label" in data.unused:
            lines.append("  label: did you mean --task classify?")
        return "\n".join(lines)


def summarize(data: DataSet, tokenizer: ChatTokenizer, max_length: int = 512) -> Summary:
    """Count what there is to learn, in the tokens of a model.

    >>> import minilora
    >>> data = read_examples([{"prompt": "Hi", "completion": "Ahoy!"}] * 2)
    >>> summary = summarize(data, minilora.load_base().tokenizer)
    >>> summary.rows, summary.duplicates, summary.turns
    (2, 1, 2)
    """
    encoded = [encode_one(tokenizer, example) for example in data]
    lengths = [len(row.ids) for row in encoded]
    cut = [isinstance(example, Document) for example in data]  # into windows, not left out
    long = [length > max_length and not c for length, c in zip(lengths, cut, strict=True)]
    kept = [row for row, left_out in zip(encoded, long, strict=True) if not left_out]
    last = max(range(len(data)), key=lengths.__getitem__)
    return Summary(
        data=data,
        turns=sum(turns_of(example) for example in data),
        tokens=sum(len(row.ids) for row in kept),
        answer_tokens=sum(label != IGNORE for row in kept for label in row.labels),
        longest=lengths[last],
        longest_place=data.places[last],
        too_long=sum(long),
        max_length=max_length,
        duplicates=len(data) - len({content(example) for example in data}),
    )


def turns_of(example: Learnt) -> int:
    """Answers to learn in an example; a document has none."""
    if isinstance(example, Conversation):
        return sum(role == "assistant" for role, _ in example.messages)
    return int(isinstance(example, Example))

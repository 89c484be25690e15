"""Examples: what a model is trained on, read from a file and split into two sides.

A file holds one JSON object a line, ``{"instruction": …, "input"?: …, "output": …}``. A bad line is
an error that names the line, because a file that is read half trains something else.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_text
from ..model.own_forms import question
from .data_files import Row, line_rows

REQUIRED = ("instruction", "output")
FORM = '{"instruction": "…", "output": "…"}'


@dataclass(frozen=True)
class Example:
    """One thing to learn: an instruction, its context (``input``, may be empty), and the answer.

    >>> Example("Status?", "Hull 90%.", input="Log: Hull 90%.").output
    'Hull 90%.'
    """

    instruction: str
    output: str
    input: str = ""

    def as_messages(self) -> list[dict[str, str]]:
        """A question and its answer, as ``tokenizer.apply_chat_template`` takes them."""
        answer = {"role": "assistant", "content": self.output}
        return [*question(self.instruction, self.input), answer]


@dataclass(frozen=True)
class Conversation:
    """Several turns to learn from: (role, content) pairs, of which the assistant's are learnt.

    Roles are the chat template's: ``system``, ``user``, ``assistant``, ``tool``. ``tools`` are the
    definitions of functions that the model may call, as OpenAI writes them, in JSON; the template
    says how a model sees them. Raises ``ValueError`` for messages that are not pairs of text,
    without an answer to learn, or for tools that are no list of objects.

    >>> talk = Conversation((("user", "Status?"), ("assistant", "Hull 90%.")))
    >>> talk.as_messages()[1]
    {'role': 'assistant', 'content': 'Hull 90%.'}
    """

    messages: tuple[tuple[str, str], ...]
    tools: str = ""  # text, so that it hashes

    def __post_init__(self) -> None:
        check_tools(self.tools)
        pairs = tuple(tuple(message) for message in self.messages)
        object.__setattr__(self, "messages", pairs)  # lists are made tuples, so that it hashes
        for number, pair in enumerate(pairs, 1):
            if len(pair) != 2:
                raise ValueError(f"message {number}: expected (role, content), got {pair!r:.80}")
            for value, part in zip(pair, ("role", "content"), strict=True):
                check_text(value, f"message {number}: its {part}")
            if not pair[0]:
                raise ValueError(f"message {number} has an empty role, expected 'user' or another")
            if pair[0] == "assistant" and not pair[1].strip():
                raise ValueError(f"message {number}: the assistant's content is empty")
        if not any(role == "assistant" for role, _ in pairs):
            roles = [role for role, _ in pairs]
            raise ValueError(f"a conversation needs a message of 'assistant', got roles {roles}")

    def as_messages(self) -> list[dict[str, str]]:
        """The messages as ``tokenizer.apply_chat_template`` takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]

    def variables(self) -> dict[str, Any]:
        """What a chat template is given beside the messages."""
        return {"tools": json.loads(self.tools)} if self.tools else {}


def check_tools(tools: str) -> None:
    """Raise ``ValueError`` unless this is empty, or a list of objects in JSON."""
    try:
        definitions = json.loads(tools) if tools else []
    except (ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"'tools' must be a list of objects in JSON: {error}") from error
    if not isinstance(definitions, list) or not all(isinstance(each, dict) for each in definitions):
        raise ValueError(f"'tools' must be a list of objects, got {tools!r:.60}")


@dataclass(frozen=True)
class Document:
    """Plain text to go on learning from, as a base did: every token is learnt, and its end.

    >>> Document("Hull 90%.").text
    'Hull 90%.'
    """

    text: str


Learnt = Example | Conversation | Document


@dataclass(frozen=True)
class Task:
    """Examples to train on, and held-out ones to be judged by.

    >>> task = Task("mine", train=(Example("Hi", "Ahoy!"),), valid=())
    >>> len(task.train)
    1
    """

    name: str
    train: tuple[Learnt, ...]
    valid: tuple[Learnt, ...]


def asked_and_expected(example: Learnt) -> tuple[list[dict[str, str]], str]:
    """The messages before the last answer, and that answer.

    Raises ``ValueError`` for a document, which asks nothing.

    >>> asked_and_expected(Example("Status?", "Hull 90%."))
    ([{'role': 'user', 'content': 'Status?'}], 'Hull 90%.')
    """
    if isinstance(example, Document):
        raise ValueError(f"a Document asks nothing, so it has no answer: {example!r:.80}")
    messages = example.as_messages()
    last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]


def question_text(example: Learnt) -> str:
    """What an example asks, for a router: the words before its last answer; a document's text.

    >>> question_text(Example("Status?", "Hull 90%.", "Log: 7"))
    'Status?\\nLog: 7'
    """
    if isinstance(example, Document):
        return example.text
    if isinstance(example, Example):
        return f"{example.instruction}\n{example.input}".strip()
    return "\n".join(message["content"] for message in asked_and_expected(example)[0])


def load_jsonl(path: str | Path) -> tuple[Example, ...]:
    """Read examples from a file with one JSON object a line.

    Raises ``ValueError`` on the first bad line, naming the file, the line and what it should hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "my.jsonl")
    ...     _ = file.write_text('{"instruction": "Greet.", "output": "Ahoy!"}', encoding="utf-8")
    ...     load_jsonl(file)
    (Example(instruction='Greet.', output='Ahoy!', input=''),)
    """
    path = Path(path)
    text = read_text(path, "one JSON object a line")
    examples = tuple(example_of(row) for row in line_rows(text, str(path)))
    if not examples:
        raise ValueError(f"{path} holds no example: write one JSON object a line, {FORM}")
    return examples


def example_of(row: Row) -> Example:
    """A row's value as an ``Example``; the row's place stands at the front of every error."""
    where, fields = row.where, row.value
    if row.problem:
        is_list = row.problem.endswith(": '['")
        hint = "; a list over many lines? write one object a line" if is_list else ""
        raise ValueError(f"{where}: {row.problem}{hint}")
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected an object {FORM}, got {type(fields).__name__}")
    if missing := [name for name in REQUIRED if name not in fields]:
        hint = ": rename the fields, one question and one answer a line"
        raise ValueError(
            f"{where}: {' and '.join(map(repr, missing))} missing, got {sorted(fields)}"
            + hint * (len(missing) == 2)
        )
    if fields.get("input") is None:
        fields["input"] = ""
    for name in (*REQUIRED, "input"):
        check_text(fields[name], f"{where}: {name!r}")
    if empty := [name for name in REQUIRED if not fields[name].strip()]:
        raise ValueError(f"{where}: {empty[0]!r} is empty")
    if unknown := sorted(fields.keys() - {*REQUIRED, "input"}):
        raise ValueError(
            f"{where}: unknown field {unknown[0]!r}; known are 'instruction', 'input', 'output'"
        )
    return Example(**fields)


def check_text(value: Any, what: str) -> None:
    """Raise ``ValueError`` unless a field is text that can be encoded."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, got {type(value).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{what} holds half of a surrogate pair, which is not text: {value!r:.60}")


def split_examples(
    examples: Sequence[Example | Conversation | Document],
    name: str = "jsonl",
    share: float = 0.1,
    seed: int = 0,
) -> Task:
    """Shuffle the examples and hold out a share for validation; by default none of fewer than ten.

    Examples of the same content, spaces aside, stay on one side: what is held out is never trained
    on. Raises ``ValueError`` for a share outside [0, 1).

    >>> task = split_examples([Example("Count.", str(i)) for i in range(20)])
    >>> len(task.train), len(task.valid)
    (18, 2)
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}")
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    most, held = int(share * len(examples)), 0
    copies = Counter(content(example) for example in shuffled)
    side: dict[tuple[str, ...], bool] = {}  # whether a content is held out
    for example in shuffled:
        if (key := content(example)) not in side:
            side[key] = held + copies[key] <= most
            held += copies[key] * side[key]
    return Task(
        name,
        train=tuple(example for example in shuffled if not side[content(example)]),
        valid=tuple(example for example in shuffled if side[content(example)]),
    )


def content(example: Any) -> tuple[str, ...]:
    """The words of an example, field by field; equal for two that differ in spaces only.

    >>> content(Example("Hi  there", "Ahoy!\\n")) == content(Example("Hi there", "Ahoy!"))
    True
    """
    if isinstance(example, Conversation):
        fields = [example.tools, *(text for message in example.messages for text in message)]
    elif isinstance(example, Document):
        fields = [example.text]
    else:
        fields = [example.instruction, example.output, example.input]
    return tuple(" ".join(field.split()) for field in fields)


def overlap(task: Task) -> str:
    """A warning when held-out examples are trained on too; empty when none is.

    >>> one = Example("Hi", "Ahoy!")
    >>> overlap(Task("mine", (one,), (one,)))[:43]
    '1 of 1 held-out examples are trained on too'
    """
    trained = {content(example) for example in task.train}
    both = [example for example in task.valid if content(example) in trained]
    if not both:
        return ""
    return (
        f"{len(both)} of {len(task.valid)} held-out examples are trained on too, so their score "
        f"says nothing about new ones: take them out of one side; the first is {both[0]!r:.100}"
    )

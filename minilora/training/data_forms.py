"""The forms in which people write examples down, and what each becomes.

    form                columns                                       becomes
    ----                -------                                       -------
    Alpaca              instruction, input?, output                   Example
    messages            messages: [{role, content}], tools?           Conversation
    ShareGPT            conversations: [{from, value}]                Conversation
    prompt, completion  prompt, completion (and question, answer, …)  Example
    text                text                                          Document

A conversation of one question and one answer is an ``Example``. ``system`` and ``history`` beside a
pair make it a conversation. Columns that no form reads are counted, not refused; what cannot be
learnt from is a ``ValueError`` that says why.

Left out: pairs of a chosen and a rejected answer, which another loss needs; pictures and sound.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..text import listed
from .examples import Conversation, Document, Example, Learnt, check_text

# question, answer, and a column that is context for the question
PAIRS = (
    ("instruction", "output", "input"),
    ("instruction", "response", "context"),
    ("prompt", "completion", ""),
    ("prompt", "response", ""),
    ("question", "answer", "context"),
    ("query", "response", ""),
    ("input", "output", ""),
)
TALKS = ("messages", "conversations", "conversation")
ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "developer": "system",
    "function": "tool", "observation": "tool", "function_response": "tool",
    "function_call": "assistant", "ipython": "tool",
}  # fmt: skip
KNOWN = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Read:
    """A row as something to learn from, the form it had, and the columns that were not used."""

    example: Learnt
    form: str
    unused: tuple[str, ...] = ()


def read_row(value: Any) -> Read:
    """One row as an example; raise ``ValueError`` that says why it is none.

    >>> read_row({"prompt": "Hi", "completion": "Ahoy!", "id": 3})
    Read(example=Example(instruction='Hi', output='Ahoy!', input=''),
         form='prompt, completion', unused=('id',))
    """
    if isinstance(value, Learnt):
        return Read(value, type(value).__name__)
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object with named columns, got {type(value).__name__}")
    if not value:
        raise ValueError("the row is empty")
    row = {str(name).strip().lower(): cell for name, cell in value.items()}
    for name in TALKS:
        if row.get(name):
            return read_talk(row, name)
    for question, answer, context in PAIRS:
        if question in row and answer in row:
            return read_pair(row, question, answer, context)
    if "text" in row:
        text = needed_text(row, "text")
        return Read(Document(text), "text", unused_of(row, {"text"}))
    if {"chosen", "rejected"} & row.keys():
        raise ValueError("a chosen and a rejected answer: preferences are not learnt here")
    if name := next((name for name in TALKS if name in row), ""):
        raise ValueError(f"{name!r} is empty")
    raise ValueError(
        f"columns {listed([repr(name) for name in row], most=6, separator=', ')} are of no known "
        "form; expected instruction and output, messages, conversations, prompt and completion, "
        "or text"
    )


def read_pair(row: Mapping[str, Any], question: str, answer: str, context: str) -> Read:
    """A question and an answer, each in a column of its own."""
    form = "Alpaca" if (question, answer) == PAIRS[0][:2] else f"{question}, {answer}"
    used = {question, answer, context, "system", "history"}
    if isinstance(row[question], list) and isinstance(row[answer], list):
        messages, unused = read_messages([*row[question], *row[answer]], question)
        return Read(as_example(messages), form, (*unused_of(row, used), *unused))
    asked, given = needed_text(row, question), needed_text(row, answer)
    aside = optional_text(row, context)
    system, history = optional_text(row, "system"), row.get("history") or []
    if not system.strip() and not history:
        return Read(Example(asked, given, aside), form, unused_of(row, used))
    messages = [("system", system)] * bool(system.strip())
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError(f"'history' must be pairs of question and answer, got {turn!r:.60}")
        messages += [("user", turn[0]), ("assistant", turn[1])]
    messages += [("user", f"{aside}\n{asked}" if aside else asked), ("assistant", given)]
    return Read(as_example(messages), form, unused_of(row, used))


def read_talk(row: Mapping[str, Any], name: str) -> Read:
    """A conversation in one column."""
    messages, unused = read_messages(parsed(row[name], name), name)
    system = optional_text(row, "system")
    if system.strip() and messages[0][0] != "system":
        messages = [("system", system), *messages]
    form = "messages" if name == "messages" else "ShareGPT"
    example = as_example(messages, tools_of(row))
    return Read(example, form, (*unused_of(row, {name, "system", "tools", "functions"}), *unused))


def tools_of(row: Mapping[str, Any]) -> str:
    """The definitions of functions in a row, as JSON; OpenAI's older ``functions`` too."""
    given = parsed(row.get("tools"), "tools")
    older = parsed(row.get("functions"), "functions")
    if not given and isinstance(older, list):
        given = [{"type": "function", "function": each} for each in older]
    return json.dumps(given, ensure_ascii=False) if given else ""


def parsed(cell: Any, name: str) -> Any:
    """A cell that may hold its value as JSON text, as tables have it."""
    if not isinstance(cell, str) or not cell.strip():
        return cell or None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} is text, and not valid JSON ({error})") from error


def as_example(messages: list[tuple[str, str]], tools: str = "") -> Learnt:
    """One question and its answer as ``Example``, anything more as ``Conversation``."""
    if tools:
        return Conversation(tuple(messages), tools)
    if [role for role, _ in messages] == ["user", "assistant"]:
        (_, asked), (_, given) = messages
        row = {"user": asked, "assistant": given}
        return Example(needed_text(row, "user"), needed_text(row, "assistant"))
    return Conversation(tuple(messages))


def read_messages(turns: Any, name: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(role, content) of each turn, and the keys that were not used, as ``messages.weight``."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{name!r} must be a list of messages, got {turns!r:.60}")
    messages, unused = [], []
    for number, turn in enumerate(turns, 1):
        where = f"{name!r}, message {number}"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(turn).__name__}")
        role_key = next((key for key in ("role", "from") if key in turn), None)
        if role_key is None:
            raise ValueError(f"{where}: expected 'role' or 'from', got {sorted(turn)}")
        role = str(turn[role_key]).strip().lower()
        role = ROLES.get(role, role)
        if role not in KNOWN:
            raise ValueError(f"{where}: unknown role {turn[role_key]!r}; known are {KNOWN}")
        if role == "assistant" and (turn.get("weight") == 0 or turn.get("train") is False):
            raise ValueError(
                f"{where} is marked as not to be learnt (weight 0), and every answer is learnt "
                "here: leave the row out, or end it before this answer"
            )
        messages.append((role, content_of(turn, where)))
        used = {role_key, "content", "value", "tool_calls"}
        # parquet gives every message every key
        unused += [f"{name}.{key}" for key in turn if key not in used and turn[key] is not None]
    return messages, list(dict.fromkeys(unused))


def content_of(turn: Mapping[str, Any], where: str) -> str:
    """The text of a message; calls of tools as JSON, one a line."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # OpenAI's parts
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in content]
        if any(kind != "text" for kind in kinds):
            raise ValueError(f"{where}: parts of {kinds}; only text is learnt")
        for part in content:
            check_text(part.get("text"), f"{where}: the text of a part")
        content = "".join(part["text"] for part in content)
    if calls := turn.get("tool_calls"):
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise ValueError(f"{where}: 'tool_calls' must be a list of objects, got {calls!r:.60}")
        functions = [call.get("function", call) for call in calls]
        lines = [json.dumps(function, ensure_ascii=False, default=str) for function in functions]
        content = "\n".join([str(content), *lines] if content else lines)
    if content is None:
        raise ValueError(f"{where}: no content, got {sorted(turn)}")
    check_text(content, f"{where}: its content")
    return content


def needed_text(row: Mapping[str, Any], name: str) -> str:
    """A column that must hold text."""
    if row[name] is None:
        raise ValueError(f"{name!r} is empty")
    check_text(row[name], repr(name))
    if not row[name].strip():
        raise ValueError(f"{name!r} is empty")
    return row[name]


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """A column that may be missing, null or empty."""
    if row.get(name) is None:
        return ""
    check_text(row[name], repr(name))
    return row[name]


def unused_of(row: Iterable[str], used: set[str]) -> tuple[str, ...]:
    """The columns that nothing was read from."""
    return tuple(name for name in row if name not in used)

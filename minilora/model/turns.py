"""Which tokens of a conversation a model has to learn: each answer and the mark that ends it.

A template that says so itself, with ``{% generation %}``, is believed, as transformers does.
Elsewhere an answer is the difference between two texts:

    messages[:i], the prompt   <|im_start|>user\\nStatus?<|im_end|>\\n<|im_start|>assistant\\n
    messages[:i+1]             …the same…Hull 90%.<|im_end|>\\n
                                         \\_________________/  learnt

Some templates write an earlier turn differently once another follows (Qwen3 takes its reasoning
out). Then the difference is not what stands in the whole text, and only the last answer is learnt.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from .chat import Message, plain_messages
from .marks import Signs

__all__ = ["encode_turns"]


def encode_turns(
    tokenizer: Any, messages: Sequence[Message], **variables: Any
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation up to its last answer's end, and which of them are learnt.

    Raises ``ValueError`` without an answer, or when the template refuses the messages.
    """
    copies = plain_messages(messages)
    answers = [n for n, message in enumerate(copies) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("expected a message of 'assistant' to learn, got none")
    copies = copies[: answers[-1] + 1]
    signs = tokenizer.signs_for(copies, variables)
    if not tokenizer.has_template:
        return own_turns(tokenizer, copies, answers, signs)
    whole = tokenizer.seamed(copies, signs=signs, **variables)[0]
    end, ended = tokenizer.raw.id_to_token(tokenizer.eos_id), True
    if signs.opens not in whole:
        spans = differences(tokenizer, copies, answers, whole, signs, end, variables)
        check_written(tokenizer, copies, whole, spans[-1], signs)
        ended = whole.endswith(end, *spans[-1])
        for start, stop in reversed(spans):
            answer = f"{signs.opens}{whole[start:stop]}{signs.closes}"
            whole = f"{whole[:start]}{answer}{whole[stop:]}"
    encoded = tokenizer.encode_chat(whole, signs)
    ids, learnt = cut_behind_the_last(encoded.ids, encoded.touched())
    if not ended:
        ids, learnt = [*ids, tokenizer.eos_id], [*learnt, True]
    return ids, learnt


def cut_behind_the_last(ids: list[int], learnt: list[bool]) -> tuple[list[int], list[bool]]:
    """Without the tokens behind the last one that is learnt: nothing is predicted from them."""
    length = max((n + 1 for n, is_learnt in enumerate(learnt) if is_learnt), default=len(ids))
    return ids[:length], learnt[:length]


def differences(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    answers: list[int],
    whole: str,
    signs: Signs,
    end: str,
    variables: dict[str, Any],
) -> list[tuple[int, int]]:
    """Where in ``whole`` each answer stands, up to its end mark."""
    spans = []
    for index in answers:
        through = tokenizer.seamed(messages[: index + 1], False, signs, **variables)[0]
        if index:
            before = tokenizer.seamed(messages[:index], True, signs, **variables)[0]
        else:  # nothing was asked: the turn's own beginning
            before = through[: max(0, through.find(str(messages[0].get("content")).strip()))]
        stop = end_of_answer(through, len(before), end)
        if through.startswith(before) and whole.startswith(through[:stop]):
            spans.append((len(before), stop))
    if len(spans) == len(answers):
        return spans
    if len(answers) > 1:
        say_once(
            tokenizer,
            "the chat template writes earlier turns differently once others follow: of each "
            "conversation only the last answer is learnt",
        )
    if spans and spans[-1][1] == end_of_answer(whole, spans[-1][0], end):
        return spans[-1:]
    content = tokenizer.marks.seam(messages[-1].get("content"), signs.seam)
    text = content.strip() if isinstance(content, str) else ""
    start = whole.rfind(text) if isinstance(content, str) else -1
    other = [*messages[:-1], messages[-1] | {"content": "…"}]  # is it there, or in the question?
    without = tokenizer.seamed(other, False, signs, **variables)[0] if text else ""
    if start < 0 or (text and whole.count(text) <= without.count(text)):
        raise ValueError(
            f"the chat template changes or leaves out the last answer ({content!r:.40}), so it "
            "cannot be learnt: leave the conversation out"
        )
    return [(start, end_of_answer(whole, start, end))]


def check_written(
    tokenizer: Any, messages: list[dict[str, Any]], whole: str, last: tuple[int, int], signs: Signs
) -> None:
    """Raise where the last answer is left out; say once where a question is, or who speaks."""
    written = [tokenizer.marks.seam(m.get("content"), signs.seam) for m in messages]
    texts = [text.strip() if isinstance(text, str) else "" for text in written]
    said = whole[slice(*last)]  # with the mark that ends it, whichever that is
    if texts[-1] and not any(word in said for word in texts[-1].split()):
        raise ValueError("the chat template leaves out the last answer, so it cannot be learnt")
    asked = [text for text, m in zip(texts, messages, strict=True) if m["role"] == "user"]
    if left_out := [text for text in asked if text not in whole]:
        say_once(
            tokenizer,
            f"the chat template leaves out what was asked, as {left_out[0][:60]!r}: "
            "the model learns answers to questions that it does not see",
        )
    elif asked and follows(whole, last[0], asked[-1], texts[-1]):
        say_once(
            tokenizer,
            "the chat template writes nothing between a question and its answer: "
            "the model cannot tell who speaks; compare it with its maker's",
        )


def follows(whole: str, start: int, question: str, answer: str) -> bool:
    """Whether an answer stands at ``start``, right behind its question."""
    before, behind = whole[:start].rstrip(), whole[start:].lstrip()
    return bool(question and answer) and before.endswith(question) and behind.startswith(answer)


def say_once(tokenizer: Any, text: str) -> None:
    """Warn of a tokenizer's template, of each matter once."""
    matter = text[:40]
    if matter not in tokenizer.said:
        tokenizer.said.add(matter)
        warnings.warn(text, stacklevel=3)


def end_of_answer(text: str, start: int, end: str) -> int:
    """Behind the last end mark after ``start``, or behind the last letter where there is none."""
    place = text.rfind(end, start)
    return max(start, len(text.rstrip())) if place < 0 else place + len(end)


def own_turns(
    tokenizer: Any, messages: list[dict[str, Any]], answers: list[int], signs: Signs
) -> tuple[list[int], list[bool]]:
    """Our own forms: an answer is encoded by itself, as the model writes it behind a prompt."""
    ids: list[int] = []
    learnt: list[bool] = []
    done = 0
    for index in answers:
        before = tokenizer.seamed(messages[:index], True, signs)[0] if index else ""
        through = tokenizer.seamed(messages[: index + 1], False, signs)[0]
        if not index:  # nothing was asked: the turn's own beginning
            content = tokenizer.marks.seam(messages[0]["content"], signs.seam)
            before = through[: through.rindex(content)].rstrip(" ")
        prompt = tokenizer.encode_chat(before[done:], signs).ids
        answer = tokenizer.answer(messages[index]["content"])
        ids += prompt + answer
        learnt += [False] * len(prompt) + [True] * len(answer)
        done = len(through) - 1  # behind its mark: the line's end opens the next turn
    return ids, learnt

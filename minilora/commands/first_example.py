"""An example as the model will see it: marks visible, the learnt part told from the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

COLOUR, PLAIN = "\033[32m", "\033[0m"
LONGEST = 2_000  # characters shown


def describe_first_example(tokenizer: Any, example: Any, in_colour: bool | None = None) -> str:
    """The example with its labels in green, or between [[ and ]] without a terminal."""
    from ..training.batches import encode_one

    in_colour = sys.stdout.isatty() if in_colour is None else in_colour
    opens, closes = (COLOUR, PLAIN) if in_colour else ("[[", "]]")
    encoded = encode_one(tokenizer, example)
    parts = [
        f"{opens}{text}{closes}" if is_learnt else text
        for text, is_learnt in runs(tokenizer, encoded.ids, encoded.labels)
    ]
    text = "".join(parts)
    if len(text) > LONGEST:  # an answer stands at the end
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    learnt = "in green" if in_colour else "between [[ and ]]"
    return f"An example as the model sees it; it learns what is {learnt}:\n{text}"


def runs(tokenizer: Any, ids: list[int], labels: list[int]) -> Iterator[tuple[str, bool]]:
    """Stretches of text with their marks, and whether they are learnt."""
    from ..training.batches import IGNORE

    shown = ""
    for number, label in enumerate(labels):
        is_last = number + 1 == len(labels)
        if is_last or (label == IGNORE) != (labels[number + 1] == IGNORE):
            # all ids so far: many decoders drop a space where a text begins
            text = tokenizer.raw.decode(ids[: number + 1], skip_special_tokens=False)
            yield text[len(shown) :], label != IGNORE
            shown = text


def describe_form(tokenizer: Any) -> str:
    """A base without a chat template is said in words; empty where there is one."""
    if tokenizer.has_template or tokenizer.is_chatml:
        return ""
    return (
        "This base has no chat template, so it is trained and asked in a plain form: "
        "'User: …' and 'Assistant: …', a line each."
    )

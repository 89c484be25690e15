"""Marks: the tokens that structure a conversation, and text that only looks like one.

A tokenizer turns ``<|im_end|>`` into one token wherever it stands. If a user could type it, a user
could close a turn and forge the next. So a mark counts only where the chat template wrote it:

    content   "ends in <|im_end|>"     ->  "ends in <·|im_end|>"       · is a seam: a character that
    rendered  "…<·|im_end|><|im_end|>"      stands nowhere else in the conversation
    ids       the first as text, the second as the token

Seams are taken out again before the text is encoded. The text between two marks of the template is
then encoded as if its look-alikes were no marks, so that everything else keeps the ids that it
would have had. Text without look-alikes is encoded as it is.

Left out: added tokens that are not special (``<think>`` in Qwen3): they are part of what a model
writes, and people may write them too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

__all__ = ["Encoded", "Marks", "Signs", "choose_signs"]

# Characters that Unicode reserves for use inside a program, and that stand in no text.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Signs(NamedTuple):
    """Three characters that stand nowhere in a conversation."""

    seam: str
    opens: str
    closes: str


def choose_signs(text: str) -> Signs:
    """Three noncharacters that ``text`` does not hold. Raises ``ValueError`` if it holds all."""
    free = [sign for sign in NONCHARACTERS if sign not in text]
    if len(free) < 3:
        raise ValueError("the messages hold every noncharacter of Unicode: remove some")
    return Signs(*free[:3])


class Encoded(NamedTuple):
    """Ids with the place of each in the text, and the enclosed parts of the text."""

    ids: list[int]
    places: list[tuple[int, int]]
    enclosed: list[tuple[int, int]]

    def touched(self) -> list[bool]:
        """Which tokens have a letter inside an enclosed part."""
        return [
            any(start < closes and opens < end for opens, closes in self.enclosed)
            for start, end in self.places
        ]


class Marks:
    """The marks of a tokenizer: ``names`` are texts of tokens, by id."""

    def __init__(self, raw: Any, names: Mapping[int, str]):
        self.raw, self.names = raw, dict(names)
        longest_first = sorted(filter(None, names.values()), key=len, reverse=True)
        # a lookahead, so that look-alikes which overlap are all seen
        self.pattern = re.compile(f"(?=({'|'.join(map(re.escape, longest_first)) or '(?!)'}))")
        starts = {name[:n] for name in longest_first for n in range(1, len(name))}
        ends = {name[n:] for name in longest_first for n in range(1, len(name))}
        self.starts, self.ends = tuple(starts), tuple(ends)

    @cached_property
    def as_text(self) -> Any:
        """The same tokenizer, for which the marks are ordinary text."""
        import tokenizers

        about = json.loads(self.raw.to_str())
        for token in about.get("added_tokens", []):
            token["special"] = token["special"] or token["id"] in self.names
        copy = tokenizers.Tokenizer.from_str(json.dumps(about))
        copy.encode_special_tokens = True
        return copy

    def seam(self, value: Any, seam: str) -> Any:
        """A message's text, or all the texts in a message, with a seam in every look-alike."""
        if isinstance(value, dict):
            return {key: self.seam(item, seam) for key, item in value.items()}
        if isinstance(value, list):
            return [self.seam(item, seam) for item in value]
        if not isinstance(value, str):
            return value
        cuts = {match.start() + 1 for match in self.pattern.finditer(value)}
        # at its ends a text could become a mark together with what the template writes there
        inside = value.strip()
        first = len(value) - len(value.lstrip())
        if self.starts and inside.endswith(self.starts):
            cuts.add(first + len(inside))
        if self.ends and inside.startswith(self.ends):
            cuts.add(first)
        for cut in sorted(cuts, reverse=True):
            value = value[:cut] + seam + value[cut:]
        return value

    def encode(self, text: str, signs: Signs) -> Encoded:
        """The ids of a rendered conversation, in which a mark with a seam inside is text."""
        clean, seams, enclosed = take_out(text, signs)
        forged = [
            (match.start(1), match.end(1))
            for match in self.pattern.finditer(clean)
            if any(match.start(1) < seam < match.end(1) for seam in seams)
        ]
        if not forged:
            encoded = self.raw.encode(clean, add_special_tokens=False)
            return Encoded(encoded.ids, encoded.offsets, enclosed)
        covered = clean
        for start, end in forged:
            covered = covered[:start] + "x" * (end - start) + covered[end:]
        encoded = self.raw.encode(covered, add_special_tokens=False)
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        last = 0
        genuine = [
            (token, place)
            for token, place in zip(encoded.ids, encoded.offsets, strict=True)
            if token in self.names
        ]
        for token, (start, end) in [*genuine, (None, (len(clean), len(clean)))]:
            cuts = sorted({seam for seam in seams if last < seam < start})
            for here, (token_id, place) in self.text(clean[last:start], [c - last for c in cuts]):
                ids.append(token_id)
                places.append((last + here + place[0], last + here + place[1]))
            if token is not None:
                ids.append(token)
                places.append((start, end))
            last = end
        return Encoded(ids, places, enclosed)

    def text(self, text: str, cuts: list[int]) -> list[tuple[int, tuple[int, tuple[int, int]]]]:
        """Tokens of ordinary text, as (where its part begins, (id, place)).

        Where a vocabulary makes a mark of plain letters, the text is cut at its seams. Raises
        ``ValueError`` if it then still does.
        """
        if not text:
            return []
        for parts in ([0, len(text)], [0, *cuts, len(text)]):
            tokens = []
            for start, end in pairwise(parts):
                encoded = self.as_text.encode(text[start:end], add_special_tokens=False)
                tokens += [(start, each) for each in zip(encoded.ids, encoded.offsets, strict=True)]
            made = [token for _, (token, _) in tokens if token in self.names]
            if not made:
                return tokens
        raise ValueError(
            f"this tokenizer makes the mark {self.names[made[0]]!r} out of plain text, so the text "
            f"{text!r:.60} cannot be told from the mark: take it out of the message"
        )


def take_out(text: str, signs: Signs) -> tuple[str, list[int], list[tuple[int, int]]]:
    """A text without the signs, where its seams were, and the parts that were enclosed."""
    clean: list[str] = []
    length, seams, opened, enclosed = 0, [], 0, []
    for piece in re.split(f"([{''.join(signs)}])", text):
        if piece == signs.seam:
            seams.append(length)
        elif piece == signs.opens:
            opened = length
        elif piece == signs.closes:
            enclosed.append((opened, length))
        else:
            clean.append(piece)
            length += len(piece)
    return "".join(clean), seams, enclosed

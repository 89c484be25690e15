"""What is shown is never taken back, never half a letter, never a part of a stop string."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minilora.serving.growing_text import GrowingText, may_begin

from .small import TOKENIZER

PROMPT = TOKENIZER.apply_chat_template([{"role": "user", "content": "q"}], True)
texts = st.text(st.sampled_from("ab \n.é🙂字"), max_size=30)


@given(texts, st.lists(st.text(st.sampled_from("ab \né🙂"), min_size=1, max_size=4), max_size=3))
@example("baa", ["a", "baa"])
def test_pieces_are_the_text_before_the_first_stop(text, stops):
    growing = GrowingText(TOKENIZER, PROMPT, stops)
    ids = TOKENIZER.answer(text)[:-1]
    whole = TOKENIZER.answer_text(PROMPT, ids)
    pieces = []
    for token in ids:
        pieces.append(growing.push(token))
        if growing.stopped:
            break
    end = growing.finish()
    # the answer ends with the first token that completes a stop, whatever longer one begins before
    so_far = (TOKENIZER.answer_text(PROMPT, ids[:n], complete=False) for n in range(len(ids) + 1))
    until = next((text for text in so_far if any(stop in text for stop in stops)), whole)
    cut = min((until.find(stop) for stop in stops if stop in until), default=len(whole))
    assert end == until[:cut].rstrip()
    assert growing.stopped == any(stop in whole for stop in stops)
    assert end.startswith("".join(pieces))
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_letter_of_several_tokens_is_shown_whole():
    """leonickson1/Swiftlet #7: after half an emoji was shown, the stream said nothing more."""
    growing = GrowingText(TOKENIZER, PROMPT)
    ids = TOKENIZER.answer("a 🙂 b")[:-1]
    assert len(ids) > 5
    pieces = [growing.push(token) for token in ids]
    assert "".join(pieces) == growing.finish() == "a 🙂 b"
    assert "🙂" in "".join(pieces[:-1])


@pytest.mark.parametrize(
    ("text", "expected"), [("", 0), ("x", 0), ("xa", 1), ("xab", 2), ("xabx", 0), ("b\n", 1)]
)
def test_a_beginning_of_a_stop_is_held_back(text, expected):
    assert may_begin(text, ["abc", "\n\n"]) == expected
    assert may_begin(text, []) == 0

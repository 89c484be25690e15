"""What is too long is refused before it is read, and what may be taken is never too little."""

from types import SimpleNamespace

import pytest

from minilora.serving.prompts import (
    MOST_ANSWERS,
    checked_prompts,
    least_prompts,
    longest_token,
    most_tokens,
)
from minilora.serving.protocol import ChatRequest, CompletionRequest
from minilora.serving.refusals import Refused

from .small import TOKENIZER


def model(positions):
    config = SimpleNamespace(max_position_embeddings=positions)
    return SimpleNamespace(tokenizer=TOKENIZER, config=config)


def asked(prompt, **fields):
    return CompletionRequest(model="a", prompt=prompt, **fields)


def test_the_least_is_a_bound_from_below_and_refuses_what_cannot_fit():
    longest = longest_token(TOKENIZER)
    assert longest == max(len(token.encode()) for token in TOKENIZER.raw.get_vocab())
    text = "x" * (longest * 8)
    assert least_prompts(asked([text, "x"]), model(8)) == [8, 1]
    for prompt in ([text + "x", "x"], [[1] * 9]):
        with pytest.raises(Refused, match="has 8 positions, and the prompt takes at least 9") as no:
            least_prompts(asked(prompt), model(8))
    assert (no.value.param, no.value.code) == ("prompt", "context_length_exceeded")
    read = asked("Hull status, captain?")
    assert least_prompts(read, model(99))[0] <= len(read.prompts(TOKENIZER)[0])


def test_a_prompt_leaves_a_place_for_an_answer():
    assert checked_prompts(asked([1] * 7), model(8)) == [[1] * 7]
    with pytest.raises(Refused, match="has 8 positions, and the prompt takes 8"):
        checked_prompts(asked([[1], [1] * 8]), model(8))


def test_answers_are_counted_together():
    assert len(checked_prompts(asked([[1]] * 4, n=16), model(8))) == 4
    assert MOST_ANSWERS == 64
    with pytest.raises(Refused, match="at most 64 answers, got 80") as refused:
        checked_prompts(asked([[1]] * 5, n=16), model(8))
    assert (refused.value.status, refused.value.param) == (400, "n")


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, (2 + 5) + (6 + 5)),
        ({"max_tokens": 3}, (2 + 3) + (6 + 3)),
        ({"max_tokens": 30}, 12 + 12),
        ({"max_tokens": 3, "n": 4}, 4 * (5 + 9)),
    ],
)
def test_the_most_that_is_taken_is_every_answer_to_its_end(fields, most):
    assert most_tokens(asked("x", **fields), [2, 6], usual=5, positions=12) == most


def test_messages_that_a_template_refuses_are_the_callers():
    request = ChatRequest(model="a", messages=[{"role": "user", "content": "hi"}])

    class Refusing:
        def apply_chat_template(self, *_, **__):
            raise ValueError("roles must alternate")

    broken = SimpleNamespace(tokenizer=Refusing(), config=model(8).config)
    with pytest.raises(Refused, match="roles must alternate") as refused:
        checked_prompts(request, broken)
    assert (refused.value.status, refused.value.param) == (400, "messages")

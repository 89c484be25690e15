"""What may be asked, at the ends of every range; and what a request says of itself."""

import pytest
from pydantic import ValidationError

from minilora.serving.protocol import (
    SEEDS,
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    LoadRequest,
    same,
)
from minilora.serving.refusals import Refused

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return ChatRequest(**{"model": "a", "messages": MESSAGES, **fields})


def completion(**fields):
    return CompletionRequest(**{"model": "a", "prompt": "hi", **fields})


RANGES = {
    "max_tokens": (1, 2**31),
    "temperature": (0, 2),
    "top_p": (1e-300, 1),
    "top_k": (1, 2**31),
    "seed": (-SEEDS, SEEDS),
    "n": (1, 16),
}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("make", [chat, completion])
def test_the_ends_of_a_range_are_taken_and_nothing_beyond(make, name):
    low, high = RANGES[name]
    for value in (low, high, None):
        assert getattr(make(**{name: value}), name) == value
    for value in (0 if name == "top_p" else low - 1, high + 1, "1", True):
        with pytest.raises(ValidationError):
            make(**{name: value})


@pytest.mark.parametrize(
    ("make", "name", "taken", "refused"),
    [
        (chat, "top_logprobs", [0, 20], [-1, 21]),
        (chat, "max_completion_tokens", [1, 2**31], [0, 2**31 + 1]),
        (completion, "logprobs", [0, 5], [-1, 6]),
        (chat, "stop", ["x", ["x"] * 16, []], ["", [""], ["x"] * 17]),
        (chat, "user", ["", "x" * 256], ["x" * 257, 3]),
        (chat, "model", ["x"], ["", None]),
        (chat, "messages", [], [[], None, "hi"]),
        (completion, "prompt", ["x", ["x"] * 16, [0], [[0]] * 16], ["", [], [[]], ["x"] * 17]),
        (completion, "prompt", [[[1, 2], [3]]], [[-1], [["x"]], [[1], "x"], [[0]] * 17]),
    ],
)
def test_lists_and_texts_have_their_lengths(make, name, taken, refused):
    for value in taken:
        assert getattr(make(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError):
            make(**{name: value})


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_done_is_refused_and_what_says_no_to_it_is_not(name):
    neutral, reason = UNSUPPORTED[name]
    for value in (*neutral, None):
        assert not hasattr(chat(**{name: value}), name)
    with pytest.raises(Refused) as refused:
        chat(**{name: "something"})
    assert (refused.value.status, refused.value.param) == (400, name)
    assert refused.value.code == "unsupported_parameter"
    assert reason in refused.value.message


def test_a_field_that_nobody_knows_is_refused():
    with pytest.raises(ValidationError, match="max_token"):
        chat(max_token=3)
    assert same(1, 1.0)
    assert not same(1, True)
    assert not same(0, False)


def test_the_newer_limit_wins_and_the_usual_one_is_the_last():
    assert chat(max_completion_tokens=3, max_tokens=5).limit(7) == 3
    assert chat(max_tokens=5).limit(7) == completion(max_tokens=5).limit(7) == 5
    assert chat().limit(7) == completion().limit(7) == 7


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
        ({"top_logprobs": 3}, 3),
        ({"top_logprobs": 0}, None),
    ],
)
def test_how_many_tokens_are_listed(fields, wanted):
    assert chat(**fields).top_logprobs_wanted == wanted
    assert completion(logprobs=2).top_logprobs_wanted == 2
    assert completion().top_logprobs_wanted is None


def test_a_message_in_parts_is_one_text_and_a_developer_is_the_system():
    parts = [{"type": "text", "text": "Hull "}, {"type": "text", "text": "status?"}]
    asked = chat(messages=[{"role": "developer", "content": "Be brief."}, MESSAGES[0]])
    assert [each.plain()["role"] for each in asked.messages] == ["system", "user"]
    asked = chat(messages=[MESSAGES[0], {"role": "user", "content": parts}])
    assert asked.question == asked.messages[-1].plain()["content"] == "Hull status?"


def test_the_fewest_tokens_are_by_bytes_and_never_more_than_there_are():
    """A token stands for at most so many bytes, and a message has marks."""
    two = [{"role": "user", "content": "é" * 5}, {"role": "user", "content": "a"}]
    assert chat(messages=two).least_tokens(4) == [5]  # (4 + 10) + (4 + 1) bytes
    assert completion(prompt="é" * 5).least_tokens(4) == [3]
    assert completion(prompt=["abcd", "abcde"]).least_tokens(4) == [1, 2]
    assert completion(prompt=[[1, 2, 3], [4]]).least_tokens(4) == [3, 1]


def test_several_prompts_are_told_from_the_ids_of_one():
    assert completion(prompt=[1, 2]).several == [[1, 2]]
    assert completion(prompt=[5]).several == completion(prompt=[[5]]).several == [[5]]
    assert completion(prompt=[[1, 2], [3]]).several == [[1, 2], [3]]
    assert completion(prompt=["a", "b"]).several == ["a", "b"]
    assert completion(prompt="ab").several == ["ab"]
    questions = [completion(prompt=each).question for each in ("ab", ["c", "d"], [1], [[1]])]
    assert questions == ["ab", "c", "", ""]


@pytest.mark.parametrize("name", ["", "../a", ".a", "a/b", "a" * 65, "ä"])
def test_a_name_to_load_is_a_name(name):
    with pytest.raises(ValidationError):
        LoadRequest(lora_name=name, lora_path="x")
    made = LoadRequest(lora_name="a" * 64, lora_path="x")
    assert made.load_inplace is False

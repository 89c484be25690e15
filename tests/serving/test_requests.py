"""What is asked, checked before anything is done; an answer without an engine."""

import queue
from types import SimpleNamespace

import pytest
import torch

from minilora.model.sampling import Sampling
from minilora.serving.requests import (
    MOST_STOPS,
    Answer,
    Finished,
    Request,
    RequestFailed,
    checked_ends,
    checked_request,
    checked_stops,
    prompt_ids,
    token_logprob,
)


class Tokenizer:
    """Ten tokens; a message is as many of them as it has letters."""

    eos_ids = (2,)

    def __len__(self):
        return 10

    def apply_chat_template(self, messages, add_generation_prompt):
        assert add_generation_prompt
        return [7] * len(messages[-1]["content"])


TOKENIZER = Tokenizer()
MODEL = SimpleNamespace(tokenizer=TOKENIZER, config=SimpleNamespace(max_position_embeddings=8))
SETTINGS = (4, 0.0, None, 0)


def checked(prompt="abc", tenant="", stop=(), ends=None, settings=SETTINGS, **more):
    return checked_request(MODEL, prompt, (), tenant, stop, ends, settings, None, **more)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        *(("abc", (7,) * 3), (("ab", ""), (7,) * 2), ([1, 9, 0], (1, 9, 0)), ((3,), (3,))),
        ([{"role": "user", "content": "abcd"}], (7,) * 4),
    ],
)
def test_a_prompt_is_ids(prompt, ids):
    assert prompt_ids(TOKENIZER, prompt, 8) == ids


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        *(("", "empty"), (" ", "empty"), (("\n", "x"), "empty"), ([], "empty")),
        *((3, "expected a text"), (b"abc", "expected a text"), (None, "expected a text")),
        *(([10], "from 0 to 9, got 10"), ([-1], "got -1"), ([1, True], "got True")),
        *(([1, 2.0], "got 2.0"), ([1] * 8, "8 tokens leaves no room"), ("a" * 9, "9 tokens")),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, reason):
    with pytest.raises(ValueError, match=reason):
        prompt_ids(TOKENIZER, prompt, 8)
    assert len(prompt_ids(TOKENIZER, [1] * 7, 8)) == 7, "one place is left"


def test_no_more_tokens_than_positions_are_left():
    assert checked("abcdef").sampling.max_new_tokens == 2
    assert checked("abcd").sampling.max_new_tokens == 4
    assert checked("abcdef").cost == 8
    assert checked().sampling.ends == (2,)
    assert checked(ends=[5, 6]).sampling.ends == (5, 6)
    assert checked(raw=True, logprobs=0).raw
    assert checked(logprobs=0).logprobs == 0


@pytest.mark.parametrize(
    "wrong", [{"tenant": 3}, {"logprobs": -1}, {"logprobs": True}, {"logprobs": 1.0}, {"stop": 3}]
)
def test_other_fields_are_checked(wrong):
    with pytest.raises(ValueError, match="expected"):
        checked(**wrong)


def test_stops_and_ends_are_lists_of_their_kind():
    assert checked_stops("x") == ("x",)
    assert checked_stops(["x"] * MOST_STOPS) == ("x",) * MOST_STOPS
    for wrong in (["x"] * (MOST_STOPS + 1), [""], "", [3], {"x"}, None):
        with pytest.raises(ValueError, match="stop: expected up to 16 texts"):
            checked_stops(wrong)
    assert checked_ends((1, 2)) == (1, 2)
    for wrong in ([True], [1.0], 3, "12", None):
        with pytest.raises(ValueError, match="ends: expected a list of token ids"):
            checked_ends(wrong)


def test_log_probabilities_are_softmaxs_and_the_likeliest_come_first():
    logits = torch.tensor([0.0, 2.0, 1.0])
    probabilities = torch.softmax(logits.double(), -1).log().tolist()
    told = token_logprob(logits, 0, most=2)
    assert told.id == 0
    assert told.logprob == pytest.approx(probabilities[0], rel=1e-6)
    assert [token for token, _ in told.top] == [1, 2]
    assert [p for _, p in told.top] == pytest.approx([probabilities[1], probabilities[2]], rel=1e-6)
    assert len(token_logprob(logits, 0, most=9).top) == 3
    assert token_logprob(logits, 0, most=0).top == ()


REQUEST = Request((1,), (), "", Sampling(4, 0.0, None, 0, (2,), True, None), ())


def answer(**more):
    cancelled = []
    return Answer(REQUEST, None, cancelled.append, **more), cancelled


def test_an_answer_passes_on_tokens_and_its_end_again_and_again():
    made, cancelled = answer()
    made.put(5)
    first = made.first_token
    made.put(6)
    assert made.first_token == first is not None
    made.ids = [5, 6]
    made.finish("length")
    assert [made.next_event(), made.next_event()] == [5, 6]
    end = made.result()
    assert (end.reason, end.ids, end.text) == ("length", (5, 6), "")
    assert 0 <= end.waited <= end.took
    assert made.next_event() is made.next_event() is made.end is end
    made.cancel()
    assert cancelled == [], "it has ended"


def test_an_answer_that_fails_says_why_again_and_again():
    made, cancelled = answer()
    made.cancel()
    assert cancelled == [made]
    made.fail(KeyError())
    for _ in range(2):
        with pytest.raises(RequestFailed, match="KeyError") as failed:
            made.result()
    assert isinstance(failed.value.__cause__, KeyError)
    with pytest.raises(queue.Empty):
        answer()[0].result(timeout=0.001)


def test_who_cannot_hear_any_more_is_told_nothing_more_and_the_rest_is_cancelled():
    told = []

    def deaf(event):
        told.append(event)
        raise RuntimeError("the loop is closed")

    made, cancelled = answer(notify=deaf)
    made.put(1)
    made.put(2)
    assert (told, cancelled) == ([1], [made])


def test_an_answer_that_was_known_is_replayed_without_time():
    first, _ = answer()
    assert first.replay(None) is False
    assert not first.replayed
    finished = Finished("ab", (5, 6), "stop", (("c0", 1.0),), 3.0, 4.0)
    assert first.replay((finished, ())) is True
    assert (first.ids, first.key, first.replayed) == ([5, 6], (("c0", 1.0),), True)
    assert [first.next_event(), first.next_event()] == [5, 6]
    end = first.result()
    assert (end.text, end.waited, end.took) == ("ab", 0.0, 0.0)

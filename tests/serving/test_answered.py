"""What a learner is told of an answer: whose it is, and the question only where it stands alone."""

import pytest

from minilora.serving.answered import Answered, answered
from minilora.serving.protocol import ChatRequest, CompletionRequest
from minilora.serving.requests import Finished
from minilora.serving.service import Target

USER = {"role": "user", "content": "Hull status?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "Good."}
ENDS = [Finished(text, (1,), "stop", (), 0.1, 0.2) for text in ("first", "second")]


def told(messages, ends=1, adapter="naval", digest="c0", **more):
    asked = ChatRequest(model="m", messages=messages, **more)
    return answered("acme", "r1", asked, Target("m", adapter, digest, ""), ENDS[:ends])


def test_one_message_of_a_user_that_was_answered_once_is_a_question():
    expected = Answered("acme", "r1", "naval", "c0", "ann", "Hull status?", "first")
    assert told([USER], user="ann") == expected


ALONE_NOT = {
    "after a system's words": ([SYSTEM, USER], 1),
    "in a conversation": ([USER, REPLY, USER], 1),
    "answered twice": ([USER], 2),
    "two messages, two answers": ([SYSTEM, USER], 2),
    "a system's words alone": ([SYSTEM], 1),
}


@pytest.mark.parametrize("case", ALONE_NOT)
def test_what_is_more_or_less_than_a_question_is_none(case):
    messages, ends = ALONE_NOT[case]
    assert (told(messages, ends).question, told(messages, ends).answer) == ("", "first")


def test_a_completion_is_no_question_and_the_base_has_no_name():
    asked = CompletionRequest(model="m", prompt="Hull")
    got = answered("acme", "r1", asked, Target("m", None, None, ""), ENDS[:1])
    assert got == Answered("acme", "r1", "", "", "", "", "first")

"""Each form that people write becomes the example it means; what cannot be learnt from says why."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.training.data_forms import read_row
from minilora.training.examples import Conversation, Document, Example

ONE = Example("Hi", "Ahoy!")
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy!"}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = Conversation((("system", "Be brief."), ("user", "Hi"), ("assistant", "Ahoy!")))


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"instruction": "Hi", "output": "Ahoy!"}, ONE),
        ({"instruction": "Hi", "input": None, "output": "Ahoy!", "text": "### Hi"}, ONE),
        ({"Instruction ": "Hi", "Output": "Ahoy!"}, ONE),
        ({"instruction": "Hi", "input": "Log", "output": "a"}, Example("Hi", "a", "Log")),
        ({"instruction": "Hi", "context": "Log", "response": "a"}, Example("Hi", "a", "Log")),
        ({"prompt": "Hi", "completion": "Ahoy!"}, ONE),
        ({"question": "Hi", "answer": "Ahoy!"}, ONE),
        ({"input": "Hi", "output": "Ahoy!"}, ONE),
        ({"prompt": [USER], "completion": [ANSWER]}, ONE),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, TALK),
        ({"instruction": "Hi", "output": "Ahoy!", "system": "Be brief.", "history": []}, TALK),
        ({"instruction": "Hi", "output": "Ahoy!", "system": " ", "history": None}, ONE),
        (
            {"instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]]},
            Conversation((("user", "a"), ("assistant", "b"), ("user", "d\nc"), ("assistant", "e"))),
        ),
        ({"messages": [USER, ANSWER]}, ONE),
        ({"messages": [SYSTEM, USER, ANSWER]}, TALK),
        ({"messages": json.dumps([SYSTEM, USER, ANSWER])}, TALK),
        ({"messages": [USER, ANSWER], "system": "Be brief."}, TALK),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "Be long."}, TALK),
        ({"messages": [SYSTEM | {"role": "developer"}, USER, ANSWER]}, TALK),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Ahoy!"},
                ]
            },
            ONE,
        ),
        ({"conversations": [SYSTEM, USER, ANSWER]}, TALK),
        ({"messages": [USER | {"content": [{"type": "text", "text": "Hi"}]}, ANSWER]}, ONE),
        ({"text": "Once."}, Document("Once.")),
        (ONE, ONE),
        (TALK, TALK),
    ],
)
def test_a_row_becomes_the_example_it_means(row, example):
    assert read_row(row).example == example


def test_calls_of_tools_and_their_results_stand_in_the_conversation():
    call = {"id": "1", "function": {"name": "hull", "arguments": '{"side": "left"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "90", "tool_call_id": "1"},
        ANSWER,
    ]
    read = read_row({"messages": messages, "tools": [{"name": "hull"}]})
    roles, texts = zip(*read.example.messages, strict=True)
    assert roles == ("user", "assistant", "tool", "assistant")
    assert json.loads(texts[1]) == call["function"]
    assert read.unused == ("messages.tool_call_id",)  # no template here writes it
    assert read.example.variables() == {"tools": [{"name": "hull"}]}


def test_columns_and_keys_that_are_not_used_are_named():
    assert read_row({"prompt": "a", "completion": "b", "id": 1, "Tag": ""}).unused == ("id", "tag")
    turns = [USER | {"weight": None}, ANSWER | {"weight": 1}]
    assert read_row({"messages": turns, "id": 1}).unused == ("id", "messages.weight")
    for mark in ({"weight": 0}, {"train": False}):
        with pytest.raises(ValueError, match="message 2 is marked as not to be learnt"):
            read_row({"messages": [USER, ANSWER | mark]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "expected an object with named columns, got NoneType"),
        ([USER, ANSWER], "expected an object with named columns, got list"),
        ({}, "the row is empty"),
        ({"a": 1, "b": 2}, "columns 'a', 'b' are of no known form; expected instruction"),
        ({"instruction": "a"}, "of no known form"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences are not learnt here"),
        ({"instruction": "a", "output": " "}, "'output' is empty"),
        ({"instruction": None, "output": "a"}, "'instruction' is empty"),
        ({"instruction": "a", "output": 3}, "'output' must be text, got int"),
        ({"instruction": "a", "output": "b", "input": 0}, "'input' must be text, got int"),
        ({"instruction": "a", "output": "\ud800"}, "half of a surrogate pair"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "'history' must be pairs"),
        ({"text": ""}, "'text' is empty"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "Hi"}, "'messages' is text, and not valid JSON"),
        ({"messages": {"role": "user"}}, "'messages' must be a list of messages"),
        ({"messages": ["Hi"]}, "'messages', message 1: expected an object, got str"),
        ({"messages": [{"content": "Hi"}]}, r"expected 'role' or 'from', got \['content'\]"),
        ({"messages": [{"role": "pirate", "content": "a"}]}, "unknown role 'pirate'; known are"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2: no content"),
        ({"messages": [USER, ANSWER | {"content": 3}]}, "message 2: its content must be text"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": {"a": 1}}]},
            "must be a list of ob",
        ),
        ({"messages": [USER | {"content": [{"type": "text", "text": 1}]}]}, "the text of a part"),
        ({"messages": [USER]}, "needs a message of 'assistant'"),
        ({"messages": [USER, ANSWER | {"content": ""}]}, "'assistant' is empty"),
        (
            {"messages": [USER | {"content": [{"type": "image_url"}]}, ANSWER]},
            "only text is learnt",
        ),
    ],
)
def test_a_row_that_cannot_be_learnt_from_says_why(row, message):
    with pytest.raises(ValueError, match=message):
        read_row(row)


names = st.sampled_from(
    ["instruction", "output", "input", "prompt", "completion", "messages", "conversations", "text",
     "role", "content", "from", "value", "system", "history", "tool_calls", "type"]
)  # fmt: skip
json_values = st.recursive(
    st.sampled_from([None, 0, True, "text", "user", "assistant", "", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, json_values, max_size=6))
def test_any_row_is_an_example_or_a_value_error(row):
    """Files come from strangers: no KeyError, no TypeError, whatever stands where."""
    try:
        read = read_row(row)
    except ValueError:
        return
    assert isinstance(read.example, Example | Conversation | Document)


TOOL = {"type": "function", "function": {"name": "hull", "parameters": {"type": "object"}}}
ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy!"}]


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"functions": [TOOL["function"]]},
        {"functions": json.dumps([TOOL["function"]])},
    ],
    ids=["list", "text", "functions", "functions as text"],
)
def test_definitions_of_tools_go_to_the_template(columns):
    read = read_row({"messages": ASKED, **columns})
    assert read.unused == ()
    assert read.example.variables() == {"tools": [TOOL]}
    assert read.example.messages == (("user", "Hi"), ("assistant", "Ahoy!"))


@pytest.mark.parametrize("empty", [None, [], "", "[]"])
def test_no_tools_are_no_tools(empty):
    assert read_row({"messages": ASKED, "tools": empty}).example == Example("Hi", "Ahoy!")


@pytest.mark.parametrize("tools", ["{", "3", [3], {"a": 1}])
def test_tools_of_another_form_are_refused(tools):
    with pytest.raises(ValueError, match="'tools' (must be a list of objects|is text, and not va)"):
        read_row({"messages": ASKED, "tools": tools})

"""What is learnt of a conversation: each answer and the mark that ends it, nothing else."""

import json
import warnings

import pytest
import torch

from minilora import Tokenizer, load_base
from minilora.model.generation import CausalLM
from minilora.training.batches import IGNORE, encode
from minilora.training.examples import Conversation, Example

from .chat_folders import FAMILIES, byte_level, sentencepiece, theirs, write_folder

MAKERS = {"byte level": byte_level, "sentencepiece": sentencepiece}
TALK = Conversation(
    (
        ("user", "hello?"),
        ("assistant", "hi, how are you?"),
        ("user", "The hull"),
        ("assistant", "is at 90%."),
    )
)


def open_family(folder, family, maker="byte level", **more):
    return Tokenizer(write_folder(folder, family, MAKERS[maker], **more) / "tokenizer.json")


def learnt_runs(tokenizer, encoded):
    """The labelled stretches, as text with marks."""
    runs, before = [], False
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        assert label in (token, IGNORE)
        if label != IGNORE:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label != IGNORE
    return [tokenizer.raw.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3"])
def test_each_answer_and_its_end_have_labels_and_nothing_else(tmp_path, family, maker):
    tokenizer = open_family(tmp_path, family, maker)
    encoded = encode(tokenizer, TALK)
    end = FAMILIES[family][-1]
    runs = [run.replace(" ", "") for run in learnt_runs(tokenizer, encoded)]
    assert runs == [f"hi,howareyou?{end}", f"isat90%.{end}"]
    assert encoded.ids[-1] == encoded.labels[-1] == tokenizer.eos_id
    whole = theirs(tmp_path).apply_chat_template(TALK.as_messages(), return_dict=False)
    assert encoded.ids == whole[: len(encoded.ids)]


@pytest.mark.parametrize("maker", MAKERS)
def test_where_the_template_marks_answers_the_labels_are_transformers_mask(tmp_path, maker):
    tokenizer = open_family(tmp_path, "generation", maker)
    encoded = encode(tokenizer, TALK)
    mask = theirs(tmp_path).apply_chat_template(
        TALK.as_messages(), return_assistant_tokens_mask=True, return_dict=True
    )["assistant_masks"]
    assert [int(label != IGNORE) for label in encoded.labels] == mask[: len(encoded.ids)]
    assert not any(mask[len(encoded.ids) :])


def test_a_template_whose_earlier_turns_change_learns_the_last_one_and_says_so_once(tmp_path):
    tokenizer = open_family(tmp_path, "qwen3")
    with pytest.warns(UserWarning, match="only the last answer is learnt"):
        encoded = encode(tokenizer, TALK)
    runs = learnt_runs(tokenizer, encoded)
    assert runs == ["<think>\n\n</think>\n\nis at 90%.<|im_end|>"]
    whole = theirs(tmp_path).apply_chat_template(TALK.as_messages(), return_dict=False)
    assert encoded.ids == whole[: len(encoded.ids)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(tokenizer, TALK)
        encode(tokenizer, Conversation(TALK.messages[:2]))


def test_a_last_turn_that_its_prompt_does_not_open_is_found_by_its_content(tmp_path):
    template = (
        "{% for m in messages %}{{ '<|im_start|>!' + m.content | trim + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>?{% endif %}"
    )
    tokenizer = open_family(tmp_path, "chatml", chat_template=template)
    encoded = encode(tokenizer, Example("hello?", " hi "))
    assert learnt_runs(tokenizer, encoded) == ["hi<|im_end|>"]
    shouting = template.replace("trim", "upper")
    tokenizer = open_family(tmp_path, "chatml", chat_template=shouting)
    with pytest.raises(ValueError, match="changes or leaves out the last answer"):
        encode(tokenizer, Example("hello?", "hi"))


TELLS_NOBODY = "{% for m in messages %}{{ m.content }}{% endfor %}"
LEAVES_OUT = {
    "the question": ("{{ messages[-1].content }}", "leaves out what was asked, as 'hello.': the"),
    "who speaks": (TELLS_NOBODY, "writes nothing between a question and its answer"),
    "who speaks, in lines": (TELLS_NOBODY.replace("}}", "}}\n"), "cannot tell who speaks"),
}


@pytest.mark.parametrize("what", LEAVES_OUT)
def test_a_template_that_leaves_something_out_is_said_once(tmp_path, what):
    """Learnt in silence, with a wrong file in place of the model's own."""
    template, words = LEAVES_OUT[what]
    tokenizer = open_family(tmp_path, "llama3", chat_template=template)
    with pytest.warns(UserWarning, match=words):
        encoded = encode(tokenizer, Example("hello?", "hi"))
    assert learnt_runs(tokenizer, encoded)[0].startswith("hi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(tokenizer, Example("hello?", "hi"))


def test_a_template_without_the_answer_is_refused(tmp_path):
    """A template of one word: 400 conversations, and nothing but their ends was learnt."""
    tokenizer = open_family(tmp_path, "llama3", chat_template="hello")
    with pytest.raises(ValueError, match="leaves out the last answer"):
        encode(tokenizer, Example("hello?", "hi"))


ENDS_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.role == 'user' }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_writes_only_the_answers_end_is_refused(tmp_path):
    tokenizer = open_family(tmp_path, "chatml", chat_template=ENDS_ONLY)
    with pytest.raises(ValueError, match="leaves out the last answer"):
        encode(tokenizer, Example("hello?", "hi"))
    other = ENDS_ONLY.replace("<|im_start|>", "<|start_header_id|>").replace("im_end", "eot_id")
    tokenizer = open_family(tmp_path, "llama3", chat_template=other)
    with pytest.raises(ValueError, match="leaves out the last answer"):
        encode(tokenizer, Example("hello?", "hi"))


def test_an_answer_that_stands_in_the_question_only_is_refused(tmp_path):
    """``rfind`` took the question's last word for the answer, and taught that."""
    template = (
        "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>?{% endif %}"
    )
    tokenizer = open_family(tmp_path, "chatml", chat_template=template)
    with pytest.raises(ValueError, match="leaves out the last answer"):
        encode(tokenizer, Example("hello or hi", "hi"))


def test_a_template_that_ends_no_answer_gets_the_named_end(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = open_family(tmp_path, "llama3", chat_template=template)
    encoded = encode(tokenizer, Example("hello?", "hi"))
    assert tokenizer.raw.decode(encoded.ids, skip_special_tokens=False) == (
        "user: hello?\nassistant: hi<|end_of_text|>"
    )
    assert encoded.labels[-1] == encoded.ids[-1]


@pytest.mark.parametrize("family", [*FAMILIES, "shipped"])
def test_marks_in_an_answer_are_learnt_as_text(tmp_path, family):
    shipped = family == "shipped"
    tokenizer = load_base().tokenizer if shipped else open_family(tmp_path, family)
    end = "<|im_end|>" if shipped else FAMILIES[family][-1]
    answer = f"A turn ends in {end}, then comes the next."
    encoded = encode(tokenizer, Example("How does a turn end?", answer))
    assert encoded.labels.count(tokenizer.eos_id) == 1
    labelled = [label for label in encoded.labels if label != IGNORE]
    start = 1 if family in ("llama2", "mistral") else 0  # the form's own space
    assert tokenizer.raw.decode(labelled[:-1])[start:].replace("<think>\n\n</think>\n\n", "") in (
        answer,
        f"{answer} ",
    )
    assert tokenizer.decode(tokenizer.answer(answer)) == answer


def test_our_own_forms_learn_what_they_learnt_before(base):
    """An answer is encoded by itself, as the shipped base was taught it."""
    tokenizer = base.tokenizer
    one = Example("Status?", "Hull 90%.", "Log: Hull 90%.")
    prompt, answer = tokenizer.prompt("Status?", "Log: Hull 90%."), tokenizer.encode("Hull 90%.")
    encoded = encode(tokenizer, one)
    assert encoded.ids == [*tokenizer.encode(prompt), *answer, tokenizer.eos_id]
    assert (
        encoded.labels == [IGNORE] * len(tokenizer.encode(prompt)) + encoded.ids[-len(answer) - 1 :]
    )
    runs = learnt_runs(tokenizer, encode(tokenizer, TALK))
    assert runs == ["hi, how are you?<|im_end|>", "is at 90%.<|im_end|>"]


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_the_plain_form(tmp_path, bos):
    folder = write_folder(tmp_path, "llama2", chat_template=None, bos_token=bos)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    encoded = encode(tokenizer, TALK)
    text = tokenizer.raw.decode(encoded.ids, skip_special_tokens=False)
    assert text == (
        "User: hello?\nAssistant: hi, how are you?</s>\nUser: The hull\nAssistant: is at 90%.</s>"
    )
    assert learnt_runs(tokenizer, encoded) == [" hi, how are you?</s>", " is at 90%.</s>"]
    first = Conversation((("assistant", "hi"), ("user", "hello?"), ("assistant", "hi")))
    assert learnt_runs(tokenizer, encode(tokenizer, first)) == [" hi</s>", " hi</s>"]


def test_what_follows_the_last_answer_is_left_out_and_without_an_answer_it_is_refused(base):
    tokenizer = base.tokenizer
    more = Conversation((*TALK.messages, ("user", "bye")))
    assert encode(tokenizer, more) == encode(tokenizer, TALK)
    with pytest.raises(ValueError, match="expected a message of 'assistant'"):
        tokenizer.encode_turns([{"role": "user", "content": "hello?"}])


def test_tools_are_written_by_the_template_in_training_and_in_asking(tmp_path):
    """As transformers writes them; without, the prompt of a use with tools was never trained."""
    folder = write_folder(tmp_path, "qwen3")
    tool = {"type": "function", "function": {"name": "hull", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "Hull?"}, {"role": "assistant", "content": "90%."}]
    pairs = tuple((message["role"], message["content"]) for message in messages)
    ours = Tokenizer(folder / "tokenizer.json")
    encoded = encode(ours, Conversation(pairs, json.dumps([tool])))
    expected = theirs(folder).apply_chat_template(messages, tools=[tool])["input_ids"]
    assert encoded.ids == expected[: len(encoded.ids)]
    assert len(encoded.ids) > len(encode(ours, Conversation(pairs)).ids) + 20
    prompt = theirs(folder).apply_chat_template(
        messages[:1], tools=[tool], add_generation_prompt=True
    )
    model = CausalLM()
    model.tokenizer = ours
    model.weight = torch.nn.Parameter(torch.zeros(1))
    assert model.left_padded([messages[:1]], [tool])[0] == [prompt["input_ids"]]

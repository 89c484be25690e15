"""What is shown is never taken back, never half a letter, never a part of a stop string."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from minilora.serving.growing_text import GrowingText, may_begin
from minilora.serving.reply_forms import ChatForm

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


def test_a_stop_at_the_very_beginning_leaves_nothing():
    growing = GrowingText(TOKENIZER, PROMPT, ["Hull"])
    assert [growing.push(token) for token in TOKENIZER.answer("Hull 90 percent")[:-1]][-1] == ""
    assert (growing.stopped, growing.shown, growing.finish()) == (True, "", "")


def test_a_letter_of_several_tokens_is_shown_whole():
    """leonickson1/Swiftlet #7: after half an emoji was shown, the stream said nothing more."""
    growing = GrowingText(TOKENIZER, PROMPT)
    ids = TOKENIZER.answer("a 🙂 b")[:-1]
    assert len(ids) > 5
    pieces = [growing.push(token) for token in ids]
    assert "".join(pieces) == growing.finish() == "a 🙂 b"
    assert "🙂" in "".join(pieces[:-1])


@pytest.mark.parametrize("raw", [True, False], ids=["text", "chat"])
def test_a_letter_that_the_prompt_begins_and_the_answer_ends_is_shown(raw):
    """A prompt in ids may end anywhere: each place of a text with letters of two to four bytes."""
    tokenizer = TOKENIZER if raw else SimpleNamespace(marks=TOKENIZER.marks, raw=TOKENIZER.raw)
    if not raw:
        tokenizer.has_template, tokenizer.lead = True, ""
        tokenizer.text_behind = lambda *ids: type(TOKENIZER).text_behind(tokenizer, *ids)
        tokenizer.answer_text = lambda *ids: type(TOKENIZER).answer_text(tokenizer, *ids)
    text = "a 🙂字é b"
    ids = TOKENIZER.encode_text(text)
    halves = 0
    for place in range(1, len(ids)):
        prompt = TOKENIZER.raw.decode(ids[:place])
        halves += prompt.endswith("\ufffd")
        expected = text.removeprefix(prompt.rstrip("\ufffd"))
        growing = GrowingText(tokenizer, ids[:place], raw=raw)
        pieces = [growing.push(token) for token in ids[place:]]
        assert "".join(pieces) == growing.finish() == expected
    assert halves > 3


@pytest.mark.parametrize(
    ("raw", "expected"), [(True, " ab cd"), (False, "cd")], ids=["text", "chat"]
)
def test_what_a_form_writes_before_an_answer_is_not_shown(raw, expected):
    """Qwen3's empty <think>, say; a text that goes on has no form."""
    form = SimpleNamespace(marks=TOKENIZER.marks, raw=TOKENIZER.raw, has_template=True, lead=" ab ")
    growing = GrowingText(form, [], raw=raw)
    ids = TOKENIZER.raw.encode(" ab cd", add_special_tokens=False).ids
    assert TOKENIZER.raw.decode(ids) == " ab cd"
    assert "".join(growing.push(token) for token in ids) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("", 0), ("x", 0), ("xa", 1), ("xab", 2), ("xabx", 0), ("b\n", 1)]
)
def test_a_beginning_of_a_stop_is_held_back(text, expected):
    assert may_begin(text, ["abc", "\n\n"]) == expected
    assert may_begin(text, []) == 0


def llama_like():
    """A tokenizer as Llama 2's: a space begins a word, bytes stand for letters that it lacks."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abc.", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    ids = {token: number for number, token in enumerate(tokens)}
    raw = Tokenizer(BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])

    def encode(text):
        return raw.encode(text).ids

    marks = SimpleNamespace(names={})
    return SimpleNamespace(raw=raw, marks=marks, has_template=False, lead="", encode=encode)


@given(st.lists(st.sampled_from(["ab", " ab", " a", "é", "字", "🙂", ".", " "]), max_size=20))
def test_a_text_goes_on_with_its_spaces_whatever_the_decoder_does_where_a_text_begins(words):
    tokenizer, text = llama_like(), "".join(words)
    prompt = tokenizer.encode("a c")
    ids = tokenizer.encode(f"c{text}")[2:]  # behind the word's beginning and its letter
    growing = GrowingText(tokenizer, prompt, raw=True)
    pieces = [growing.push(token) for token in ids]
    assert growing.finish() == text
    assert text.startswith("".join(pieces))
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_token_late_in_an_answer_costs_what_an_early_one_does():
    counts = []

    class Counting:
        def decode(self, ids, **settings):
            counts.append(len(ids))
            return TOKENIZER.raw.decode(ids, **settings)

    growing = GrowingText(TOKENIZER, PROMPT)
    ids = TOKENIZER.answer("The hull is 🙂 at 90 percent. " * 20)[:-1]
    growing.tokenizer = SimpleNamespace(marks=TOKENIZER.marks, raw=Counting())
    for token in ids:
        growing.push(token)
    assert len(ids) > 200
    assert max(counts) <= 8  # a letter has up to four tokens, and the window one more
    assert growing.shown == TOKENIZER.answer_text(PROMPT, ids).rstrip()


def test_a_tokens_own_text_has_its_space():
    form = ChatForm(llama_like())
    token = form.tokenizer.raw.token_to_id("▁ab")
    assert form.token(token, -1.0)["token"] == " ab"
    assert form.token(form.tokenizer.raw.token_to_id("<0xC3>"), -1.0)["bytes"] is None
    mark = TOKENIZER.raw.token_to_id("<|im_end|>")
    assert ChatForm(TOKENIZER).token(mark, -1.0)["token"] == "<|im_end|>", "also one not shown"

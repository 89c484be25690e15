"""A tokenizer that llama.cpp has is named as there; any other is refused with the reason."""

import json

import pytest
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers, pre_tokenizers

from minilora import Tokenizer
from minilora.model.gguf_vocab import sentencepiece_fields, vocab_fields

from .gguf_folders import FOLDERS, byte_level, sentencepiece, write_gguf_folder


def fields_of(folder, raw, **options):
    raw.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder / "tokenizer.json", eos_id=1)
    return vocab_fields(tokenizer, raw.get_vocab_size(), **options)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_way_to_cut_is_found_by_its_expression(tmp_path, name):
    kind = FOLDERS[name][1]
    folder = write_gguf_folder(tmp_path, name)
    fields = vocab_fields(Tokenizer(folder / "tokenizer.json"), 600)
    assert fields["tokenizer.ggml.model"] == ("llama" if kind == "llama" else "gpt2")
    assert fields["tokenizer.ggml.pre"] == ("default" if kind == "llama" else kind)
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[-1] == 5, "rows without a token are unused"
    assert 3 in kinds, "marks are control tokens"
    if kind == "llama":
        assert kinds[:4] == [2, 3, 3, 6]
        assert fields["tokenizer.ggml.add_space_prefix"]


def test_scores_join_in_the_order_of_the_merges():
    raw = sentencepiece()
    content = json.loads(raw.to_str())
    names = sorted(raw.get_vocab(), key=raw.get_vocab().get)
    scores = sentencepiece_fields(content, names)["scores"]
    merges = content["model"]["merges"]
    ranked = [scores[raw.token_to_id("".join(merge))] for merge in merges]
    assert ranked == sorted(ranked, reverse=True)


def altered(change):
    content = json.loads(byte_level("gpt-2", ("<s>", "</s>")).to_str())
    change(content)
    return Raw.from_str(json.dumps(content))


REGEX = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
REFUSED = {
    "another expression": (
        lambda c: c.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [REGEX, PLAIN]}),
        r"its pre-tokenizer is \{.type.: .Sequence.",
    ),
    "a space before": (
        lambda c: c["pre_tokenizer"].update(add_prefix_space=True),
        "its pre-tokenizer is",
    ),
    "words as they are": (lambda c: c["model"].update(ignore_merges=True), "its pre-tokenizer is"),
    "lower case": (lambda c: c.update(normalizer={"type": "Lowercase"}), "its normalizer is Lower"),
    "none": (lambda c: c.update(pre_tokenizer=None), "its pre-tokenizer is"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_another_tokenizer_is_refused_with_the_reason_and_a_way_out(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"llama.cpp has no such tokenizer: {message}.*--pre"):
        fields_of(tmp_path, altered(change))
    if "Lower" in message:
        return
    assert fields_of(tmp_path, altered(change), pre="gpt-2")["tokenizer.ggml.pre"] == "gpt-2"


def test_other_algorithms_are_refused(tmp_path):
    raw = Raw(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(ValueError, match="its model is WordLevel, expected BPE"):
        fields_of(tmp_path, raw)
    raw = Raw(models.BPE({"a": 0, "b": 1}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ValueError, match="it has no merges"):
        fields_of(tmp_path, raw)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_the_space_before_a_text_is_kept(tmp_path, scheme):
    raw = sentencepiece()
    raw.normalizer = normalizers.Sequence([])
    content = json.loads(raw.to_str())
    content["normalizer"] = None
    raw = Raw.from_str(json.dumps(content))
    raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Metaspace("▁", prepend_scheme=scheme)
    fields = fields_of(tmp_path, raw)
    assert fields["tokenizer.ggml.add_space_prefix"] == (scheme != "never")
    raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=True)
    with pytest.raises(ValueError, match="it prepares a text by"):
        fields_of(tmp_path, raw)

"""A ``tokenizer.json`` as the fields of a GGUF file, for llama.cpp's own tokenizer.

llama.cpp does not read a ``tokenizer.json``. It has two algorithms for our models, and the file
says which, with the vocabulary:

    gpt2    byte-level BPE: tokens, merges, and the *name* of the way a text is cut into words
    llama   SentencePiece's BPE: tokens, each with a score; of two neighbours that could be joined,
            those are whose result has the highest score

The ways to cut are regular expressions in llama.cpp's source (src/llama-vocab.cpp), so a tokenizer
with another one cannot be written: its texts would become other ids in silence. It is refused by
name. For ``llama`` the score of a token is minus the rank of the first merge that makes it: then
both algorithms join in the same order.

Left out: WordPiece, Unigram, normalizers other than NFC (which llama.cpp skips as well).
"""

from __future__ import annotations

import json
import re
from typing import Any

from .tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's kinds of tokens
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{WORD}{UPPER}*{LOWER}+|{WORD}{UPPER}+{LOWER}*|\p{{N}}"
TEKKEN += r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# regular expression and whether a word in the vocabulary is taken as it is: llama.cpp's name
NAMES = {
    (CONTRACTIONS + r"\p{N}{1,3}" + REST, True): "llama-bpe",
    (CONTRACTIONS + r"\p{N}{1,3}" + REST, False): "dbrx",
    (CONTRACTIONS + r"\p{N}" + REST, False): "qwen2",
    (TEKKEN, True): "tekken",
    ("GPT-2", False): "gpt-2",
    ("digits, GPT-2", False): "smollm",
}
SPACE = "\u2581"


def vocab_fields(tokenizer: Tokenizer, vocab_size: int, pre: str | None = None) -> dict[str, Any]:
    """The ``tokenizer.*`` fields of a GGUF file; tokens are filled up to ``vocab_size``.

    ``pre`` names the way to cut instead of the one that the tokenizer has. Raises ``ValueError``
    for a tokenizer that llama.cpp does not have.
    """
    content = json.loads(tokenizer.raw.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise refusal(f"its model is {model.get('type')}, expected BPE")
    tokens, kinds = tokens_of(tokenizer, model, vocab_size)
    if model.get("byte_fallback"):
        fields = sentencepiece_fields(content, tokens)
    else:
        fields = byte_level_fields(content, pre)
    named = {"tokens": tokens, "token_type": kinds, **fields, **special_fields(tokenizer)}
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()} | {
        "tokenizer.chat_template": tokenizer.chat_template
    }


def refusal(reason: str) -> ValueError:
    """The error for a tokenizer that llama.cpp does not have."""
    return ValueError(
        f"llama.cpp has no such tokenizer: {reason}. Export the adapter alone, or name the nearest "
        "of its pre-tokenizers (--pre gpt-2), which may give other ids for some texts"
    )


def tokens_of(
    tokenizer: Tokenizer, model: dict[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """The text and the kind of every token, in the order of their ids."""
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for text, number in tokenizer.raw.get_vocab(with_added_tokens=False).items():
        tokens[number], kinds[number] = text, NORMAL
        if text == model.get("unk_token"):
            kinds[number] = UNKNOWN
        elif model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            kinds[number] = BYTE
    for number, token in tokenizer.raw.get_added_tokens_decoder().items():
        if kinds[number] != UNKNOWN:
            kinds[number] = CONTROL if token.special else USER_DEFINED
        tokens[number] = token.content
    return tokens, kinds


def byte_level_fields(content: dict[str, Any], pre: str | None) -> dict[str, Any]:
    """Model, way to cut and merges of a byte-level BPE."""
    normalizer = content.get("normalizer") or {"type": "NFC"}
    if normalizer["type"] != "NFC" and pre is None:
        raise refusal(f"its normalizer is {normalizer['type']}, expected none or NFC")
    merges = [each if isinstance(each, str) else " ".join(each) for each in merges_of(content)]
    return {"model": "gpt2", "pre": pre or pre_tokenizer_name(content), "merges": merges}


def merges_of(content: dict[str, Any]) -> list[Any]:
    """The merges of a BPE. Raises ``ValueError`` without any."""
    if not content["model"].get("merges"):
        raise refusal("it has no merges")
    return content["model"]["merges"]


def pre_tokenizer_name(content: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer cuts a text into words."""
    given = content.get("pre_tokenizer") or {"type": "none"}
    parts = given.get("pretokenizers", [given])
    kinds = [part["type"] for part in parts]
    last = parts[-1]
    if kinds[-1:] != ["ByteLevel"] or last.get("add_prefix_space"):
        raise refusal(f"its pre-tokenizer is {json.dumps(given)[:300]}")
    way = None
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        way = "GPT-2"
    elif kinds == ["Digits", "ByteLevel"] and last.get("use_regex", True):
        way = "digits, GPT-2" if parts[0].get("individual_digits") else None
    elif kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        behaviour = (parts[0].get("behavior"), bool(parts[0].get("invert")))
        usual = behaviour in (("Isolated", False), ("Removed", True))
        way = parts[0]["pattern"].get("Regex") if usual else None
    name = NAMES.get((str(way), bool(content["model"].get("ignore_merges"))))
    if name is None:
        raise refusal(f"its pre-tokenizer is {json.dumps(given)[:300]}")
    return name


def sentencepiece_fields(content: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Model, scores and the space before a text of a SentencePiece BPE."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges_of(content)):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(parts), rank)
    scores = [-float(ranks.get(token, len(ranks) + number)) for number, token in enumerate(tokens)]
    return {
        "model": "llama",
        "pre": "default",
        "scores": scores,
        "add_space_prefix": adds_space(content),
    }


def adds_space(content: dict[str, Any]) -> bool:
    """Whether a text gets a space before it. Raises ``ValueError`` for another normalization."""
    normalizer, pre = content.get("normalizer"), content.get("pre_tokenizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    if pre is None and steps in ([prepends, replaces], [replaces]):
        return prepends in steps
    if pre is None or pre["type"] != "Metaspace" or steps or pre.get("split", True):
        raise refusal(f"it prepares a text by {json.dumps([normalizer, pre])[:300]}")
    if pre.get("replacement") != SPACE:
        raise refusal(f"it writes a space as {pre.get('replacement')!r}, expected {SPACE!r}")
    return pre.get("prepend_scheme", "always") != "never"


def special_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """First, last, unknown and padding tokens; up to three may end an answer."""
    named, ids = tokenizer.companions.special_tokens(), tokenizer.companions.ids
    fields: dict[str, Any] = {"add_bos_token": tokenizer.adds_bos, "add_eos_token": False}
    for role, name in (("bos", "bos"), ("unknown", "unk"), ("padding", "pad")):
        number = tokenizer.raw.token_to_id(named.get(f"{name}_token", ""))
        number = ids.get(f"{name}_token_id") if number is None else number
        if isinstance(number, int):
            fields[f"{role}_token_id"] = number
    ends = tokenizer.eos_ids
    fields |= dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), ends, strict=False))
    return fields

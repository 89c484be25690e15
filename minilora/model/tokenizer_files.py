"""A base's tokenizer: read with the model that it belongs to, and written beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..files import json_writer, text_writer
from .own_forms import END_OF_TEXT, START
from .tokenizer import Tokenizer
from .tokenizer_folder import TEMPLATE_FILE

__all__ = ["TOKENIZER_FILES", "load_tokenizer", "tokenizer_files"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", TEMPLATE_FILE)


def load_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a base; raise ``ValueError`` if the model has no embedding for a token."""
    tokenizer = Tokenizer(folder / "tokenizer.json")
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.json has {len(tokenizer)} tokens, but the model has only "
            f"vocab_size={vocab_size}"
        )
    if bad := [token for token in tokenizer.ends if not 0 <= token < vocab_size]:
        raise ValueError(
            f"{folder}: expected an eos_token_id below vocab_size={vocab_size}, got {bad[0]}"
        )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Callable[[Path], None]]:
    """Writers for ``tokenizer.json`` and for what stands beside it."""
    end = tokenizer.raw.id_to_token(tokenizer.ends[0]) if tokenizer.ends else None
    defaults = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": END_OF_TEXT if tokenizer.is_chatml else end,
    }
    if not tokenizer.has_template:  # no form writes it; CTranslate2 does not open a Llama without
        defaults["bos_token"] = START if tokenizer.is_chatml else end
    kept = dict(tokenizer.companions.tokenizer_config)
    kept.pop("auto_map", None)  # names code that is not in the folder
    templates = tokenizer.companions.templates if tokenizer.has_template else {}
    kept["chat_template"] = tokenizer.chat_template
    if len(templates) > 1 or "default" not in (templates or {"default": ""}):
        kept["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    return {
        "tokenizer.json": text_writer(tokenizer.raw.to_str()),
        "tokenizer_config.json": json_writer(defaults | kept),
    }

"""What stands beside ``tokenizer.json`` in a folder: chat templates, special tokens, ends.

    tokenizer_config.json      chat_template, bos_token, eos_token, pad_token, …
    chat_template.jinja        newer folders' template; it goes before the one above
    additional_chat_templates  named ones, one file each
    generation_config.json     eos_token_id: one id, or all that end an answer
    config.json                bos_token_id, eos_token_id, pad_token_id

All of it is kept, so that ``save_model`` can write it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import read_json
from .chat import TEMPLATE_SIZE

__all__ = ["Companions", "read_companions"]

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"


@dataclass(frozen=True)
class Companions:
    """The files beside a tokenizer; ``templates`` are the chat templates by name."""

    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)

    def special_tokens(self) -> dict[str, str]:
        """``bos_token`` and the others that are named, as texts: a template's variables."""
        extra = self.tokenizer_config.get("extra_special_tokens")
        named = {name: self.tokenizer_config.get(name) for name in TOKENS}
        named |= extra if isinstance(extra, dict) else {}
        texts = {name: token_text(value) for name, value in named.items()}
        return {name: text for name, text in texts.items() if text}

    def end_ids(self) -> list[int]:
        """Every ``eos_token_id`` that is named, generation_config.json's first."""
        found: list[Any] = []
        for about in (self.generation_config, self.ids):
            value = about.get("eos_token_id")
            found += value if isinstance(value, list) else [value]
        return [token for token in found if isinstance(token, int) and not isinstance(token, bool)]


def token_text(value: Any) -> str:
    """The text of a special token, which may be given with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def read_companions(folder: Path) -> Companions:
    """The files of a folder, each of which may be missing; ``ValueError`` names a broken one."""

    def read(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).is_file() else {}

    about, config = read("tokenizer_config.json"), read("config.json")
    ids = {name: config[name] for name in IDS if name in config}
    return Companions(about, read(GENERATION_FILE), ids, read_templates(folder, about))


def read_templates(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """The chat templates of a folder by name; the only or first one is ``default``."""
    named = tokenizer_config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(named, str):
        templates["default"] = named
    elif isinstance(named, list):
        pairs = [
            (each.get("name"), each.get("template")) for each in named if isinstance(each, dict)
        ]
        templates |= {n: t for n, t in pairs if isinstance(n, str) and isinstance(t, str)}
    elif isinstance(named, dict):
        templates |= {n: t for n, t in named.items() if isinstance(t, str)}
    files = {"default": folder / TEMPLATE_FILE}
    files |= {file.stem: file for file in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    return templates | {n: read_template(file) for n, file in files.items() if file.is_file()}


def read_template(file: Path) -> str:
    """A template's text; ``ValueError`` names the file when it is too long or not text."""
    if file.stat().st_size > 4 * TEMPLATE_SIZE:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, which is no chat template")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable UTF-8 text: {error}") from error

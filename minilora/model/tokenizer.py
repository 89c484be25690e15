"""Text to token ids and back, and the one place that knows how a conversation is written down.

The tokens come from a Hugging Face ``tokenizer.json``, read by the ``tokenizers`` library. A
conversation is written in ChatML, the form that SmolLM2, Qwen and others were trained on, and our
own base too::

    <|im_start|>user
    {context}
    {instruction}<|im_end|>
    <|im_start|>assistant
    {answer}<|im_end|>

Some models (SmolLM2, Qwen2.5) were trained with a system message in front of all that. Their chat
template, a Jinja program, puts it there when the user gives none. A stranger's program is not run
here: the message is read out of its text.

A tokenizer without these marks gets a plain form, ``User: …`` and ``Assistant: …``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import json_writer, read_json, text_writer

__all__ = ["Tokenizer"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class Tokenizer:
    """A thin face on ``tokenizers.Tokenizer``: ``encode``, ``decode`` and the chat form.

    ``system`` is a message that opens every conversation, for models trained with one; ``eos_id``
    ends an answer where the file has no mark for that. Raises ``ValueError`` when the file cannot
    be read.

    >>> import minilora
    >>> tokenizer = minilora.load_base().tokenizer
    >>> tokenizer.decode(tokenizer.encode("Hull 90%."))
    'Hull 90%.'
    >>> tokenizer.prompt("Status?", "Log: Hull 90%.")
    '<|im_start|>user\\nLog: Hull 90%.\\nStatus?<|im_end|>\\n<|im_start|>assistant\\n'
    """

    def __init__(self, file: str | Path, system: str = "", eos_id: int | None = None):
        import tokenizers  # read when needed: importing minilora stays quick

        self.file, self.system, self._eos_id = Path(file), system, eos_id
        try:
            self.raw: Any = tokenizers.Tokenizer.from_str(self.file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{self.file} is not a readable tokenizer.json: {error}") from error
        # files are often saved with either, and encode() would apply it without a word
        self.raw.no_truncation()
        self.raw.no_padding()

    @cached_property
    def is_chatml(self) -> bool:
        """Whether the vocabulary holds the ChatML marks."""
        return self.raw.token_to_id(START) is not None and self.raw.token_to_id(END) is not None

    @cached_property
    def eos_id(self) -> int:
        """What ends an answer: ``<|im_end|>``, else the config's token, else ``<|endoftext|>``."""
        candidates = [
            self.raw.token_to_id(END),
            self._eos_id,
            self.raw.token_to_id(END_OF_TEXT),
            self.raw.token_to_id("</s>"),
        ]
        return next((token for token in candidates if token is not None), 0)

    def __len__(self) -> int:
        return self.raw.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; a mark such as ``<|im_end|>`` is one token, and nothing is added."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without the marks."""
        return self.raw.decode(ids, skip_special_tokens=True)

    def prompt(self, instruction: str, context: str = "") -> str:
        """A conversation up to the point where the answer begins."""
        message = f"{context}\n{instruction}" if context else instruction
        if not self.is_chatml:
            return f"{self.system}\nUser: {message}\nAssistant:".lstrip()
        system = f"{START}system\n{self.system}{END}\n" if self.system else ""
        return f"{system}{START}user\n{message}{END}\n{START}assistant\n"

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with the token that ends it."""
        return [*self.encode(text if self.is_chatml else f" {text}"), self.eos_id]

    @property
    def chat_template(self) -> str:
        """The chat form as the Jinja template that transformers and vLLM read."""
        system = quoted(self.system)
        if not self.is_chatml:
            end = quoted(self.raw.id_to_token(self.eos_id) or "")
            return (
                f"{{{{ '{system}\\n' }}}}" * bool(system)
                + "{% for message in messages %}{% if message['role'] == 'assistant' %}"
                + f"{{{{ ' ' + message['content'] + '{end}\\n' }}}}"
                + "{% else %}{{ 'User: ' + message['content'] + '\\nAssistant:' }}{% endif %}"
                + "{% endfor %}"
            )
        opening = f"{{{{ '{START}system\\n{system}{END}\\n' }}}}"
        first = f"{{% if loop.first and message['role'] != 'system' %}}{opening}{{% endif %}}"
        return (
            "{% for message in messages %}"
            + first * bool(system)
            + f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
            + "{% endfor %}"
            + f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\\n' }}}}{{% endif %}}"
        )


def quoted(text: str) -> str:
    """A text as it stands between single quotes in a Jinja template."""
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")


def default_system(template: str) -> str:
    r"""The system message that a chat template adds by itself; empty where it is not plain text.

    >>> default_system("{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}")
    'You are a helpful assistant'
    """
    start, end = re.escape(START), re.escape(END)
    message = re.search(rf"{start}system(?:\n|\\n)((?:[^{{}}'\"\\]|\\.)+?){end}", template)
    if message is None:
        return ""
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], message[1])


def load_tokenizer(folder: Path, eos_id: int | None, vocab_size: int) -> Tokenizer:
    """The tokenizer of a base; raise ``ValueError`` if the model has no embedding for a token."""
    system = default_system(chat_template_of(folder))
    tokenizer = Tokenizer(folder / "tokenizer.json", system, eos_id=eos_id)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.json has {len(tokenizer)} tokens, but the model has only "
            f"vocab_size={vocab_size}"
        )
    if not 0 <= tokenizer.eos_id < vocab_size:
        raise ValueError(
            f"{folder}: expected an eos_token_id below vocab_size={vocab_size}, "
            f"got {tokenizer.eos_id}"
        )
    return tokenizer


def chat_template_of(folder: Path) -> str:
    """The text of a folder's chat template, from either of its two places; empty without one."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    if not (folder / "tokenizer_config.json").is_file():
        return ""
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Callable[[Path], None]]:
    """Writers for ``tokenizer.json`` and for the chat template beside it."""
    end = tokenizer.raw.id_to_token(tokenizer.eos_id)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": END_OF_TEXT if tokenizer.is_chatml else end,
        "chat_template": tokenizer.chat_template,
    }
    return {
        "tokenizer.json": text_writer(tokenizer.raw.to_str()),
        "tokenizer_config.json": json_writer(about),
    }

"""Text to token ids and back, and the one place that knows how a conversation is written down.

The tokens come from a Hugging Face ``tokenizer.json``, read by the ``tokenizers`` library. A conversation is written in
ChatML, the form that SmolLM2, Qwen and others were trained on, and our own base too::

    <|im_start|>user
    {context}
    {instruction}<|im_end|>
    <|im_start|>assistant
    {answer}<|im_end|>

Some models (SmolLM2, Qwen2.5) were trained with a system message in front of all that, which their chat template, a Jinja
program, puts there when the user gives none. No program of a stranger is run here: the message is read out of its text.

A tokenizer without these marks gets a plain form, ``User: …`` and ``Assistant: …``.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class Tokenizer:
    """A thin face on ``tokenizers.Tokenizer``: ``encode``, ``decode`` and the chat form.

    ``system`` is a system message that opens every conversation, for models that were trained with one.
    Raises ``ValueError`` when the file cannot be read.
    """

    def __init__(self, file: str | Path, system: str = "", eos_id: int | None = None):
        import tokenizers  # read when needed: importing minilora stays quick

        self.file, self.system, self._eos_id = Path(file), system, eos_id
        try:
            self.raw: Any = tokenizers.Tokenizer.from_str(self.file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{self.file} is no readable tokenizer.json: {error}") from error
        # files are often saved with either, and encode() would obey in silence
        self.raw.no_truncation()
        self.raw.no_padding()

    @cached_property
    def is_chatml(self) -> bool:
        """Whether the vocabulary holds the ChatML marks."""
        return self.raw.token_to_id(START) is not None and self.raw.token_to_id(END) is not None

    @cached_property
    def eos_id(self) -> int:
        """The token that ends an answer: ``<|im_end|>``, else what the model's config names, else ``<|endoftext|>``."""
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
        """Token ids of a text; marks such as ``<|im_end|>`` become their own ids, nothing is added."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without the marks."""
        return self.raw.decode(ids, skip_special_tokens=True)

    def prompt(self, instruction: str, context: str = "") -> str:
        """A conversation up to the point where the answer begins."""
        said = f"{context}\n{instruction}" if context else instruction
        if not self.is_chatml:
            return f"{self.system}\nUser: {said}\nAssistant:".lstrip()
        system = f"{START}system\n{self.system}{END}\n" if self.system else ""
        return f"{system}{START}user\n{said}{END}\n{START}assistant\n"

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with the token that ends it."""
        return [*self.encode(text if self.is_chatml else f" {text}"), self.eos_id]

    @property
    def chat_template(self) -> str:
        """The chat form as the Jinja template that transformers and vLLM read."""
        if not self.is_chatml:
            end = quoted(self.raw.id_to_token(self.eos_id) or "")
            return (
                f"{{{{ '{quoted(self.system)}\\n' }}}}" * bool(self.system)
                + "{% for message in messages %}{% if message['role'] == 'assistant' %}"
                + f"{{{{ ' ' + message['content'] + '{end}\\n' }}}}"
                + "{% else %}{{ 'User: ' + message['content'] + '\\nAssistant:' }}{% endif %}{% endfor %}"
            )
        system = quoted(self.system)
        opening = f"{{{{ '{START}system\\n{system}{END}\\n' }}}}"
        return (
            "{% for message in messages %}"
            + f"{{% if loop.first and message['role'] != 'system' %}}{opening}{{% endif %}}"
            * bool(system)
            + f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
            + "{% endfor %}"
            + f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\\n' }}}}{{% endif %}}"
        )


def quoted(text: str) -> str:
    """A text as it stands between single quotes in a Jinja template."""
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")


def default_system(template: str) -> str:
    r"""The system message that a chat template gives a conversation without one; empty when it has none, or no plain text.

    >>> default_system("{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}")
    'You are a helpful assistant'
    """
    found = re.search(
        rf"{re.escape(START)}system(?:\n|\\n)((?:[^{{}}'\"\\]|\\.)+?){re.escape(END)}", template
    )
    return (
        re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], found[1])
        if found
        else ""
    )

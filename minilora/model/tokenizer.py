"""Text to token ids and back, and conversations in the form that the model was trained on.

The tokens come from a Hugging Face ``tokenizer.json``, read by the ``tokenizers`` library. The form
of a conversation is the chat template beside it (chat.py). A folder without one gets ChatML where
the vocabulary has its marks, as our own base does:

    <|im_start|>user
    {context}
    {instruction}<|im_end|>
    <|im_start|>assistant
    {answer}<|im_end|>

and else a plain form, ``User: …`` and ``Assistant: …``. Both are written as templates too
(own_forms.py), so that transformers and vLLM read them from a saved folder.

What ends an answer is named in up to four places: the template, ``generation_config.json``,
``config.json``, ``tokenizer_config.json``. The first one ends a trained answer, ``eos_id``; any of
them ends a generated one, ``eos_ids``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..text import LETTER, beyond
from .chat import ChatTemplate, Message, plain_messages
from .marks import Encoded, Marks, Signs, choose_signs
from .own_forms import END, END_OF_TEXT, START, chatml, default_system, plain_form, question
from .tokenizer_folder import read_companions
from .turns import encode_turns

__all__ = ["Tokenizer"]

ASKED: list[dict[str, str]] = [{"role": "user", "content": "Status?"}]
PROBE = "Hull90"  # an answer that no template changes, to see what is written around it
compiled = lru_cache(maxsize=64)(ChatTemplate)


class Tokenizer:
    """A thin face on ``tokenizers.Tokenizer``: ``encode``, ``decode`` and conversations.

    ``file`` is a ``tokenizer.json``; the files beside it say the form of a conversation and what
    ends an answer. ``system`` is a message that opens every conversation; ``eos_id`` ends an answer
    where the template has no mark for that. Raises ``ValueError`` when a file cannot be read.

    >>> import minilora
    >>> tokenizer = minilora.load_base().tokenizer
    >>> tokenizer.decode(tokenizer.encode("Hull 90%."))
    'Hull 90%.'
    >>> tokenizer.prompt("Status?", "Log: Hull 90%.")
    '<|im_start|>user\\nLog: Hull 90%.\\nStatus?<|im_end|>\\n<|im_start|>assistant\\n'
    >>> talk = [{"role": "user", "content": "Status?"}]
    >>> len(tokenizer.apply_chat_template(talk, add_generation_prompt=True))
    11
    """

    def __init__(
        self, file: str | Path, system: str = "", eos_id: int | Sequence[int] | None = None
    ):
        import tokenizers  # read when needed: importing minilora stays quick

        self.file = Path(file)
        try:
            self.raw: Any = tokenizers.Tokenizer.from_str(self.file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{self.file} is not a readable tokenizer.json: {error}") from error
        # files are often saved with either, and encode() would apply it without a word
        self.raw.no_truncation()
        self.raw.no_padding()
        self.given_ends = [eos_id] if isinstance(eos_id, int) else list(eos_id or [])
        self.companions = read_companions(self.file.parent)
        self.system = system or default_system(self.companions.templates.get("default", ""))
        self.said: set[str] = set()  # the warnings of turns.py

    @cached_property
    def is_chatml(self) -> bool:
        """Whether the vocabulary holds the ChatML marks."""
        return self.raw.token_to_id(START) is not None and self.raw.token_to_id(END) is not None

    @cached_property
    def has_template(self) -> bool:
        """Whether the folder brings a form other than the ChatML that we write ourselves."""
        templates = self.companions.templates
        text = templates.get("default", "")
        return bool(templates) and not (self.is_chatml and text == chatml(default_system(text)))

    @cached_property
    def eos_ids(self) -> list[int]:
        """All tokens that end a generated answer. Raises ``ValueError`` if none is named."""
        if not self.ends:
            raise ValueError(
                f"{self.file}: nothing says which token ends an answer: expected eos_token_id in "
                "generation_config.json or config.json, or eos_token in tokenizer_config.json, "
                "beside it; or give Tokenizer(file, eos_id=…)"
            )
        return self.ends

    @property
    def eos_id(self) -> int:
        """The token that ends a trained answer: the chat template's, else the first named."""
        return self.eos_ids[0]

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that are named as ends, each once; may be empty."""
        eos_token = self.raw.token_to_id(self.companions.special_tokens().get("eos_token", ""))
        named = [*self.given_ends, *self.companions.end_ids(), eos_token]
        found = [self.end_of_form, *named]
        if all(token is None for token in found):  # by convention, where no file says anything
            found = [self.raw.token_to_id(name) for name in (END, END_OF_TEXT, "</s>")]
            del found[next((n + 1 for n, token in enumerate(found) if token is not None), 3) :]
        return list(dict.fromkeys(token for token in found if token is not None))

    @cached_property
    def end_of_form(self) -> int | None:
        """The mark that the template writes behind an answer, if it is a single one."""
        if not self.has_template:
            return self.raw.token_to_id(END) if self.is_chatml else None
        behind = self.behind_answer.lstrip()
        tokens = self.raw.get_added_tokens_decoder().items()
        named = self.companions.special_tokens().get("eos_token", "")
        texts = {token.content: number for number, token in tokens}
        texts |= {named: self.raw.token_to_id(named)} if named else {}
        fitting = [text for text in texts if text and behind.startswith(text)]
        return texts[max(fitting, key=len)] if fitting else None

    @cached_property
    def behind_answer(self) -> str:
        """The text that the template writes behind an answer; empty if it cannot be asked."""
        try:
            whole = self.render([*ASKED, {"role": "assistant", "content": PROBE}])
        except ValueError:  # a template that asks for more than a question and an answer
            return ""
        _, answer, behind = whole.rpartition(PROBE)
        return behind if answer else ""

    @cached_property
    def marks(self) -> Marks:
        """The tokens that structure a conversation: the special ones, and all ends."""
        tokens = self.raw.get_added_tokens_decoder().items()
        names = {number: token.content for number, token in tokens if token.special}
        names |= {number: self.raw.id_to_token(number) or "" for number in self.ends}
        if self.is_chatml:
            names |= {self.raw.token_to_id(name): name for name in (START, END)}
        return Marks(self.raw, names)

    def __len__(self) -> int:
        return self.raw.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; a mark such as ``<|im_end|>`` is one token, and nothing is added."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text that people wrote: a mark in it stays text."""
        signs = choose_signs(text)
        return self.marks.encode(self.marks.seam(text, signs.seam), signs).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without the marks."""
        return self.raw.decode(ids, skip_special_tokens=True)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> list[int]:
        """Token ids of a conversation, as transformers'; ``messages`` hold role and content.

        ``add_generation_prompt`` opens the assistant's turn. ``variables`` are the template's own:
        ``tools``, ``enable_thinking``, … A mark that stands in a message's text stays text. Raises
        ``ValueError`` when the template refuses the messages.
        """
        return self.encode_chat(*self.seamed(messages, add_generation_prompt, **variables)).ids

    def encode_chat(self, rendered: str, signs: Signs) -> Encoded:
        """The ids of a conversation that was rendered with seams."""
        return self.marks.encode(rendered, signs)

    def seamed(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        signs: Signs | None = None,
        **variables: Any,
    ) -> tuple[str, Signs]:
        """A rendered conversation in which look-alikes of marks are cut by a seam."""
        copies = plain_messages(messages)
        signs = signs or self.signs_for(copies, variables)
        copies, variables = (self.marks.seam(each, signs.seam) for each in (copies, variables))
        text = self.render(copies, add_generation_prompt, signs[1:], **variables)
        return text, signs

    def signs_for(self, messages: Sequence[Message], variables: Any = None) -> Signs:
        """Signs that stand nowhere in these messages."""
        return choose_signs(json.dumps([messages, variables], ensure_ascii=False, default=str))

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        enclose: tuple[str, str] = ("", ""),
        **variables: Any,
    ) -> str:
        """The conversation as text, in the folder's form or one of our own."""
        copies, text = plain_messages(messages), self.chat_template
        if self.has_template:
            text = self.named_template("tools" in variables and variables["tools"] is not None)
            if self.system != default_system(text) and copies[0]["role"] != "system":
                copies = [{"role": "system", "content": self.system}, *copies]
        variables = {**self.companions.special_tokens(), **variables}
        return compiled(text).render(copies, add_generation_prompt, enclose, **variables)

    def named_template(self, with_tools: bool) -> str:
        """The template for a conversation, where a folder has several."""
        templates = self.companions.templates
        name = "tool_use" if with_tools and "tool_use" in templates else "default"
        if name not in templates:
            raise ValueError(
                f"{self.file.parent} has chat templates named {sorted(templates)}, and none of "
                "them is 'default': rename one"
            )
        return templates[name]

    def prompt(self, instruction: str, context: str = "") -> str:
        """A conversation up to the point where the answer begins, as text to look at."""
        return self.render(question(instruction, context), add_generation_prompt=True)

    def encode_turns(
        self, messages: Sequence[Message], **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and which are the assistant's to learn (turns.py)."""
        return encode_turns(self, messages, **variables)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with the token that ends it."""
        lead = "" if self.has_template or self.is_chatml else " "
        return [*self.encode_text(lead + text), self.eos_id]

    def answer_text(self, prompt: list[int], ids: list[int], complete: bool = True) -> str:
        """The text of generated ids behind a prompt, without marks and the form's own beginning.

        That beginning is a space in most forms that have one, an empty ``<think>`` in Qwen3. While
        the answer is not ``complete``, a part of it is left out too.
        """
        text, lead = self.text_behind(prompt, ids), self.lead
        return "" if not complete and lead.startswith(text) else text.removeprefix(lead)

    def text_behind(self, prompt: list[int], ids: list[int]) -> str:
        """The text of ids behind a prompt, without marks."""
        shown = [token for token in ids if token not in self.marks.names]
        if not self.has_template:
            return self.decode(shown)
        # decoded behind the prompt's last tokens: many decoders drop a space where a text begins
        ends = prompt[-LETTER:]
        before = self.raw.decode(ends, skip_special_tokens=False)
        return beyond(before, self.raw.decode([*ends, *shown], skip_special_tokens=False))

    @cached_property
    def lead(self) -> str:
        """What the form writes between a prompt and an answer, as its tokens are read back."""
        if not self.has_template:
            return "" if self.is_chatml else " "
        try:
            prompt = self.apply_chat_template(ASKED, add_generation_prompt=True)
            whole = self.apply_chat_template([*ASKED, {"role": "assistant", "content": PROBE}])
        except ValueError:
            return ""
        begins = whole[: len(prompt)] == prompt
        before, answer, _ = self.text_behind(prompt, whole[len(prompt) :]).partition(PROBE)
        return before if begins and answer else ""

    def own_form(self, system: str) -> str:
        """The template that we write for a folder without one."""
        if self.is_chatml:
            return chatml(system)
        end = self.raw.id_to_token(self.ends[0]) if self.ends else ""
        return plain_form(system, end or "", self.adds_bos)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer, asked for a plain text, puts its first token before it."""
        bos = self.raw.token_to_id(self.companions.special_tokens().get("bos_token", ""))
        return bos is not None and self.raw.encode("a").ids[:1] == [bos]

    @property
    def chat_template(self) -> str:
        """The form as the Jinja template that transformers and vLLM read."""
        if self.has_template:
            return self.companions.templates.get("default", "")
        return self.own_form(self.system)

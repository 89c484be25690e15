"""A folder's chat template: the program that writes a conversation down for its model.

    messages  ->  Jinja template  ->  "<|im_start|>user\\nStatus?<|im_end|>\\n…"  ->  ids

A model answers well only in the form that it was trained in, and each family has another. The
form is a Jinja template, in ``tokenizer_config.json`` or in a file of its own. It is rendered as
transformers does: the immutable sandbox, the same settings, filters and functions, and the tag
``{% generation %}`` around what the model has to learn.

A template is a stranger's program, so its size, the time it takes and the size of what it writes
are limited (sandbox.py).

Left out: ``continue_final_message``, images and sound, Python functions as tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from .sandbox import CLOSES, JOIN, OPENS, TICK, Watch, environment

__all__ = ["ChatTemplate", "Message", "plain_messages"]

Message = Mapping[str, Any]  # {"role": "user", "content": "Status?"}, and what a template knows

TEMPLATE_SIZE = 500_000  # characters; the longest in use are about 30,000
# Other names under which a message's reasoning travels; templates read the first.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template. Raises ``ValueError`` for one that is too long or does not parse.

    >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Status?"}])
    '<user>Status?'
    """

    def __init__(self, text: str):
        if len(text) > TEMPLATE_SIZE:
            raise ValueError(
                f"chat template of {len(text):,} characters: at most {TEMPLATE_SIZE:,} are read"
            )
        self.text = text
        self.compiled  # noqa: B018  an unreadable template is refused at once

    @cached_property
    def compiled(self) -> Any:
        """The program, with a look at the clock in every loop."""
        try:
            return environment().from_string(self.text)
        except (TemplateError, RecursionError) as error:
            raise ValueError(f"the chat template is not readable Jinja: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        enclose: tuple[str, str] = ("", ""),
        **variables: Any,
    ) -> str:
        """The conversation as text; ``enclose`` stands around every ``{% generation %}`` block.

        ``variables`` are the template's: ``bos_token``, ``tools``, ``enable_thinking``, … Raises
        ``ValueError`` when the template refuses the messages, fails, or exceeds a limit.
        """
        watch = Watch()
        known = {"tools": None, "documents": None, **plain(variables)}
        known |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        known |= {TICK: watch.tick, JOIN: watch.join, OPENS: enclose[0], CLOSES: enclose[1]}
        pieces: list[str] = []
        try:
            for piece in self.compiled.generate(**known):
                pieces.append(piece)
                watch.add(len(piece))
        except Exception as error:  # a template can fail in any way that Python can
            reason = str(error) or type(error).__name__
            raise ValueError(f"the chat template cannot write these messages: {reason}") from error
        return "".join(pieces)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as a template gets them: plain values, copied, without None.

    Raises ``ValueError`` unless they are dicts with a role.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise ValueError(
            'expected a list of messages such as {"role": "user", "content": "…"}, '
            f"got {messages!r:.80}"
        )
    copies: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f'message {number}: expected {{"role": "user", "content": "…"}}, '
                f"got {message!r:.80}"
            )
        copy = {name: plain(value) for name, value in message.items() if value is not None}
        reasoning = [copy[name] for name in REASONING if name in copy]
        if reasoning:
            copy = {"thinking": reasoning[0], **copy, "reasoning_content": reasoning[0]}
        copies.append(copy)
    return copies


def plain(value: Any) -> Any:
    """JSON's types as they are, copied; anything else as the name of its type: no methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"

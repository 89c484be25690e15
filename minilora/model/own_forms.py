"""Our own two forms of a conversation, for folders without a chat template.

    ChatML   where the vocabulary has its marks: SmolLM2, Qwen and our base
    plain    ``User: …`` and ``Assistant: …``, for a base that never saw a conversation

Both are Jinja templates, so that a saved folder opens in transformers and vLLM in the same form.
"""

from __future__ import annotations

import re

__all__ = ["END", "END_OF_TEXT", "START", "chatml", "default_system", "plain_form", "question"]

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def question(instruction: str, context: str = "") -> list[dict[str, str]]:
    """An instruction, with what it is about, as one message."""
    message = f"{context}\n{instruction}" if context else instruction
    return [{"role": "user", "content": message}]


def chatml(system: str) -> str:
    """ChatML; ``system`` opens every conversation that has no system message of its own."""
    opening = f"{{{{ '{START}system\\n{quoted(system)}{END}\\n' }}}}"
    first = f"{{% if loop.first and message['role'] != 'system' %}}{opening}{{% endif %}}"
    return (
        "{% for message in messages %}"
        + first * bool(system)
        + f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
        + "{% endfor %}"
        + f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\\n' }}}}{{% endif %}}"
    )


def plain_form(system: str, end: str, with_bos: bool = False) -> str:
    """``User: …`` and ``Assistant: … end``, a line each; a system message stands as it is."""
    first = (
        f"{{% if messages[0]['role'] != 'system' %}}{{{{ '{quoted(system)}\\n' }}}}{{% endif %}}"
    )
    return (
        "{{ bos_token }}" * with_bos
        + first * bool(system)
        + "{% for message in messages %}{% if message['role'] == 'system' %}"
        + "{{ message['content'] + '\\n' }}"
        + "{% elif message['role'] == 'assistant' %}"
        + f"{{{{ 'Assistant: ' + message['content'] + '{quoted(end)}\\n' }}}}"
        + "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\\n' }}"
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
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

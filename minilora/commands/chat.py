"""``minilora chat``: talk to a base, with an adapter or without; it remembers what was said.

    /adapter FOLDER   another adapter, or a name of the hub; /adapter alone takes it out
    /reset            forget the conversation
    /quit             end (so does the end of the input)

Without a terminal it reads one message a line, so that a script can talk to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .hub_names import adapter_folder, add_adapter_option
from .options import (
    add_base_option,
    add_device_option,
    add_sampling_options,
    check_device,
    sampling_of,
)

HELP = "/adapter FOLDER takes another adapter, /reset forgets what was said, /quit ends"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora chat``."""
    add = parser.add_argument
    add_base_option(parser)
    add_adapter_option(parser, none="the base answers")
    add("--system", default="", help="a message that opens the conversation")
    add("--qlora", action="store_true", help="the base in four bits, as in train --qlora")
    add("--max-new-tokens", type=int, default=256, help="of one answer (default: %(default)s)")
    add_sampling_options(parser)
    add_device_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora chat``."""
    from ..formats.save_and_load import load_adapter
    from ..model.pretrained import load_base
    from ..model.sampling import check_sampling

    check_sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p)
    quantize, device = "nf4" if options.qlora else None, check_device(options.device)
    model = load_base(options.base, device=device, quantize=quantize)
    folder = None
    if options.adapter is not None:
        folder = adapter_folder(options.adapter, options.hub)
        load_adapter(model, folder)
    talk = Talk(model, options, folder)
    if sys.stdin.isatty():
        print(HELP)
    while (line := read_line()) is not None:
        message = line.strip()
        if message == "/quit":
            break
        if message.startswith("/"):
            print(talk.command(message))
        elif message:
            talk.say(message)
    return 0


def read_line() -> str | None:
    """The next line, with a prompt on a terminal; None at the end of the input."""
    try:
        return input("> ") if sys.stdin.isatty() else input()
    except EOFError:
        return None


class Talk:
    """A conversation with a model, and how it answers."""

    def __init__(self, model: Any, options: argparse.Namespace, folder: Path | None = None):
        self.model, self.hub = model, options.hub
        self.folder = folder  # of the adapter inside
        self.sampling = {"max_new_tokens": options.max_new_tokens, **sampling_of(options)}
        system = {"role": "system", "content": options.system}
        self.opening = [system] if options.system else []
        self.messages: list[dict[str, str]] = list(self.opening)

    def say(self, text: str) -> None:
        """Print the answer while it is written, and remember both."""
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            for piece in self.model.stream_text(asked, **self.sampling):
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:  # ends the answer, not the conversation
            print(" …", end="")
        except ValueError as error:  # a template that refuses these messages
            print(f"{error}. /reset forgets the conversation")
            return
        print()
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; what to print about it."""
        name, _, argument = line.partition(" ")
        if name == "/reset":
            self.messages = list(self.opening)
            return "forgotten"
        if name == "/adapter":
            return self.change_adapter(argument.strip())
        return f"{name} is unknown: {HELP}"

    def change_adapter(self, folder: str) -> str:
        """Another adapter instead of the one inside, or none; on an error the old one stays."""
        from ..formats.save_and_load import load_adapter
        from ..lora.attached import adapters_of
        from ..lora.injection import unload

        try:
            source = adapter_folder(folder, self.hub) if folder else None
        except (ValueError, OSError) as error:
            return str(error)
        if adapters_of(self.model):
            unload(self.model)
        before, self.folder = self.folder, None
        if source is None:
            return "the base answers"
        try:
            load_adapter(self.model, source)
            self.folder = source
        except (ValueError, OSError) as error:
            if before is None:
                return str(error)
            try:
                load_adapter(self.model, before)
                self.folder = before
            except (ValueError, OSError) as again:
                return f"{error}. The old one cannot be read again ({again}): the base answers"
            return str(error)
        return f"{folder} answers; the conversation continues, /reset forgets it"

"""Jinja for strangers: the immutable sandbox, with limits on time and on what is written.

    every loop and macro   looks at the clock
    + * ** % ~             refuse to make a huge value
    filters and methods    refuse a huge width

The sandbox of jinja2 keeps a template away from Python's internals and changes no value. It does
not keep it from running for hours or filling the memory; that is added here.

Left out: the memory of many values that are each below the limit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

__all__ = ["CLOSES", "JOIN", "OPENS", "TICK", "Watch", "environment"]

RENDERED_SIZE = 20_000_000  # characters
WIDTH = 1_000_000
SECONDS = 5.0
TICK, JOIN, OPENS, CLOSES = "minilora_tick", "minilora_join", "minilora_opens", "minilora_closes"


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates find in transformers: its settings, filters, functions and tag."""
    jinja = Watched(
        trim_blocks=True, lstrip_blocks=True, extensions=[AnswerTag, "jinja2.ext.loopcontrols"]
    )
    filters = jinja.filters | {"tojson": to_json}
    jinja.filters = {name: bounded(each) for name, each in filters.items()}
    jinja.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return jinja


class Watch:
    """The clock of one rendering, and the count of what it wrote."""

    def __init__(self) -> None:
        self.ends, self.size = time.monotonic() + SECONDS, 0

    def tick(self) -> str:
        """Raise when the time is over."""
        if time.monotonic() > self.ends:
            raise SecurityError(f"it runs for more than {SECONDS:g} seconds")
        return ""

    def add(self, size: int) -> None:
        """Count what was written."""
        self.size += size
        check_size(self.size)
        self.tick()

    def join(self, *parts: Any) -> str:
        """The operator ``~``."""
        texts = [str(part) for part in parts]
        check_size(sum(map(len, texts)))
        return "".join(texts)


def check_size(size: int) -> None:
    """Raise when a text is longer than any conversation."""
    if size > RENDERED_SIZE:
        raise SecurityError(f"it writes more than {RENDERED_SIZE:,} characters")


class Watched(ImmutableSandboxedEnvironment):
    """transformers' sandbox, in which loops look at the clock and no value grows without limit."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return AddTicks().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic that could make a huge value is refused before it does."""
        if operator == "+" and is_sized(left) and is_sized(right):
            check_size(len(left) + len(right))
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if is_sized(value) and isinstance(times, int):
                    check_size(len(value) * times)
        elif operator == "**" and max(abs(left), abs(right)) > 1_000:
            raise SecurityError(f"{left} ** {right} is too large")
        elif operator == "%" and isinstance(left, str):
            check_form(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """A method of a text is refused a huge width; a huge result is refused too."""
        if isinstance(getattr(function, "__self__", None), str):
            check_widths(*args, *kwargs.values())
        result = super().call(context, function, *args, **kwargs)
        if is_sized(result):
            check_size(len(result))
        return result

    def wrap_str_format(self, value: Any) -> Any:
        """``"{:>9}".format(…)``, with a look at the widths that it asks for."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            check_form(value.__self__, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked


def bounded(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes no huge width and gives no huge text."""

    @wraps(apply)  # with jinja's marks of what it wants to be given
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_widths(*args, *kwargs.values())
        result = apply(*args, **kwargs)
        if is_sized(result):
            check_size(len(result))
        return result

    return checked


def is_sized(value: Any) -> bool:
    """Whether a value is text or a list."""
    return isinstance(value, str | list | tuple)


def check_widths(*arguments: Any) -> None:
    """Raise when a number given to a filter or method could be the width of a huge text."""
    if any(isinstance(value, int) and abs(value) > WIDTH for value in arguments):
        raise SecurityError(f"it asks for a text wider than {WIDTH:,} characters")


def check_form(form: str, arguments: Any) -> None:
    """Raise when a format such as ``%9999999d`` asks for a huge text."""
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    if re.search(r"[%{][^%{}]*\d{7}", form):
        check_widths(WIDTH + 1)
    if "*" in form or re.search(r"\{[^{}]*\{", form):  # widths that are arguments
        check_widths(*arguments)


class AddTicks(NodeTransformer):
    """Puts a look at the clock into every body that can run again, and a limit on ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Also of macros and call blocks: a macro can call itself."""
        self.generic_visit(node)
        tick = nodes.Call(nodes.Name(TICK, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick))
        return node

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """``a ~ b`` becomes a call that counts."""
        self.generic_visit(node)
        return nodes.Call(nodes.Name(JOIN, "load"), node.nodes, [], None, None)


class AnswerTag(Extension):
    """``{% generation %}…{% endgeneration %}``: the text in between is the model's own."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Any) -> nodes.Node:
        """The block as a call of ``_enclose`` with its content."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        signs: list[nodes.Expr] = [nodes.Name(OPENS, "load"), nodes.Name(CLOSES, "load")]
        call = self.call_method("_enclose", signs)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _enclose(self, opens: str, closes: str, caller: Any) -> str:
        return f"{opens}{caller()}{closes}"


class PlainDict:
    """Jinja's ``dict``, without the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A dict with one value for many keys."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """Jinja's ``namespace``, without names that lead into Python, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: Any) -> None:
    """Raise for a name that begins with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter; Jinja's own would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> None:
    """How a template refuses messages."""
    raise TemplateError(message)

"""The package as pages: the house, each core module beside its docstrings, every public name."""

from __future__ import annotations

import ast
import html
import inspect
import re
from collections.abc import Iterator

import minilora

from .course import PACKAGE
from .house import draw_house
from .pages import cards, frame, render_code, render_docstring, row, turn

CORE = (
    *("level0", "nf4.codebook", "nf4.tensor", "nf4.linear"),
    *("lora.config", "lora.layer", "lora.adapter_layer"),
    *("lora.selection", "lora.injection", "lora.merging", "lora.combining"),
    *("formats.save_and_load", "model.transformer", "model.generation"),
    *("training.objective", "training.steps", "training.loop"),
)
Node = ast.FunctionDef | ast.ClassDef


def file_of(name: str) -> str:
    """A core module's file.

    >>> file_of("lora.layer")
    'lora/layer.py'
    """
    return f"{name.replace('.', '/')}.py"


def link_to(name: str) -> tuple[str, str]:
    """A core module's page, and what to call it."""
    return f"module-{name}.html", file_of(name)


def module_page(name: str) -> str:
    """One module: each docstring beside the code that it is about."""
    source = (PACKAGE / file_of(name)).read_text(encoding="utf-8")
    rows = [f"<h1>minilora/{file_of(name)}</h1>"]
    rows += module_rows(source.splitlines(), ast.parse(source))
    index = CORE.index(name)
    before = link_to(CORE[index - 1]) if index else None
    after = link_to(CORE[index + 1]) if index + 1 < len(CORE) else None
    body = "\n".join([*rows, turn(before, after)])
    return frame(f"{file_of(name)} · minilora", body, "package.html")


def module_rows(lines: list[str], tree: ast.Module) -> Iterator[str]:
    """The rows of a module: its opening, then its definitions and the statements between them."""
    opening = render_docstring(ast.get_docstring(tree) or "")
    start = tree.body[0].end_lineno or 0
    for node in [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)]:
        first = first_line(node)
        between = "\n".join(lines[start : first - 1]).strip("\n")
        if between or opening:
            yield row(opening, render_code(between) if between else "")
            opening = ""
        yield from definition_rows(lines, node, first, "")
        start = node.end_lineno or start
    rest = "\n".join(lines[start:]).strip("\n")
    if rest or opening:
        yield row(opening, render_code(rest) if rest else "")


def definition_rows(lines: list[str], node: Node, first: int, owner: str) -> Iterator[str]:
    """A function, or a class and its methods: name and docstring to the left, code to the right."""
    methods: list[ast.FunctionDef] = []
    if isinstance(node, ast.ClassDef):
        methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    firsts = [first_line(method) for method in methods]
    end = firsts[0] - 1 if firsts else node.end_lineno or first
    kept = list(range(first - 1, end))
    docstring = ast.get_docstring(node)
    if docstring is not None:
        text = node.body[0]
        kept = [line for line in kept if not text.lineno - 1 <= line < (text.end_lineno or 0)]
    code = render_code(inspect.cleandoc("\n" + "\n".join(lines[line] for line in kept).rstrip()))
    if any(getattr(each, "id", "") == "overload" for each in node.decorator_list):
        yield row("", code)
        return
    level, name = "h3" if owner else "h2", owner + node.name
    head = f'<{level} id="{name}"><code>{html.escape(name)}</code></{level}>'
    yield row(head + render_docstring(docstring or ""), code, section=True)
    for method, begin in zip(methods, firsts, strict=True):
        yield from definition_rows(lines, method, begin, f"{node.name}.")


def first_line(node: Node) -> int:
    """The line on which a definition begins, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def package_page() -> str:
    """The picture of the house, and the core modules in reading order."""
    body = (
        "<h1>The package, to be read</h1>"
        "<p class=lead>The wings of the package, and who imports whom; every arrow points down.</p>"
        f"<figure>{draw_house()}</figure>"
        "<p class=lead>Each page has a module's code, and beside it what it is for, its equation "
        "and its source. Read them in this order.</p>"
    )
    modules = cards([(*link_to(name), opening(name)) for name in CORE])
    return frame("The package · minilora", body + modules, "package.html")


def opening(name: str) -> str:
    """The first sentence of a module's docstring.

    >>> opening("lora.layer")
    'One Linear with one low-rank update beside it.'
    """
    tree = ast.parse((PACKAGE / file_of(name)).read_text(encoding="utf-8"))
    return first_sentence(ast.get_docstring(tree))


def first_sentence(docstring: str | None) -> str:
    """The first paragraph of a docstring on one line, without its marks."""
    return " ".join((docstring or "").partition("\n\n")[0].split()).replace("``", "")


def api_page() -> str:
    """Every public name: signature, docstring, and an example that runs as a test.

    The names of the public modules follow those of the package.
    """
    values = {name: getattr(minilora, name) for name in sorted(minilora.__all__, key=str.lower)}
    modules = {name: value for name, value in values.items() if inspect.ismodule(value)}
    owners = {"minilora": (minilora, [name for name in values if name not in modules])}
    for name, module in modules.items():
        owners[f"minilora.{name}"] = module, sorted(module.__all__, key=str.lower)
    lead = "The names of <code>import minilora</code>. Every example here is run by the tests."
    parts = ["<h1>The public names</h1>", f"<p class=lead>{lead}</p>"]
    for owner, (_, inner) in owners.items():
        links = " · ".join(f'<a href="#{full_name(owner, name)}">{name}</a>' for name in inner)
        parts.append(f'<p><a href="#{owner}"><b>{owner}</b></a> {links}</p>')
    for owner, (module, inner) in owners.items():
        parts.append(f'<h2 id="{owner}"><code>{owner}</code></h2>')
        if module is not minilora:
            parts.append(f"<p>{html.escape(first_sentence(module.__doc__))}</p>")
        parts += [api_entry(owner, name, getattr(module, name)) for name in inner]
    return frame("API · minilora", "\n".join(parts), "api.html")


def api_entry(owner: str, name: str, value: object) -> str:
    """One name: how it is written, where its code is, and its docstring, or a constant's value."""
    module, full = getattr(value, "__module__", "").partition(".")[2], full_name(owner, name)
    page, file = link_to(module)
    source = f'<p class=soft><a href="{page}">{file}</a></p>' if module in CORE else ""
    docstring = inspect.getdoc(value) or ""
    text = render_docstring(docstring) if callable(value) else render_code(repr(value))
    written = render_code(f"{owner}.{name}{signature(value)}")
    return f'<h3 id="{full}"><code>{full}</code></h3>{written}{source}{text}'


def full_name(owner: str, name: str) -> str:
    """As one writes it after ``import minilora`` and ``from minilora import …``.

    >>> full_name("minilora", "inject"), full_name("minilora.nf4", "quantize")
    ('inject', 'nf4.quantize')
    """
    return f"{owner}.{name}".removeprefix("minilora.")


def signature(value: object, width: int = 90) -> str:
    """A callable's parameters as they are written, one a line where they are many; or nothing.

    >>> signature(full_name)
    '(owner: str, name: str) -> str'
    """
    if not callable(value):
        return ""
    # inspect shows annotations in quotes, because they are kept as text
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(value)))
    text = re.sub(r"ForwardRef\('([^']*)'\)", r"\1", text).replace("<factory>", "…")
    if len(text) <= width:
        return text
    inside, _, returns = text[1:].rpartition(")")
    return "(\n    " + re.sub(r", (?=\*|\w+:)", ",\n    ", inside) + f",\n){returns}"

"""Equations as MathML, which browsers draw without a script; a terminal shows the text as it is.

A lesson writes an equation as one would type it, on an indented line, with a remark behind two
spaces or more::

    ΔW = (α / r) · B A        of rank r at most

becomes three columns: ``ΔW``, ``= α/r · B A`` with a real fraction, and the remark. A block of
which one line is no equation stays as it was typed. The grammar, loosest first::

    line    one or more products, with + − · = ≤ ≈ … between them
    product atoms side by side, and fractions ``atom / atom``
    atom    a number, a name, (…), ‖…‖, |…|, √atom; with ² ᵀ ₀ᵢ _r _{r+1} or [i] behind it

Source: MathML Core (W3C), sections 3.1 to 3.5. Left out: matrices, limits above a sum.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import pairwise

RELATIONS = "=≈≤≥←→∈<"
OPERATORS = f"{RELATIONS}+−-·×∘⊙,;…∂"
FENCES = {"(": ")", "[": "]", "‖": "‖", "|": "|"}
LOW = dict(zip("₀₁₂₃₄₅₆₇₈₉ᵢⱼᵣₖₜ", "0123456789ijrkt", strict=True))
HIGH = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹ᵀ⁻", "0123456789T−", strict=True))
TOKEN = re.compile(
    rf"\s*(?P<number>\d+(?:[.,]\d+)*%?)|\s*(?P<low>[{''.join(LOW)}]+)|\s*(?P<high>[{''.join(HIGH)}]+)"
    r"|(?P<under>_\{[^}]*\}|_\w)|\s*(?P<name>[A-Z]{3,}|[ΔΣ√½]|[^\W\d_]\u0302?(?:[a-z]+)?)"
    rf"|\s*(?P<fence>[()\[\]‖|])|\s*(?P<slash>/)|\s*(?P<operator>[{re.escape(OPERATORS)}])"
)
REMARK = re.compile(r"(?<=\S)\s{2,}(?=[^\s=])")


def math_block(text: str) -> str | None:
    """The lines of an indented block as one ``<math>``, or None where one is no equation.

    >>> math_block("y = x Wᵀ")[:48]
    '<math display="block" alttext="y = x Wᵀ"><mtable'
    >>> math_block("weights        every parameter: 4 bytes") is None
    True
    """
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        equation, *remark = REMARK.split(line, maxsplit=1)
        drawn = math_line(equation)
        if drawn is None:
            return None
        note = f"<mtext>{html.escape(remark[0])}</mtext>" if remark else ""
        rows.append(f"<mtr>{drawn}<mtd>{note}</mtd></mtr>")
    alt = html.escape("; ".join(" ".join(line.split()) for line in text.splitlines()), quote=True)
    table = f'<mtable displaystyle="true">{"".join(rows)}</mtable>'
    return f'<math display="block" alttext="{alt}">{table}</math>'


def math_line(text: str) -> str | None:
    """An equation as two cells, what stands before its first relation and the rest; or None."""
    tokens = list(tokenize(text))
    kinds = [kind for kind, _ in tokens]
    neighbours = any(pair == ("name", "name") for pair in pairwise(kinds))
    words = sum(kind == "name" and len(value) > 3 for kind, value in tokens)
    if "operator" not in kinds or "unknown" in kinds or (words > 5 and neighbours):
        return None
    relations = [n for n, (_, value) in enumerate(tokens) if value in RELATIONS]
    reader = Reader(tokens)
    left, right = reader.read(relations[0] if relations else 0), reader.read(len(tokens))
    return None if reader.broken else f"<mtd>{left}</mtd><mtd>{right}</mtd>"


def tokenize(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token; the last is ``("unknown", …)`` where the text is no equation.

    >>> list(tokenize("s = α/r"))
    [('name', 's'), ('operator', '='), ('name', 'α'), ('slash', '/'), ('name', 'r')]
    """
    place = 0
    text = text.rstrip(" .")
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            yield "unknown", text[place:]
            return
        place = match.end()
        yield match.lastgroup, match[match.lastgroup]


class Reader:
    """Reads tokens into MathML; ``broken`` when a bracket has no partner or a fraction no part."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens, self.place, self.broken = tokens, 0, False

    def read(self, end: int, closing: str = "") -> str:
        """Everything up to ``end``, or up to a closing bracket, which is consumed."""
        parts: list[str] = []
        while self.place < end:
            kind, value = self.tokens[self.place]
            if closing and value == closing:
                self.place += 1
                return "".join(parts)
            if kind == "operator":
                self.place += 1
                parts.append(f"<mo>{html.escape(value)}</mo>")
            elif kind == "slash":
                self.place += 1
                if not parts or parts[-1].startswith("<mo>") or self.place >= end:
                    self.broken = True
                    return ""
                over, under = unfenced(parts.pop()), unfenced(self.atom(end))
                parts.append(f"<mfrac>{over}{under}</mfrac>")
            else:
                parts.append(self.atom(end))
        self.broken = self.broken or bool(closing)
        return "".join(parts)

    def atom(self, end: int) -> str:
        """A number, a name or a bracket, with what hangs on it."""
        kind, value = self.tokens[self.place]
        self.place += 1
        if kind == "number":
            drawn = f"<mn>{value}</mn>"
        elif value == "√":
            if self.place >= end:
                self.broken = True
                return ""
            return f"<msqrt>{unfenced(self.atom(end))}</msqrt>"
        elif kind == "name":
            drawn = f"<mo>{value}</mo>" if value == "Σ" else name_of(value)
        elif kind == "fence" and value in FENCES:
            inside, close = self.read(end, FENCES[value]), FENCES[value]
            drawn = (
                f'<mrow><mo fence="true">{value}</mo>{inside}<mo fence="true">{close}</mo></mrow>'
            )
        else:
            self.broken = True
            return ""
        return self.scripts(drawn)

    def scripts(self, drawn: str) -> str:
        """An atom with its indices and exponents."""
        low = high = ""
        while self.place < len(self.tokens):
            kind, value = self.tokens[self.place]
            if kind == "low":
                low += f"<mi>{''.join(LOW[letter] for letter in value)}</mi>"
            elif kind == "under":
                low += f"<mi>{html.escape(value[1:].strip('{}'))}</mi>"
            elif kind == "high":
                high += f"<mi>{''.join(HIGH[letter] for letter in value)}</mi>"
            else:
                break
            self.place += 1
        if low and high:
            return f"<msubsup>{drawn}<mrow>{low}</mrow><mrow>{high}</mrow></msubsup>"
        if low:
            return f"<msub>{drawn}<mrow>{low}</mrow></msub>"
        return f"<msup>{drawn}<mrow>{high}</mrow></msup>" if high else drawn


def name_of(value: str) -> str:
    """A variable, slanted when it is one letter; a word has room on both sides."""
    if len(value) > 1 and value.isalpha():
        return f'<mrow><mspace width="0.2em"/><mi>{value}</mi><mspace width="0.2em"/></mrow>'
    return f"<mi>{value}</mi>"


def unfenced(drawn: str) -> str:
    """A bracket's inside, where a fraction or a root shows what belongs together."""
    inside = re.fullmatch(
        r'<mrow><mo fence="true">\(</mo>(.*)<mo fence="true">\)</mo></mrow>', drawn
    )
    return f"<mrow>{inside[1]}</mrow>" if inside else drawn

"""What must not be learnt: secrets, and texts whose licence says so.

    secret     a key, a token, a password, a card number: an adapter repeats what it was taught
    personal   an e-mail address
    licence    "all rights reserved", a licence that forbids commercial use or asks for copyleft

Patterns, so it finds what has a form and nothing else: names, addresses and prose of others pass. A
finding names its kind and a redacted piece, never the secret itself, so that reports may be kept.

The forms are those that their issuers document (AWS access key ids, GitHub's and Slack's prefixes,
PEM's first line, JWT's three parts, RFC 7519; the check digit of ISO/IEC 7812). Left out: entropy
of strings, which flags hashes more than keys.

A server audits what its users send (corrections.py), so the time must be linear in the text. A form
that begins with "any number of letters" is tried from each letter again, n² in all: an address is
sought from its @, a JSON web token from the dot before its second part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[0-9A-Za-z]{36}\b",
    "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "an API key": r"\bsk-[0-9A-Za-z_-]{20,}",
    "a JSON web token": r"(?<=[\w-]{8})\.eyJ[\w-]{8,}\.[\w-]{8,}",
    "a password": r"(?i)\b(?:password|passwd|secret|api[_-]?key)\b\s*[:=]\s*\S{6,}",
}
PERSONAL = {"an e-mail address": r"(?<=[\w.+-])@[\w-]+\.[A-Za-z][\w.-]*\w"}
LICENCES = {
    "all rights reserved": r"(?i)\ball rights reserved\b",
    "a copyleft licence": (
        r"(?i)\bGNU (?:Affero |Lesser )?General Public License"
        r"|SPDX-License-Identifier:\s*(?:A|L)?GPL"
    ),
    "no commercial use": (
        r"(?i)\bCC[- ]BY[- ]NC|\bNonCommercial\b|SPDX-License-Identifier:\s*CC-BY-NC"
    ),
}
KINDS = {"secret": SECRETS, "personal": PERSONAL, "licence": LICENCES}
CARD = re.compile(r"\b(?:\d[ -]?){12,18}\d\b")


@dataclass(frozen=True)
class Finding:
    """One thing in a text: ``kind`` (secret, personal or licence), what it is, a redacted piece."""

    kind: str
    what: str
    piece: str

    def __str__(self) -> str:
        return f"{self.what} ({self.piece})"


def audit(text: str) -> list[Finding]:
    """Everything in a text that should not be learnt, in the order of ``KINDS``.

    >>> [str(each) for each in audit("The password: hunter2! All rights reserved.")]
    ['a password (pass…)', 'all rights reserved (All …)']
    >>> audit("Hull 90%. All stop.")
    []
    """
    return list(findings(text))


def findings(text: str) -> Iterator[Finding]:
    """The findings, one after the other."""
    for kind, forms in KINDS.items():
        for what, form in forms.items():
            for match in re.finditer(form, text):
                yield Finding(kind, what, f"{match[0][:4]}…")
    for match in CARD.finditer(text):
        if luhn(match[0]):
            yield Finding("secret", "a card number", f"{match[0][:4]}…")


def luhn(number: str) -> bool:
    """Whether the last digit fits the others (ISO/IEC 7812-1, annex B).

    >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(each) for each in number if each.isdigit()]
    doubled = [sum(divmod(2 * each, 10)) for each in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0

"""What has a form is found; what has none is let through; nothing secret is repeated."""

import re

import pytest

from minilora.jobs.audit import KINDS, audit, luhn

FOUND = {
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "an AWS access key": "use AKIA" + "ABCDEFGHIJKLMNOP",
    "a GitHub token": "ghp_" + "a1" * 18,
    "a Slack token": "xoxb-" + "1234567890-abc",
    "an API key": "sk-" + "A1b2C3d4E5f6G7h8I9j0",
    "a JSON web token": "eyJhbGciOiJI.eyJzdWIiOiIx.abcdefghijk",
    "a password": "password = correcthorse",
    "an e-mail address": "write to ann.lee+ship@example.co.uk.",
    "all rights reserved": "(c) 2020. All rights reserved.",
    "a copyleft licence": "SPDX-License-Identifier: AGPL-3.0-only",
    "no commercial use": "under CC BY-NC 4.0",
    "a card number": "pay with 4111-1111-1111-1111",
}


@pytest.mark.parametrize("what", FOUND)
def test_a_form_is_found_and_not_repeated(what):
    findings = audit(FOUND[what])
    assert [each.what for each in findings] == [what]
    assert len(findings[0].piece) == 5


def test_a_megabyte_of_almost_an_address_is_read_in_one_pass():
    """Tried from each letter to the end it took the better part of an hour."""
    assert audit("a." * 500_000) == []


@pytest.mark.parametrize(
    "unit", ["a-", "eyJ-", "eyJaaaaaaaa", "@a.b.", "4 ", "sk-a ", "secret ", "-"]
)
def test_almost_any_form_is_read_in_one_pass(unit):
    assert len(audit(unit * (100_000 // len(unit)))) <= 1


def test_no_form_begins_with_any_number_of_letters():
    for form in [form for forms in KINDS.values() for form in forms.values()]:
        assert not re.match(r"(\(\?i\)|\\b|\(\?<=[^)]*\))*(\[[^]]*\]|\\[wSs]|\.)[+*]", form), form
    assert [str(each) for each in audit("x." * 100 + "ann@example.org")] == [
        "an e-mail address (@exa…)"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Hull 90%, Fuel 12%.",
        "What is a password?",
        "1234 5678 9012 3456 is no card",
        "Licensed under the Apache License 2.0.",
        "a @ b, and ask-me-anything-you-want-to-know",
    ],
)
def test_plain_text_passes(text):
    assert audit(text) == []


@pytest.mark.parametrize(
    "number",
    ["4242 4242 4242 4242", "5555-5555-5555-4444", "3782 822463 10005", "6011 1111 1111 1117"],
)
def test_issuers_test_numbers_are_cards_and_a_wrong_digit_is_seen(number):
    assert luhn(number)
    for place, digit in enumerate(number):
        if digit.isdigit():
            other = str((int(digit) + 1) % 10)
            assert not luhn(number[:place] + other + number[place + 1 :])

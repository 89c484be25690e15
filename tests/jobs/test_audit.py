"""What has a form is found; what has none is let through; nothing secret is repeated."""

import pytest

from minilora.jobs.audit import audit

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

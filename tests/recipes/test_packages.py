"""What a package manager says when it fails reaches the reader."""

import os
import sys

import pytest

from minilora.recipes.packages import fetch_npm, run

NPM = """#!/bin/sh
for word in "$@"; do [ "$word" = --silent ] && exit 1; done
echo "npm error code E404" >&2
echo "npm error 404 Not Found - GET $5" >&2
exit 1
"""


@pytest.mark.skipif(os.name == "nt", reason="npm is played by a shell script")
def test_npms_own_words_are_shown(tmp_path, monkeypatch):
    (tmp_path / "npm").write_text(NPM)
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(OSError, match=r"could not fetch small@1: npm error code E404 .* small@1"):
        fetch_npm("small@1", tmp_path)


def test_a_package_manager_that_is_not_there_is_said():
    with pytest.raises(OSError, match="could not fetch it: no-such-manager is not installed"):
        run(["no-such-manager"], "could not fetch it")


def test_of_long_words_both_ends_are_shown():
    says = "import sys; print('why first', *'-' * 999, 'why last', file=sys.stderr); exit(1)"
    with pytest.raises(OSError, match=r"failed: why first .* … .* why last$") as failure:
        run([sys.executable, "-c", says], "failed")
    assert len(str(failure.value)) < 620

"""Versions and wishes: semver's order (its section 11 is the oracle), what moves, what is meant."""

import pytest

from minilora.hub.semver import Semver, check_name, newest, parse_spec


def test_the_order_is_semvers():
    """The precedence that semver.org 2.0 gives in section 11, and numbers as numbers."""
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"]
    ordered += ["1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.2", "1.0.10", "1.2.0", "2.0.0"]
    assert sorted(reversed(ordered), key=lambda text: Semver.parse(text).order) == ordered


def test_a_compressed_copy_stands_before_its_original():
    versions = ["1.0.0", "1.0.0+nf4", "1.0.0-rc.1", "1.0.0-rc.1+nf4"]
    by_order = sorted(versions, key=lambda text: Semver.parse(text).order)
    assert by_order == ["1.0.0-rc.1+nf4", "1.0.0-rc.1", "1.0.0+nf4", "1.0.0"]


@pytest.mark.parametrize("text", ["1.2.3", "0.0.0", "1.2.3-rc.1", "1.2.3+nf4", "1.2.3-rc.1+int8.x"])
def test_a_version_reads_as_it_is_written(text):
    assert str(Semver.parse(text)) == text


@pytest.mark.parametrize("text", ["1.2", "01.2.3", "1.2.3-", "v1.2.3", "1.2.3 ", "1.2.1234567890"])
def test_what_is_no_version_is_refused(text):
    with pytest.raises(ValueError, match="expected a version such as"):
        Semver.parse(text)


@pytest.mark.parametrize(
    ("level", "expected"), [("major", "2.0.0"), ("minor", "1.3.0"), ("patch", "1.2.4")]
)
def test_the_next_of_a_level(level, expected):
    bumped = Semver.parse("1.2.3").bumped(level)
    assert str(bumped) == expected
    assert bumped.level_since(Semver.parse("1.2.3")) == level
    assert bumped.level_since(bumped) == "none"


def test_the_newest_of_a_wish():
    versions = ["1.2.0", "1.2.10+nf4", "1.2.9", "2.0.0-rc.1", "12.0.0"]
    assert newest(versions) == "12.0.0"
    assert newest(versions, "1") == newest(versions, "1.2") == "1.2.10+nf4"
    assert newest(versions, "2") is None, "a pre-release is meant only by its own name"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("naval", ("naval", "")),
        ("naval@1", ("naval", "1")),
        ("naval@1.2.3-rc.1", ("naval", "1.2.3-rc.1")),
        ("naval@champion", ("naval", "champion")),
    ],
)
def test_a_wish_is_read(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a" * 65, 3, None])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="expected an adapter's name"):
        check_name(name)
    check_name("a" * 64)

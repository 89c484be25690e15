"""Numbers in a config: the name and the value stand in the error."""

import pytest

from minilora.checks import check_number, check_switch, check_whole


def test_what_is_right_passes():
    check_whole("n", 0, 0)
    check_number("x", -1)
    check_number("x", 0.5, 0, 1)
    check_switch("s", False)


@pytest.mark.parametrize(
    ("check", "error", "words"),
    [
        (lambda: check_whole("n", -1, 0), ValueError, "n must be at least 0, got -1"),
        (lambda: check_whole("n", True, 0), TypeError, "n must be a whole number, got True"),
        (lambda: check_whole("n", 1.0, 0), TypeError, "n must be a whole number, got 1.0"),
        (lambda: check_number("x", 0, 0, 1), ValueError, "between 0 and 1, got 0"),
        (lambda: check_number("x", 1.0, 0, 1), ValueError, "between 0 and 1, got 1.0"),
        (lambda: check_number("x", float("inf")), ValueError, "x must be a finite number"),
        (lambda: check_number("x", False), TypeError, "x must be a number, got False"),
        (lambda: check_switch("s", 0), TypeError, "s must be True or False, got 0"),
    ],
)
def test_what_is_wrong_is_named(check, error, words):
    with pytest.raises(error, match=words):
        check()

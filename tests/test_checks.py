"""Numbers in a config: the name and the value stand in the error."""

import pytest

from minilora.checks import check_number, check_positive, check_switch, check_whole


def test_what_is_right_passes():
    check_whole("n", 0, 0)
    check_number("x", -1)
    check_number("x", 0.5, 0, 1)
    check_positive("x", 1e-9)
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


def test_what_is_not_positive_and_finite_is_refused():
    for value in (0, -1, float("inf"), float("nan"), True, "1"):
        with pytest.raises(ValueError, match=f"x must be a finite positive number, got {value!r}"):
            check_positive("x", value)

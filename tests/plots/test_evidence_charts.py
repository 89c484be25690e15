"""The evidence's chart shows the numbers it was given."""

import pytest

from minilora.plots.evidence_charts import evidence_chart

NUMBERS = {
    "pairs": [1, 10, 40],
    "e_values": [1.0, 7.0, float("inf")],
    "msprt": [1.0, 1.0, 30.0],
    "difference": [0.0, 0.2, 0.3],
    "low": [-1.0, -1.0, 0.1],
    "high": [1.0, 1.0, 0.5],
}


@pytest.mark.parametrize("dark", [False, True])
def test_the_lines_are_the_numbers(dark):
    left, right = evidence_chart("new or old?", **NUMBERS, limit=20.0, dark=dark).axes
    assert list(left.lines[0].get_ydata()) == [1.0, 7.0, 1e12]  # infinity has no place
    assert list(left.lines[1].get_ydata()) == NUMBERS["msprt"]
    assert set(left.lines[2].get_ydata()) == {20.0}
    assert left.get_yscale() == "log"
    assert list(right.lines[0].get_ydata()) == NUMBERS["difference"]


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="arrays of one length"):
        evidence_chart("x", **{**NUMBERS, "low": [0.0]}, limit=20.0)

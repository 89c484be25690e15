"""Small multiples: shared axes, one colour a name, names once."""

import pytest

from minilora.plots.panels import small_multiples

LINES = {
    "full": ([1, 10, 100], [1.0, 0.1, 0.01]),
    "full, trained on": ([1, 10, 100], [0.5, 0.05, 0.005]),
    "r = 8": ([1, 10, 100], [2.0, 1.0, 0.5]),
}


def test_panels_share_their_axes_and_a_dashed_line_has_its_partner_s_colour():
    panels = {"30 examples": LINES, "100 examples": {"r = 8": ([1, 50], [3.0, 4.0])}}
    figure = small_multiples(panels, ("step", "loss"), log="xy", dashed=", trained on")
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xlim() == right.get_xlim()
    assert (left.get_xscale(), right.get_yscale()) == ("log", "log")
    colors = {line.get_label(): line.get_color() for line in left.get_lines()}
    assert colors["full"] == colors["full, trained on"] != colors["r = 8"]
    assert right.get_lines()[0].get_color() == colors["r = 8"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "r = 8"]
    assert right.get_ylabel() == ""


def test_a_line_without_points_is_refused():
    with pytest.raises(ValueError, match="not empty"):
        small_multiples({"a": {"b": ([], [])}}, ("x", "y"))

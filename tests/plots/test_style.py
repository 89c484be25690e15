"""Figures show what they were given, and files are pictures."""

import pytest

from minilora.plots.charts import finetune_figure
from minilora.plots.style import save_figure

GIVEN = ([2.0, 1.0, 0.5], [0, 3], [2.0, 0.4], [0.0, 0.975], 1_304_192, 21_504)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_fine_tune_figure_shows_its_numbers_with_units_on_every_axis():
    left, middle, right = finetune_figure(*GIVEN).axes
    assert left.lines[0].get_ydata().tolist() == GIVEN[0]
    assert left.lines[1].get_xydata().tolist() == [[0, 2.0], [3, 0.4]]
    assert middle.lines[0].get_ydata().tolist() == [0.0, 97.5]
    assert any("98%" in text or "97%" in text for text in texts(middle))
    assert [bar.get_width() for bar in right.patches] == [21_504, 1_304_192]
    assert any("21,504" in text and "1.6% of full" in text for text in texts(right))
    assert (right.get_xscale(), right.get_xlim()[0]) == ("linear", 0)
    for axes in (left, middle):
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title(loc="left")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")])
def test_figures_are_saved_as_png_or_svg(tmp_path, name, start):
    file = save_figure(finetune_figure(*GIVEN), tmp_path / "new" / name)
    content = file.read_bytes()
    assert content.startswith(start)
    assert len(content) > 5000


def test_other_formats_and_arrays_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"saved as .png or .svg, got 'c.pdf'"):
        save_figure(finetune_figure(*GIVEN), tmp_path / "c.pdf")
    message = "equal length, got 1 losses, 1 steps, 0 validation losses"
    with pytest.raises(ValueError, match=message):
        finetune_figure([1.0], [0], [], [], 10, 1)
    with pytest.raises(ValueError, match="got 0 losses"):
        finetune_figure([], [0], [1.0], [1.0], 10, 1)

"""Charts show the numbers that they are given, with units on every axis, in both themes."""

import re
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from minilora.plots import charts, gallery, parameter_charts
from minilora.plots.style import DARK_CYCLE, LIGHT_CYCLE, PAPER
from minilora.training.history import History

LEDGER_ONLY = [name for name in gallery.CHARTS if name not in ("loss", "spectrum")]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.fixture
def short_runs(monkeypatch):
    """Training runs of one step stand in for the gallery's."""
    monkeypatch.setitem(gallery.RUNS, "steps", 1)
    monkeypatch.setitem(gallery.RUNS, "seeds", 1)
    gallery.runs.cache_clear()
    yield
    gallery.runs.cache_clear()


@pytest.mark.parametrize("name", LEDGER_ONLY)
@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_says_what_its_axes_are_and_wears_its_theme(name, dark):
    figure = gallery.draw(name, dark)
    left = figure.axes[0]
    assert left.get_title(loc="left")
    assert left.get_xlabel() or [label.get_text() for label in left.get_xticklabels()]
    assert left.get_ylabel() or [label.get_text() for label in left.get_yticklabels()]
    assert (to_hex(figure.get_facecolor()) == PAPER.lower()) is dark
    used = {
        to_hex(line.get_color())
        for axes in figure.axes
        for line in axes.lines
        if isinstance(line.get_color(), str)
    }
    assert used <= {color.lower() for color in (DARK_CYCLE if dark else LIGHT_CYCLE)}


@pytest.mark.parametrize("name", LEDGER_ONLY)
def test_no_text_lies_over_another_or_outside(name):
    figure = gallery.draw(name)
    figure.draw_without_rendering()
    shown = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    page = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert page.x0 - 1 <= box.x0, text
        assert box.x1 <= page.x1 + 1, text
        for other, place in boxes[i + 1 :]:
            wide = min(box.x1, place.x1) - max(box.x0, place.x0)
            high = min(box.y1, place.y1) - max(box.y0, place.y0)
            assert wide <= 2 or high <= 4, (text, other)


def test_bars_are_as_long_as_the_counts():
    figure = parameter_charts.trainable_chart(["a", "b"], [1000, 2_000_000], [10, 5000])
    assert not figure.axes[0].patches, "a bar on a logarithmic axis shows 1/400 as half"
    dots = [[*map(int, line.get_xdata())] for line in figure.axes[0].get_lines()]
    assert dots == [[1000, 2_000_000], [10, 5000]]
    assert {"LoRA 5k", "1/400"} <= set(texts(figure))


def test_stacked_bars_add_up_and_show_the_cards_within_their_scale():
    bars = {
        "full": [{"weights": 3e9, "gradients": 2e9, "none": 0}],
        "LoRA": [{"weights": 3e9, "gradients": 0, "none": 0}],
    }
    figure = charts.memory_chart(["m"], bars, {"4 GB": 4e9, "80 GB": 80e9})
    axes = figure.axes[0]
    assert [(p.get_y(), p.get_height()) for p in axes.patches] == [(0, 3), (3, 2), (0, 3), (3, 0)]
    assert "5.0 GB" in texts(figure)
    assert "4 GB" in texts(figure)
    assert "80 GB" not in texts(figure)
    # as they are stacked
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gradients", "weights"]


def test_break_even_is_where_the_line_crosses_one_hundred_percent():
    figure = parameter_charts.break_even_chart([("square", 64, 64)])
    line, point = figure.axes[0].lines[:2]
    assert point.get_xdata() == [32]
    assert np.interp(32, line.get_xdata(), line.get_ydata()) == pytest.approx(100)


def test_a_spectrum_ends_at_its_rank():
    matrix = np.outer([1, 2, 3], [1, 1, 0]) + np.eye(3)
    for rank, values in ((3, np.linalg.svd(matrix, compute_uv=False)), (1, [5.0, 1e-9])):
        figure = charts.spectrum_chart({f"rank {rank}": values})
        assert len(figure.axes[0].lines[0].get_xdata()) == rank


def test_loss_curves_show_mean_and_range():
    figure = charts.loss_chart({"a": [[4.0, 2.0], [2.0, 1.0]]})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [3.0, 1.5]
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 4.0)
    assert "a (2 seeds)" in texts(figure)


def test_disk_lines_are_sums():
    figure = charts.disk_chart([1, 10], 1_000_000_000, 1_000_000, "m")
    assert "full copies\n10.0 GB" in texts(figure)
    full, lora = figure.axes[0].lines
    assert full.get_ydata().tolist() == [1.0, 10.0]
    assert lora.get_ydata().tolist() == pytest.approx([1.001, 1.01])


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (parameter_charts.trainable_chart, ([], [], []), "expected arrays of one length and not"),
        (parameter_charts.rank_chart, ([1, 2], {"q": [1]}, "m", 9), "{'ranks': 2, 'q': 1}"),
        (parameter_charts.heat_chart, (["q"], [1], [[0]], "", [[""]]), "positive values of shape"),
        (charts.nf4_chart, ([0.1], [0.0]), "at least one block of 64 weights, got 1"),
        (gallery.draw, ("memmory",), "no chart is called 'memmory'; nearest: memory"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


@pytest.mark.slow
def test_the_gallery_is_one_page_without_network_and_a_file_for_every_chart(tmp_path, monkeypatch):
    some = {name: gallery.CHARTS[name] for name in ("heat", "disk")}
    monkeypatch.setattr(gallery, "CHARTS", some)
    page = gallery.write_gallery(tmp_path / "charts").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link", page)
    assert page.count("<figure") == 2
    assert page.count("data:image/png;base64,") == 4
    names = {file.name for file in (tmp_path / "charts").iterdir()}
    faces = [f"{name}{face}" for name in some for face in ("", "-dark")]
    assert names == {"index.html", *(f"{face}.{kind}" for face in faces for kind in ("png", "svg"))}


def test_a_real_lora_update_has_the_rank_it_was_given(short_runs):
    lora = gallery.runs()["LoRA r = 8"]
    values = np.array(lora["spectrum"])
    assert (values > 1e-5 * values[0]).sum() <= 8
    assert np.shape(lora["losses"]) == (1, 1)


def test_ctrl_c_while_a_chart_trains_stops_the_charts(short_runs, monkeypatch):
    monkeypatch.setattr(
        sys.modules["minilora.training.loop"], "train", lambda *_, **__: History(interrupted=True)
    )
    with pytest.raises(KeyboardInterrupt):
        gallery.runs()


def test_a_fine_tune_shows_what_was_said_and_what_was_forgotten():
    bits = {"replay": 0.07, "no replay": 1.6}
    figure = charts.finetune_figure(
        [2.0], [0], [2.0], [0.0], 1000, 10, forgotten=bits, answers=["before  Hello", "after  Hi"]
    )
    right = figure.axes[2]
    assert right.get_title(loc="left") == "What was forgotten"
    assert [bar.get_width() for bar in right.patches] == list(bits.values())
    assert figure.get_suptitle() == "before  Hello\nafter  Hi"
    assert figure.get_supxlabel() == "parameters: 10 trained beside 1,000 frozen"

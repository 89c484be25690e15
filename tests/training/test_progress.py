"""A bar on a terminal, plain lines elsewhere, nothing when it is not wanted."""

import sys
from types import SimpleNamespace

from minilora.training import progress
from minilora.training.progress import Progress

RECORD = {"loss": 1.25, "seconds": 0.5, "tokens": 100}
VALIDATION = {
    "step": 50,
    "valid_loss": 0.5,
    "exact_match": 0.25,
    "sample": {"asked": "?", "answer": "Hull [bold]9%.", "wanted": "x"},
}


def run(show=True):
    with Progress(10, show) as bar:
        bar.advance(1, RECORD)
        bar.validated(VALIDATION)
        bar.say("done")


def test_without_a_terminal_there_is_a_line_a_validation(capsys):
    run()
    assert (
        capsys.readouterr().err
        == "step    50  held-out loss 0.500  exact match 25%  “Hull [bold]9%.”\ndone\n"
    )


def test_a_long_answer_is_cut_and_says_so(capsys):
    with Progress(10, True) as bar:
        for length in (60, 61):
            bar.validated({**VALIDATION, "sample": {"answer": "x" * length}})
    whole, cut = capsys.readouterr().err.splitlines()
    assert whole.endswith(f"“{'x' * 60}”")
    assert cut.endswith(f"“{'x' * 59}…”")


def test_nothing_is_shown_when_it_is_not_wanted(capsys):
    run(show=False)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_loss_and_speed(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FORCE_COLOR", "1")
    run()
    shown = capsys.readouterr().err
    assert "1/10" in shown
    assert "1.250" in shown
    assert "200 tokens/s" in shown
    assert "Hull [bold]9%." in shown


def at(monkeypatch, *seconds):
    """The clock shows these times, one after the other."""
    times = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def test_without_a_terminal_a_line_comes_every_so_many_seconds(capsys, monkeypatch):
    at(monkeypatch, 0, 0, 10, 30, 40, 65)
    with Progress(104) as lines:
        for step in (1, 2, 3, 4):
            lines.advance(step, RECORD)
    assert capsys.readouterr().err.splitlines() == [
        "step     2/104  loss 1.250  7 tokens/s  0:25:30 left",  # 15 s a step, 102 to come
        "step     4/104  loss 1.250  6 tokens/s  0:27:05 left",
    ]


def test_a_resumed_run_reckons_with_its_own_pace(capsys, monkeypatch):
    at(monkeypatch, 0, 0, 40)
    with Progress(104) as lines:
        lines.advance(101, RECORD)
    assert "0:02:00 left" in capsys.readouterr().err


def test_a_notebook_gets_a_line_that_is_written_anew(capsys, monkeypatch):
    shown = []
    cell = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    shell = SimpleNamespace(kernel=object())
    display = SimpleNamespace(display=lambda data, raw, display_id: cell)
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    at(monkeypatch, 0, 0, 0.1, 1, 1.1)
    with Progress(3) as line:
        for step in (1, 2, 3):
            line.advance(step, RECORD)
        line.say("done")
    assert shown == [
        "[################........] step     2/3  loss 1.250  200 tokens/s  0:00:00 left",
        "[########################] step     3/3  loss 1.250  1,000 tokens/s  0:00:00 left",
    ]
    assert capsys.readouterr().err == "done\n"
    shell.kernel = None  # IPython on a terminal
    assert not progress.in_notebook()

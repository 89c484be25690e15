"""A bar on a terminal, plain lines elsewhere, nothing when it is not wanted."""

import sys

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

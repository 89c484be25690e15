"""What the demo prints fits the terminal."""

from minilora.commands.demo_text import show_asked, size_of


def test_an_answer_wraps_between_words_below_its_label(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    polite = "Hello! I am happy to report Engines stop, Fuel 12 percent and Oxygen 98 percent."
    show_asked("Log: Engines stop.", "Status?", {"before  ": polite, "after   ": "All stop.\nAye."})
    log, question, *answers = capsys.readouterr().out.splitlines()
    assert (log, question) == ("Log: Engines stop.", "  > Status?")
    assert all(len(line) < 40 for line in answers)
    assert answers[0] == "  before  Hello! I am happy to report"
    assert " ".join(line[10:] for line in answers[:-2]) == polite
    assert answers[-2:] == ["  after   All stop.", "          Aye."]


def test_an_empty_answer_leaves_its_label(capsys):
    show_asked("Log: Hull 9%.", "Status?", {"after   ": ""})
    assert capsys.readouterr().out.splitlines()[-1] == "  after   "


def test_the_size_of_a_file_and_of_a_folder(tmp_path):
    (tmp_path / "one").write_bytes(b"0" * 2000)
    (tmp_path / "two").write_bytes(b"0" * 1_500_000)
    assert [size_of(tmp_path / "one"), size_of(tmp_path)] == ["2.0 kB", "1.5 MB"]

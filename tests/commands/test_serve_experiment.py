"""``minilora serve experiment``: the table, the sentence, the picture; while a server runs."""

import pytest

from minilora.commands.cli import main
from minilora.serving.assignment import Experiment
from minilora.serving.experiments import Experiments

ARMS = {"old": "naval@1.0.0", "new": "naval@1.1.0"}


def run_log(folder, arms=ARMS, users=16):
    """An experiment in which only the arm ``new`` does well."""
    experiments = Experiments(folder)
    experiments.start(Experiment("greeting", "naval", arms))
    for user in map(str, range(users)):
        drawn = experiments.assign("naval", user)
        experiments.record(drawn, user)
        experiments.outcome(user, float(drawn.arm == "new"))


def test_the_evidence_is_printed_and_drawn(tmp_path, capsys):
    run_log(tmp_path)
    state, out = ["--state", str(tmp_path)], tmp_path / "evidence.svg"
    assert main(["serve", "experiment", "list", *state]) == 0
    assert capsys.readouterr().out == "greeting  naval  runs  100% of the users\n"
    assert main(["serve", "experiment", "show", "greeting", "--out", str(out), *state]) == 0
    told = capsys.readouterr().out
    (found,) = Experiments(tmp_path).evidence("greeting")
    assert f"of {found.pairs} pairs {found.wins} won, 0 lost" in told
    assert found.verdict in told
    assert f"drawn: {out}" in told
    assert "greeting: new or old?" in out.read_text(encoding="utf-8")


def test_each_of_several_arms_has_its_own_table_and_picture(tmp_path, capsys):
    run_log(tmp_path, {**ARMS, "third": "naval@1.2.0"}, users=12)
    command = ["serve", "experiment", "show", "greeting", "--state", str(tmp_path)]
    assert main([*command, "--out", str(tmp_path / "evidence.png"), "--dark"]) == 0
    assert capsys.readouterr().out.count("beside old") == 2
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "evidence-new.png",
        "evidence-third.png",
    }


def test_one_without_outcomes_is_a_sentence(tmp_path, capsys):
    Experiments(tmp_path).start(Experiment("greeting", "naval", ARMS))
    command = ["serve", "experiment", "show", "greeting", "--state", str(tmp_path)]
    assert main([*command, "--out", str(tmp_path / "evidence.png")]) == 0
    assert "undecided: E = 1, 20 is needed" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["show", "greting"], ["list"]])
def test_what_is_not_there_is_said(tmp_path, capsys, words):
    if words[0] == "show":
        run_log(tmp_path, users=2)
    assert main(["serve", "experiment", *words, "--state", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'greeting'" in said or "no experiment was started" in said

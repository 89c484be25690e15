"""``minilora hub``: push two versions, compare, promote, roll back, find out what one saw."""

import argparse
import json
import warnings

import pytest

from minilora.commands import hub as command_hub
from minilora.commands.cli import main
from minilora.hub import Hub, data_hash
from minilora.training.data import load_jsonl

from ..hub.adapters import flip_bit, make_adapter


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run ``minilora hub …`` in an empty folder; returns status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    parser = argparse.ArgumentParser(prog="minilora hub")
    command_hub.add_options(parser)

    def command(*words):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = command_hub.run(parser.parse_args(list(words)))
        return status, capsys.readouterr().out

    command.parser = parser
    return command


@pytest.fixture
def pushed(run, tmp_path):
    """Two versions of one name, with data and scores."""
    for seed, name in enumerate("ab"):
        make_adapter(tmp_path / name, seed)
        lines = [{"instruction": f"How is system {i + seed}?", "output": "Good."} for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        score = f"exact=0.{seed + 7}"
        run("push", "naval", name, "--data", f"{name}.jsonl", "--metric", score, "--task", "log")
    return Hub("hub")


def test_a_new_user_pushes_compares_promotes_and_rolls_back(run, pushed):
    assert "naval@1.1.0" in run("list")[1]
    assert "other data" in run("compare", "naval@1.0", "naval@1.1")[1]
    assert (
        "naval@champion is 1.0.0 now (before: not set)"
        in run("alias", "naval@1.0.0", "champion", "--expect", "none")[1]
    )
    output = run("alias", "naval@1.1.0", "champion", "--expect", "1.0.0")[1]
    back = output.partition("Back: minilora hub ")[2].split()
    assert "naval@champion is 1.0.0 now (before: 1.1.0)" in run(*back)[1]
    folder = run("pull", "naval@champion")[1].strip()
    assert folder == str(pushed.pull("naval@1.0.0"))
    output = run("show", "naval@champion")[1]
    assert data_hash(load_jsonl("a.jsonl")) in output
    assert "champion 1.1.0 -> 1.0.0" in output
    with pytest.raises(ValueError, match="somebody moved it"):
        run("alias", "naval@1.1.0", "champion", "--expect", "1.1.0")


def test_train_pushes_with_lineage_and_commands_take_names(run, tmp_path, capsys):
    rows = [{"instruction": f"Hull {n}?", "output": f"Hull {n}%."} for n in range(12)]
    data = tmp_path / "logs.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    hub = ["--hub", str(tmp_path / "hub")]
    train = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--seed", "7", *hub]
    train += ["--steps", "2", "--batch", "2"]
    assert main([*train, "--push", "na val"]) != 0
    assert "expected an adapter's name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*train, "--push", "naval", "--full"]) != 0
    assert "--full makes none" in capsys.readouterr().err
    assert main([*train, "--push", "naval"]) == 0
    assert "Pushed naval@1.0.0." in capsys.readouterr().out
    version = Hub(tmp_path / "hub").show("naval")
    assert version.manifest.seed == 7
    assert version.manifest.recipe["steps"] == 2
    assert version.manifest.data_sha
    assert set(version.manifest.metrics) == {"valid_loss", "exact_match"}
    assert main([*train, "--adapter", "naval", "--push", "legal"]) == 0
    legal = Hub(tmp_path / "hub").show("legal").manifest
    assert (legal.parent, legal.recipe["adapter"]) == ("naval@1.0.0", "naval@1.0.0")
    capsys.readouterr()
    ask = ["generate", "Hull 3?", "--max-new-tokens", "3"]
    assert main([*ask, *hub, "--adapter", "naval@1"]) == 0
    named = capsys.readouterr().out
    assert main([*ask, "--adapter", str(tmp_path / "out" / "adapter")]) == 0
    assert capsys.readouterr().out == named
    assert main([*ask, *hub, "--adapter", "navel"]) != 0
    assert "did you mean 'naval'" in capsys.readouterr().err


def test_verify_gives_a_status(run, pushed):
    assert run("verify") == (0, "Everything is as it was stored.\n")
    flip_bit(pushed.blobs.path(pushed.show("naval").manifest.files["adapter_model.safetensors"][0]))
    status, output = run("verify")
    assert status == 1
    assert "naval@1.1.0: " in output


def test_the_list_is_chosen(run, pushed):
    assert "1.0.0" not in run("list", "--metric", "exact=0.75")[1]
    assert "1.0.0" in run("list", "naval", "--task", "log", "--metric", "exact")[1]
    with pytest.raises(ValueError, match="no 'nvaal' here: did you mean 'naval'"):
        run("list", "nvaal")
    with pytest.raises(ValueError, match="expected a score as NAME=NUMBER"):
        run("push", "naval", "a", "--metric", "exact:1")


def test_it_routes_and_says_why(run, pushed, tmp_path):
    lines = [
        {"instruction": f"Grant of patents in clause {i}?", "output": "Yes."} for i in range(9)
    ]
    (tmp_path / "law.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run("push", "legal", "a", "--data", "law.jsonl")
    output = run("route", "Grant of patents in clause 12?")[1]
    assert output.startswith("legal (margin")
    assert "legal because of: '" in output
    assert "none of these: the base answers" in run("route", "Zzz")[1]


def test_files_travel_and_what_is_not_used_goes(run, pushed, capsys):
    run("export", "naval@1.0", "n.zip")
    assert run("--hub", "other", "import", "n.zip")[1] == "Imported naval@1.0.0.\n"
    assert "naval@1.1.0+fp16" in run("compress", "naval", "--kind", "fp16")[1]
    run("alias", "naval@1.0.0", "champion")
    assert "Pruned 0" in run("prune", "--unused-for", "30d")[1]
    assert "Pruned 2: naval@1.1.0, naval@1.1.0+fp16" in run("prune", "--unused-for", "0s")[1]
    assert run("gc")[1] == "Removed 0 files, 0.0 kB.\n"
    for text in ("soon", "30"):  # thirty of what?
        with pytest.raises(SystemExit):
            run("prune", "--unused-for", text)
    assert "expected a time as 90s, 30m, 10h or 2d, got '30'" in capsys.readouterr().err
    assert "Wrote hub.html" in run("page")[1]


def test_a_compressed_copy_is_compressed_again(run, pushed):
    run("compress", "naval@1.0.0", "--kind", "fp16")
    told = run("compress", "naval@1.0.0+fp16", "--kind", "nf4")[1]
    assert "Stored naval@1.0.0+fp16.nf4: " in told


def test_the_next_command_finds_the_same_hub(run, tmp_path):
    make_adapter(tmp_path / "a")
    spaced = run("--hub", "my hub", "push", "naval", "a")[1]
    assert "minilora hub --hub 'my hub' show naval@1.0.0" in spaced
    output = run("--hub", "other", "--tenant", "me", "push", "naval", "a")[1]
    assert "minilora hub --hub other --tenant me show naval@1.0.0" in output


def test_the_hub_may_be_named_on_either_side_of_the_sub_command(run, tmp_path):
    make_adapter(tmp_path / "a")
    run("push", "naval", "a", "--hub", "other", "--tenant", "me")
    assert not (tmp_path / "hub").exists()
    for words in (
        ("--hub", "other", "--tenant", "me", "list"),
        ("list", "--hub", "other", "--tenant", "me"),
    ):
        assert "naval" in run(*words)[1]


def test_help_shows_examples_and_every_sub_command(run):
    shown = run.parser.format_help()
    assert "minilora hub push naval" in shown
    for name in (
        "pull",
        "list",
        "show",
        "compare",
        "alias",
        "verify",
        "gc",
        "prune",
        "page",
        "export",
        "import",
    ):
        assert f"\n    {name} " in shown


def test_a_push_without_a_seed_goes_through_the_whole_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_adapter(tmp_path / "a", 0)
    assert main(["hub", "push", "naval", "a", "--task", "log"]) == 0
    assert main(["hub", "push", "naval", "a", "--task", "log", "--seed", "3"]) == 0
    hub = Hub("hub")
    assert [hub.show(name).manifest.seed for name in ("naval@1.0.0", "naval@1.0.1")] == [None, 3]
    assert main(["hub", "push", "naval", "a", "--seed", str(2**40)]) == 2
    assert "at most 32 bits" in capsys.readouterr().err
    assert main(["hub", "list", "--tenant", "acme"]) == 0
    assert "no version of this tenant is like that\n" in capsys.readouterr().out
    assert main(["hub", "--hub", "nowhere", "list"]) == 2
    assert capsys.readouterr().err.startswith("minilora hub: there is no hub in nowhere")

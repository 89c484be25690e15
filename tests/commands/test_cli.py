"""The commands as a user types them: a full circle, and bad input is one line and status 2."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import minilora
from minilora.commands.cli import COMMANDS, main
from minilora.training.data import naval_log


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a JSONL and what ``minilora train`` made of it."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [
        json.dumps({"instruction": e.instruction, "input": e.input, "output": e.output})
        for e in naval_log(60, 1).train
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert (
        main(
            [
                "train",
                "--data",
                str(folder / "mine.jsonl"),
                "--out",
                str(folder / "out"),
                "--steps",
                "4",
                "--r",
                "4",
            ]
        )
        == 0
    )
    return folder


def test_train_merge_and_generate_complete_the_circle(trained, capsys):
    adapter, merged = str(trained / "out" / "adapter"), str(trained / "merged model")
    small = ["--dtype", "float32", "--shard", "1MB"]
    assert main(["merge", "--adapter", adapter, "--out", merged, *small]) == 0
    assert f"minilora generate --base '{merged}'" in capsys.readouterr().out
    assert len(list(Path(merged).glob("model-*.safetensors"))) > 4
    question = ["--context", "Log: Hull 90%, Fuel 12%.", "Status?"]
    assert main(["generate", "--adapter", adapter, *question]) == 0
    unmerged = capsys.readouterr().out
    assert main(["generate", "--base", merged, *question]) == 0
    assert capsys.readouterr().out == unmerged
    assert "90" in unmerged


def test_train_writes_adapter_and_metrics_and_says_what_is_next(trained, capsys):
    out = trained / "out"
    assert sorted(f.name for f in (out / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "\n- examples: 60\n- sha256: " in card
    assert re.search(r"\n## Training\n\n- steps: 4\n- lr: 0\.005\n", card)
    assert re.search(r"\n- held-out valid_loss: \d\.\d+\n- held-out exact_match: ", card)
    assert str(trained) not in card
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if "loss" in record] == [1, 2, 3, 4]


@pytest.mark.slow
def test_train_in_full_and_resume(trained, capsys):
    data, out = str(trained / "mine.jsonl"), trained / "full"
    common = [
        "train",
        "--data",
        data,
        "--valid",
        data,
        "--out",
        str(out),
        "--full",
        "--steps",
        "2",
        "--checkpoint-every",
        "1",
    ]
    assert main(common) == 0
    assert main([*common, "--resume"]) == 0
    assert (out / "model" / "config.json").is_file()


@pytest.mark.slow
def test_all_linear_and_rslora_are_understood(trained, capsys):
    data, out = str(trained / "mine.jsonl"), trained / "all"
    command = [
        "train",
        "--data",
        data,
        "--out",
        str(out),
        "--target",
        "all-linear",
        "--rslora",
        "--steps",
        "1",
        "--pack",
        "--bf16",
    ]
    assert (
        main([*command, "--alpha", "3", "--dropout", "0.1", "--batch", "4", "--accumulate", "2"])
        == 0
    )
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"]
    assert config["lora_alpha"] == 3
    assert len(config["target_modules"]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "none.jsonl", "--out", "x"], "none.jsonl does not exist"),
        (
            ["generate", "--base", "nowhere", "Hi"],
            "nowhere is not a folder on this machine: a base is a folder with config.json",
        ),
        (["generate", "--adapter", "nowhere", "Hi"], "nowhere is not a folder"),
        (["generate", "--temperature", "-1", "Hi"], "temperature must be 0"),
        (
            ["generate", "--temperature", "1e-42", "Hi"],
            "temperature must be 0 (greedy) or a finite number of at least 1e-6, got 1e-42",
        ),
        (
            ["generate", "--seed", str(2**63), "Hi"],
            "seed must be a whole number of at most 32 bits",
        ),
        (["generate", "--device", "quantum", "Hi"], "device 'quantum' is not available"),
        (["generate", "--device", "meta", "Hi"], "device 'meta' is not available"),
        (
            ["demo", "--resume", "--out", "nowhere"],
            "nothing to resume: nowhere/checkpoint.safetensors does not exist: start without",
        ),
        (["demo", "--resume", "--out", "nowhere", "--base", "nowhere"], "nothing to resume"),
        (["demo", "--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["merge", "--adapter", "nowhere", "--out", "x"], "nowhere is not a folder"),
        (
            ["merge", "--adapter", "nowhere", "--out", "x", "--shard", "2TB"],
            "shard must be a size such as '2GB', or a number of bytes, got '2TB'",
        ),
        (["bench", "speed"], "no benchmark is named 'speed'; there are forward, train_step"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minilora {arguments[0]}: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_full_memory_is_one_line_too_and_a_bug_is_not(capsys, monkeypatch):
    def fail():
        raise RuntimeError(message)

    monkeypatch.setattr("minilora.bugs.release.describe_all", fail)
    for message in (
        "CUDA out of memory. Tried to allocate 2 GiB",
        "[enforce fail] can't allocate memory: 1 bytes",
    ):
        assert main(["zoo"]) == 2
        assert capsys.readouterr().err == f"minilora zoo: not enough memory: {message}\n"
    message = "shapes do not fit"
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["zoo"])


def test_a_typo_in_a_target_is_reported_with_what_could_be_meant(trained, capsys):
    data = str(trained / "mine.jsonl")
    assert main(["train", "--data", data, "--out", str(trained / "x"), "--target", "q_porj"]) == 2
    assert "did you mean 'q_proj'?" in capsys.readouterr().err
    assert not (trained / "x").exists()


MISTAKES = [
    ("demo --out file", "--out: expected a folder, got file, and file is a file"),
    (
        "train --data rows.jsonl --out file",
        "--out: expected a folder, got file, and file is a file",
    ),
    ("merge --adapter folder --out file", "--out: expected a folder, got file, and file is a file"),
    (
        "train --data rows.jsonl --out o --push naval --hub file",
        "--hub: expected a folder, got file",
    ),
    ("learn 1 --limit -1", "--limit: expected a positive number of seconds, got -1"),
    ("grade folder --limit nan", "--limit: expected a positive number of seconds, got nan"),
    ("generate ' '", "the question is empty"),
    ("generate --adapter file Hi", "file is a file: expected an adapter's folder, or its name"),
    ("analyze folder --text none", "none does not exist: expected a text file"),
    ("analyze folder --text letters", "letters cannot be read as UTF-8 text"),
    ("hub push naval file", "file is a file: expected an adapter's folder"),
    ("hub list --hub file", "file is a file: expected a hub's folder"),
    ("hub list --tenant 'a b'", "expected a tenant's name"),
    ("hub import folder", "folder is a folder: expected the file of an exported adapter"),
    ("jobs quota --max-jobs -1", "jobs: expected at least 0, or None, got -1"),
    ("jobs worker --until-idle --lease 0", "lease: expected a positive number of seconds"),
    ("jobs worker --until-idle --hub file", "file is a file: expected a hub's folder"),
    (
        "jobs worker --until-idle --memory inf",
        "--memory: expected a positive number of GB, got inf",
    ),
    ("train --task classify --data rows.jsonl --out file", "--out: expected a folder, got file"),
    ("jobs worker --until-idle --hours -1", "a job's seconds must be a positive number"),
    ("jobs list --jobs file", "--jobs: expected a folder, got file, and file is a file"),
    ("jobs list --jobs file/below", "--jobs: expected a folder, got file/below"),
    ("jobs adapt spec.toml --jobs file", "--jobs: expected a folder, got file"),
    ("jobs adapt spec.toml --feedback file", "--feedback: expected a folder, got file"),
    ("jobs adapt spec.toml --state file", "--state: expected a folder, got file"),
    ("serve keys list --state file", "--state: expected a folder, got file, and file is a file"),
    ("serve experiment list --state file", "--state: expected a folder, got file"),
    ("learn --list --folder file", "--folder: expected a folder, got file"),
    ("learn quiz --folder file", "--folder: expected a folder, got file"),
    ("learn 1 --watch --folder file", "--folder: expected a folder, got file"),
    ("book file", "DIR: expected a folder, got file, and file is a file"),
    ("combine nowhere --out file", "--out: expected a folder, got file, and file is a file"),
    ("chart memory --out folder/a.pdf", "a figure is saved as .png or .svg, got 'a.pdf'"),
    ("chart memory --out file/a.png", "--out: expected a folder, got file, and file is a file"),
    ("chart --all file", "--all: expected a folder, got file, and file is a file"),
    ("grade folder --csv folder", "--csv: expected a file, got folder, which is a folder"),
    ("grade folder --csv file/a.csv", "--csv: expected a folder, got file, and file is a file"),
    ("analyze nowhere --out a.pdf", "a figure is saved as .png or .svg, got 'a.pdf'"),
    ("plan gpt2 --chart file/a.png", "--chart: expected a folder, got file, and file is a file"),
    ("serve keys revoke 5f0c", "there is no key '5f0c'; none was added yet"),
    ("serve --port 0 --experiments none", "none does not exist: expected an experiments.toml"),
    ("serve --port 0 --latency -1", "a first token takes time: expected seconds, got -1"),
    ("serve --port -1", "port must be 0-65535; --port 0 takes any free"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_writes_nothing(
    words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "letters").write_bytes(b"\xc0\xff")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Status?", "output": "Hull."}\n' * 9)
    if words.startswith("analyze"):
        model = minilora.load_base()
        minilora.inject(model)
        minilora.save_adapter(model, tmp_path / "folder")
    (tmp_path / "folder").mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(shlex.split(words)) == 2
    told, said = capsys.readouterr()
    assert message in said
    assert "Errno" not in said
    assert told == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert " ".join(COMMANDS[name].example.split()) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_with_a_value_says_what_it_is_by_default(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    usage, _, rest = text.partition("\n\n")
    options = re.split(r"\n(?=  -)", rest.partition("options:\n")[2].partition("\n\n")[0])
    for option in options:
        takes_value = re.match(r"\s*(?:-\w, )?(--[\w-]+) [A-Z\[{]", option)
        optional = takes_value and re.search(rf"\[{takes_value[1]}\b", usage)
        assert not optional or "default" in option, option


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    assert "a lesson as a Jupyter notebook" in capsys.readouterr().out


def test_an_interrupted_training_says_how_to_go_on(trained, capsys, monkeypatch):
    from minilora.training import loop
    from minilora.training.history import History

    monkeypatch.setattr(loop, "train", lambda *args, **settings: History(interrupted=True))
    data, out = str(trained / "mine.jsonl"), str(trained / "y")
    assert main(["train", "--data", data, "--out", out]) == 130
    assert "--resume" in capsys.readouterr().out


@pytest.mark.slow
def test_a_console_without_utf8_does_not_stop_a_command():
    environment = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    import os

    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "minilora.commands.cli",
            "generate",
            "Status?",
            "--max-new-tokens",
            "4",
        ],
        capture_output=True,
        env={**os.environ, **environment},
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_train_in_four_bits_and_merge_onto_either_base(trained, capsys):
    """A QLoRA's adapter goes onto the float base, or onto a saved 4-bit one if asked to."""
    data, out = str(trained / "mine.jsonl"), trained / "qlora"
    assert (
        main(
            ["train", "--data", data, "--out", str(out), "--qlora", "--steps", "2", "--batch", "4"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert [
        line.split()[0]
        for line in printed.splitlines()[-8:-3]
        if line[:2] in ("MB", "fu", "Lo", "QL")
    ] == ["MB", "QLoRA"]
    adapter = str(out / "adapter")
    assert main(["merge", "--adapter", adapter, "--out", str(out / "onto-floats")]) == 0
    packed = str(trained / "packed")
    minilora.save_model(minilora.load_base(quantize="nf4"), packed)
    assert (
        main(["merge", "--base", packed, "--adapter", adapter, "--out", str(out / "refused")]) == 2
    )
    assert "is in four bits, where most of ΔW would be rounded away" in capsys.readouterr().err
    assert not (out / "refused").exists()
    command = [
        "merge",
        "--base",
        packed,
        "--adapter",
        adapter,
        "--out",
        str(out / "onto-codes"),
        "--onto",
        "dequantized",
    ]
    assert main(command) == 0
    assert not any(
        isinstance(m, minilora.NF4Linear) for m in minilora.load_base(out / "onto-codes").modules()
    )


def test_full_and_qlora_exclude_each_other(trained, capsys):
    data = str(trained / "mine.jsonl")
    assert main(["train", "--data", data, "--out", str(trained / "no"), "--full", "--qlora"]) == 2
    assert "give --full or --qlora, not both" in capsys.readouterr().err

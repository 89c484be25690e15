"""``minilora serve`` as people start it: ready soon, drained at the end; the docs' lines run."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

import minilora
from minilora.commands import cli, serve
from minilora.hub import Hub
from minilora.jobs import FeedbackStore

OPTIONS = ("--adapter", "mine=mine/adapter", "--feedback", "heard")
DOCS = Path(minilora.__file__).parents[1] / "docs" / "serving.md"


@contextmanager
def served(folder, *options):
    """(process, address, the lines that it printed when it was ready)."""
    command = [sys.executable, "-m", "minilora.commands.cli", "serve", "--port", "0", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        address = re.search(r"http://\S+", lines[0])
        assert address, lines + process.stdout.readlines()
        yield process, address[0], "".join(lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hub with an adapter of the shipped base."""
    folder = tmp_path_factory.mktemp("served")
    model = minilora.load_base()
    minilora.inject(model)
    Hub(folder / "hub").push("naval", minilora.save_adapter(model, folder / "mine" / "adapter"))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    began = time.monotonic()
    with served(folder, *OPTIONS) as (process, address, lines):
        yield process, address, lines, time.monotonic() - began


@pytest.mark.slow
def test_it_is_ready_soon_and_says_what_to_do_next(server):
    _, address, lines, seconds = server
    assert seconds < 60  # ten on a machine that is not shared; docs/serving.md has the figure
    assert "minilora-base, mine, naval" in lines
    assert "curl" in lines
    assert "OpenAI(" in lines
    assert httpx.get(f"{address}/ready").status_code == 200


@pytest.mark.slow
def test_the_lines_that_it_prints_work(server):
    *_, lines, _ = server
    command = re.search(r"curl .*", lines)[0]
    got = json.loads(
        subprocess.run(command, shell=True, capture_output=True, check=True, text=True).stdout
    )
    assert got["minilora"]["adapter"].startswith("naval@")


@pytest.mark.slow
def test_a_correction_lands_in_the_folder_that_adapt_reads(server, folder):
    _, address, *_ = server
    body = {"model": "naval", "max_tokens": 4, "messages": [{"role": "user", "content": "Hull?"}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
    told = {"request_id": answer["id"], "correction": "Hull 90%."}
    assert httpx.post(f"{address}/v1/feedback", json=told, timeout=60).json()["kept"]
    (row,) = FeedbackStore(folder / "heard").rows("quarantine")
    assert (row.request, row.correction) == ("Hull?", "Hull 90%.")
    assert row.adapter == Hub(folder / "hub").show("naval").manifest.content


@pytest.mark.slow
def test_sigterm_ends_what_runs_and_takes_nothing_new(folder):
    with served(folder) as (process, address, _):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
            stream = client.completions.create(
                model="minilora-base", prompt="Hull", max_tokens=400, seed=1, stream=True
            )
            next(stream)
            process.send_signal(signal.SIGTERM)
            chunks = list(stream)
            assert chunks[-1].choices[0].finish_reason in ("length", "stop")
            with pytest.raises(openai.APIError):
                client.completions.create(model="minilora-base", prompt="Hull", max_tokens=1)
        assert process.wait(timeout=30) == 0
        assert "stopped" in process.stdout.read()


def test_a_key_for_an_adapter_that_is_not_here_is_noted(folder, tmp_path):
    options = argparse.Namespace(**vars(cli.parser_of("serve").parse_args([])))
    options.hub, options.state = folder / "hub", tmp_path
    cli.main(["serve", "keys", "add", "acme", "--adapter", "navl", "--state", str(tmp_path)])
    service = serve.service_of(options)
    assert serve.unknown_rights(service) == [
        "note: the key of acme is for 'navl', which is not here; did you mean 'naval'?"
    ]
    shown = serve.ready_text(service, "127.0.0.1", 8000)
    assert "-H 'authorization: Bearer ml-…'" in shown
    assert 'api_key="ml-…"' in shown


BAD = [
    (["--adapter", "naval"], "expected NAME=FOLDER"),
    (["--adapter", "auto=mine/adapter"], "another name"),
    (["--adapter", "x=nowhere"], "nowhere"),
    (["--slots", "0"], "--slots: expected at least 1, got 0"),
    (["--answer-cache", "nan"], "--answer-cache: expected at least 0, got nan"),
    (["--answer-cache", "inf"], "--answer-cache: expected at least 0, got inf"),
    (["--grace", "-1"], "--grace: expected at least 0, got -1"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_are_one_line(folder, options, message, capsys, monkeypatch):
    from minilora.commands.cli import main

    monkeypatch.chdir(folder)
    assert main(["serve", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--state", "--jobs", "--feedback", "--hub"])
def test_a_file_in_a_folders_place_is_said_before_the_base_is_read(option, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["serve", "--base", "nowhere", option, str(tmp_path / "file")]) == 2
    assert re.search(rf"{option}: expected a .*folder, got", capsys.readouterr().err)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_mistyped_hub_is_not_served_without_it(tmp_path, monkeypatch, capsys):
    """./hub may come with the first push, and any other with the first job."""
    monkeypatch.chdir(tmp_path)
    first = {
        ("--hub", "hbu"): "--hub: there is no folder hbu: minilora hub push makes one",
        ("--hub", "hub"): "nowhere",
        ("--hub", "new", "--jobs", "jobs"): "nowhere",
    }
    for words, message in first.items():
        assert cli.main(["serve", "--port", "0", "--base", "nowhere", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX rights")
@pytest.mark.parametrize("state", ["closed", "closed/below"])
def test_a_closed_state_is_said_before_the_base_is_read(state, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("closed").mkdir(mode=0o555)
    as_root = os.geteuid() == 0
    if as_root:
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        assert cli.main(["serve", "--base", "nowhere", "--state", state]) == 2
    finally:
        if as_root:
            os.seteuid(0)
    assert "--state: closed cannot be written; choose another" in capsys.readouterr().err


def shell_blocks():
    """The commands of docs/serving.md, in order."""
    return re.findall(r"```bash\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
def test_the_lines_of_the_docs_run(folder, monkeypatch):
    """Each is executed against a server that was started as the docs say."""
    model = minilora.load_base()
    minilora.inject(model)
    minilora.save_adapter(model, folder / "adapters" / "other")
    options = ["--adapter", "mine=mine/adapter", "--root", "adapters"]
    root = str(DOCS.parents[1])
    with served(folder, *options) as (_, address, _):
        env = {**os.environ, "SERVER": address, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        outputs = []
        for block in shell_blocks():
            done = subprocess.run(
                ["bash", "-ec", block],
                env=env,
                cwd=root,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            assert '"error"' not in done.stdout
            outputs.append(done.stdout)
    models, chat, stream, completion, loaded, unloaded, operated, measured = outputs
    assert [card["id"] for card in json.loads(models)["data"]] == ["minilora-base", "mine", "naval"]
    assert json.loads(chat)["minilora"]["adapter"] == "mine"
    assert stream.rstrip().endswith("data: [DONE]")
    assert '"total_tokens"' in stream
    assert len(json.loads(completion)["choices"]) == 2
    assert loaded.startswith("Success")
    assert unloaded.startswith("Success")
    assert "minilora_tokens_total" in operated
    assert "tokens/s" in measured

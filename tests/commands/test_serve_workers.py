"""``minilora serve --workers``: real processes, one of which is killed while it works."""

import argparse
import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

import minilora
from minilora.commands.cli import main
from minilora.commands.serve import add_options
from minilora.commands.serve_workers import bound, listen, worker_arguments
from minilora.serving import AdapterBank
from tests.serving.adapters import make_adapter

ASKED = [f"Status of deck {n}?" for n in range(12)]


def test_a_worker_gets_the_same_options():
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = "--adapter a=x --adapter b=y --qlora --workers 3 --port 9 --host 0.0.0.0 --audit"
    options = parser.parse_args(words.split())
    again = parser.parse_args(worker_arguments(options)[1:])
    other = {name for name, value in vars(options).items() if vars(again)[name] != value}
    assert other == {"workers", "port", "host", "worker"}
    assert (again.worker, again.port, again.host) == (True, 0, "127.0.0.1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "-1"], "at least 1"),
        (["--service", "legal=http://127.0.0.1:9"], "at least 1, got 0"),
        (["--workers", "1", "--service", "legal"], "NAME,…=http"),
    ],
    ids=["none", "only a service", "no address"],
)
def test_what_makes_no_gateway_is_refused(words, message, capsys):
    assert main(["serve", *words]) == 2
    assert message in capsys.readouterr().err


def children(pid):
    """The processes that a process started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def gone(pids, seconds=20.0):
    """Whether all have ended in time; a zombie has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = subprocess.run(
            ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True
        )
        if all(state.startswith("Z") for state in states.stdout.split()):
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX processes")
def test_kill_9_of_a_worker_and_then_of_the_gateway(tmp_path):
    base = minilora.load_base()
    folders = {name: make_adapter(tmp_path / name, seed, std=0.1) for seed, name in enumerate("ab")}
    bank = AdapterBank(base)
    for name, folder in folders.items():
        bank.load(name, folder)
    messages = [[{"role": "user", "content": text}] for text in ASKED]
    rows = [("ab"[n % 2], each) for n, each in enumerate(messages)]
    expected = bank.generate(rows, max_new_tokens=16)

    adapters = [word for name in folders for word in ("--adapter", f"{name}={folders[name]}")]
    command = [sys.executable, "-m", "minilora", "serve", "--workers", "2", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    gateway = subprocess.Popen(
        [*command, *adapters], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        address = re.search(r"http://\S+", gateway.stdout.readline())[0]
        workers = children(gateway.pid)
        assert len(workers) == 2
        maps = Path(f"/proc/{gateway.pid}/maps")
        assert not maps.exists() or "libtorch" not in maps.read_text()  # it loads no model
        with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:

            def ask(row):
                name, asked = row
                settings = {"temperature": 0, "max_tokens": 16}
                answer = client.chat.completions.create(model=name, messages=asked, **settings)
                return answer.choices[0].message.content

            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                answers = [pool.submit(ask, row) for row in rows]
                time.sleep(0.2)
                os.kill(workers[0], signal.SIGKILL)
                assert [answer.result(120) for answer in answers] == expected
        until = time.monotonic() + 60  # it is back, another process
        while len(set(children(gateway.pid)) - {workers[0]}) < 2:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert httpx.get(f"{address}/health").status_code == 200
        now = children(gateway.pid)
        gateway.kill()
        gateway.wait()
        assert gone(now)  # nothing is left behind
    finally:
        gateway.kill()


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for more in ([], ["--workers", "2"]):
            assert main(["serve", "--port", port, "--base", "nowhere", *more]) == 2
            assert f"cannot listen on port {port} of 127.0.0.1" in capsys.readouterr().err
    assert main(["serve", "--port", "70000"]) == 2
    assert "cannot listen on port 70000" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["", "--workers 2"], ids=["alone", "gateway"])
def test_a_port_that_is_taken_is_said_before_the_server_is_imported(more):
    """Torch alone takes seconds."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", "--port", str(taken.getsockname()[1]), *more.split()]
        code = f"import sys; from minilora.commands.cli import main; main({words})"
        code += "; print(*{'torch', 'uvicorn', 'fastapi'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot listen on port" in done.stderr
    assert done.stdout == "\n"


def test_a_port_whose_server_is_still_loading_is_taken(capsys):
    with bound("127.0.0.1", 0) as loading:
        port = str(loading.getsockname()[1])
        assert main(["serve", "--port", port, "--base", "nowhere"]) == 2
        said = capsys.readouterr().err
        assert "another server runs there, or is loading: stop it, or --port 0" in said


def test_a_port_is_free_again_as_soon_as_its_server_has_ended():
    """Its connections, which it closed first, still wait for late packets (TIME_WAIT)."""
    with bound("127.0.0.1", 0) as place:
        host, port = place.getsockname()
        listen(place, 5)
        with pytest.raises(ValueError, match="another server runs there"):
            bound(host, port)
        with socket.create_connection((host, port)) as client:
            place.accept()[0].close()
            assert client.recv(1) == b""
    with bound(host, port) as again:
        with pytest.raises(ValueError, match="or is loading"):
            bound(host, port)
        listen(again, 5)

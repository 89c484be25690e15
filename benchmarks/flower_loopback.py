"""Federated rounds with Flower's processes on loopback, scored; its own privacy mod among them.

    .venv-flower/bin/python -m benchmarks.flower_loopback     (make test-flower makes that)

One superlink and a supernode for each client, as they would stand on several machines; the logs,
the deal and the scores are those of ``benchmarks/federated.py``, one seed. It needs a machine that
has time: where processes starve, Flower takes their heartbeats for lost and refuses their tokens.

``Machines`` is also what tests/scale/test_flower.py starts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minilora import data, load_adapter, load_base
from minilora.files import write_text
from minilora.scale import split_among
from minilora.scale.privacy import flower_epsilon

from .common import Row, kept_rows, options, save
from .federated import CLIPPING, DELTA, HELD, LOGS, LR, LR_B, SPLITS, STEPS, scores

RUNS = (  # clients, how, lr, LocalDpMod's ε (0: without)
    (2, "stack", LR, 0.0),
    (8, "stack", LR, 0.0),
    (2, "frozen_a", LR_B, 0.0),
    (2, "frozen_a", LR_B, 500.0),
    (2, "frozen_a", LR_B, 5.0),
)
ROUNDS = 3
PATIENCE = 1800.0  # seconds for a run


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


class Machines:
    """A link and its nodes as processes; each in a session of its own, so that it dies whole."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, dict[str, subprocess.Popen[bytes]]()
        home = folder / "home"
        home.mkdir()
        self.port = free_port()
        programs = Path(sys.executable).parent
        own = {"FLWR_HOME": str(home), "HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0",
               "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1",
               "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
               "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
        self.environment = {**os.environ, **own}
        address = f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{address}'
        write_text(home / "config.toml", text)

    def start(self, name: str, *words: str) -> None:
        """A process of Flower, whose output goes to a file of its name."""
        program = str(Path(sys.executable).parent / words[0])
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [program, *words[1:]], stdout=log, stderr=log, env=self.environment,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def link(self) -> None:
        """The server's process."""
        self.start("link", "flower-superlink", "--insecure", "--port", str(self.port),
                   "--disable-runtime-dependency-installation")  # fmt: skip
        self.wait_for(self.answers)

    def answers(self) -> bool:
        """Whether the link takes connections."""
        with socket.socket() as own:
            return own.connect_ex(("127.0.0.1", self.port)) == 0

    def node(self, name: str, file: Path, r: int | None = None, port: int | None = None) -> None:
        """A client's process, beside its file of logs; ``port``: of what stands before the link."""
        config = f'data="{file}"' + ("" if r is None else f" r={r}")
        self.start(name, "flower-supernode", "--insecure", "--superlink",
                   f"127.0.0.1:{port or self.port}", "--port", str(free_port()),
                   "--node-config", config)  # fmt: skip

    def nodes_are_there(self, count: int) -> bool:
        """Whether so many nodes have joined, by the link's own log."""
        return self.log("link").count("Activated node_id") >= count

    def flwr(self, *words: str) -> str:
        """What Flower's command prints."""
        program = str(Path(sys.executable).parent / "flwr")
        done = subprocess.run([program, *words], env=self.environment, cwd=self.folder,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        return done.stdout + done.stderr

    def kill(self, name: str) -> None:
        """End a process and all that it started, at once."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, what: Callable[[], bool], seconds: float = 900) -> None:
        """Look again and again; the logs' ends where it takes too long."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                logs = {name: self.log(name)[-3000:] for name in self.processes}
                raise AssertionError(f"waited {seconds} s; {logs}")
            time.sleep(0.5)


@contextmanager
def machines_in(folder: Path) -> Iterator[Machines]:
    """Machines that end with the block."""
    machines = Machines(folder)
    try:
        yield machines
    finally:
        for name in list(machines.processes):
            machines.kill(name)


def write_logs(folder: Path, dealt: dict[str, Any]) -> list[Path]:
    """Each client's own file of logs."""
    files = []
    for name, examples in dealt.items():
        lines = [json.dumps(asdict(example)) for example in examples]
        files.append(write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n"))
    return files


def run(clients: int, how: str, lr: float, asked: float, folder: Path) -> Row:
    """One run by Flower, and what its adapter scores."""
    from minilora.scale.flower import write_app

    task, steps = data.naval_log(LOGS, HELD, seed=0), STEPS[clients]
    dealt = split_among(task.train, clients, concentration=SPLITS["taste"], seed=0)
    out = folder / "out"
    config: dict[str, Any] = {
        "how": how, "rounds": ROUNDS, "steps": steps, "lr": lr, "batch-size": 8, "r": 4,
        "targets": "all-linear", "fewest": clients, "out": str(out), "timeout": int(PATIENCE),
    }  # fmt: skip
    if asked:
        config |= {"clipping-norm": CLIPPING, "flower-epsilon": asked, "flower-delta": DELTA}
    begun = time.monotonic()
    with machines_in(folder) as machines:
        machines.link()
        for number, file in enumerate(write_logs(folder, dealt)):
            machines.node(f"node {number}", file)
        machines.wait_for(lambda: machines.nodes_are_there(clients))
        print(machines.flwr("run", str(write_app(folder / "app", config)), "here"), flush=True)
        machines.wait_for((out / "adapter" / "adapter_config.json").exists, PATIENCE)
    row = {"clients": clients, "how": how, "lr": lr, "rounds": ROUNDS, "steps": steps}
    row |= {"clipping_norm": CLIPPING if asked else 0.0, "flower_epsilon": asked, "epsilon": None}
    if asked:
        row["epsilon"] = flower_epsilon(CLIPPING, 2 * CLIPPING, asked, DELTA, ROUNDS)
    model = load_adapter(load_base(), out / "adapter").eval()
    return row | scores(model, task.valid) | {"wall": time.monotonic() - begun}


def main() -> None:
    """Every run that is not kept yet."""
    settings = options(__doc__)
    rows = kept_rows("flower_loopback", settings)
    names = ("clients", "how", "lr", "flower_epsilon")
    for each in RUNS:
        if each not in [tuple(row[name] for name in names) for row in rows]:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(run(*each, Path(folder)))
            print(save("flower_loopback", rows, settings, "flwr"), rows[-1], flush=True)


if __name__ == "__main__":
    main()

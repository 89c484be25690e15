"""Processes as machines: ``torchrun`` on loopback, always with a timeout, always ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@dataclass
class Ended:
    """A run that is over."""

    code: int
    out: str
    err: str

    def sentences(self):
        """The errors that minilora printed, a line a rank."""
        return [line for line in self.err.splitlines() if line.startswith("minilora train: ")]


@contextlib.contextmanager
def started(words, folder, **variables):
    """A process on one thread, which writes to two files; at the end it and its children end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | variables
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        process = subprocess.Popen(
            [str(word) for word in words], stdout=out, stderr=err, env=environment
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)  # torchrun ends its ranks, at last with -9
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def ended(process, folder, timeout):
    """Wait until it is over."""
    code = process.wait(timeout)
    return Ended(code, (folder / "out").read_text(), (folder / "err").read_text())


def torchrun(world, *words, folder, timeout=400, options=(), **variables):
    """A whole run of ``torchrun`` with so many ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", world, *options, *words]
    with started(command, folder, **variables) as process:
        return ended(process, folder, timeout)


def children(process):
    """The ranks that a torchrun has started, by their rank."""
    ranks = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            about = Path("/proc", pid)
            parent = (about / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process.pid:
                environment = (about / "environ").read_bytes().split(b"\0")
                pairs = dict(each.partition(b"=")[::2] for each in environment)
                ranks[int(pairs[b"RANK"])] = int(pid)
    return ranks


def wait_until(done, timeout=400.0):
    """Look again and again, for so many seconds at most."""
    until = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)

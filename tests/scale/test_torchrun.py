"""``torchrun -m minilora train``: two processes are one to the bit; nobody waits for the killed.

Real processes on loopback, and two network namespaces as hosts where they are permitted. What takes
minutes is marked long (make test-scale runs it).
"""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file

from minilora.commands.cli import main
from minilora.training.data import naval_log

from .launch import TORCHRUN, children, ended, started, torchrun, wait_until

pytestmark = pytest.mark.scale
TRAIN = ("-m", "minilora", "train")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Examples in a file."""
    file = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [vars(example) for example in naval_log(30, 1).train]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def options(data, out, *more):
    """A short run's."""
    short = ["--steps=5", "--batch=8", "--accumulate=2", "--validate-every=3", "--dropout=0.2"]
    return ["--data", str(data), "--out", str(out), *short, *more]


def metrics(out):
    """The lines of metrics.jsonl, without their times."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def adapter(out):
    """The adapter's bytes."""
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def farthest(one, other):
    """The largest difference of two adapters, beside the largest value."""
    pairs = [load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, other)]
    largest = max(value.abs().max() for value in pairs[1].values())
    return max((pairs[0][name] - pairs[1][name]).abs().max() for name in pairs[1]) / largest


def test_two_processes_are_one_to_the_bit(data, tmp_path, capsys):
    """With dropout, which every part draws from a seed of its own; and only the first speaks."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", *options(data, one)]) == 0
    alone = capsys.readouterr().out
    run = torchrun(2, *TRAIN, *options(data, two), folder=tmp_path / "log")
    assert run.code == 0, run.err[-2000:]
    assert adapter(one) == adapter(two)
    assert metrics(one) == metrics(two)
    assert run.out.replace(str(two), str(one)) == alone
    assert "2 ranks: 2 parts of 4 examples a step; 86,124 bytes a step travel" in run.err
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


def test_other_commands_are_not_for_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["generate", "Status?"]) == 2
    assert "of the commands only train is for torchrun" in capsys.readouterr().err


def test_a_cluster_s_own_world_size_is_not_torchrun_s(monkeypatch, capsys):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for size in ("2", "", "two"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert main(["plan", "--list"]) == 0, capsys.readouterr().err


@pytest.mark.long
def test_four_processes_are_nearly_one(data, tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    words = ["--accumulate=4"]
    assert main(["train", *options(data, one, *words)]) == 0
    run = torchrun(4, *TRAIN, *options(data, four, *words), folder=tmp_path / "log")
    assert run.code == 0, run.err[-2000:]
    assert farthest(four, one) < 1e-3


def killed_on_the_way(data, tmp_path, rank, number, *more, torchruns=()):
    """A run of two whose rank, or torchrun itself, gets a signal after its fifth step."""
    out, log = tmp_path / "out", tmp_path / "log"
    log.mkdir()
    endless = options(data, out, "--steps=4000", "--checkpoint-every=1", "--validate-every=0")
    endless += ["--dropout=0"]  # whose masks are those of parts, and three ranks make four parts
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", *torchruns, *TRAIN, *endless, *more]
    file = out / "metrics.jsonl"
    with started(command, log) as process:
        wait_until(lambda: file.is_file() and len(file.read_bytes().splitlines()) > 5)
        ranks = children(process)
        os.kill(process.pid if rank is None else ranks[rank], number)
        began = time.monotonic()
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in ranks.values()))
        seconds = time.monotonic() - began
        return ended(process, log, 60), seconds


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_is_killed_the_others_end_with_a_sentence_and_the_run_resumes(
    data, tmp_path, rank
):
    """With one process and with two to the same bits, with three nearly: it has other parts."""
    run, seconds = killed_on_the_way(data, tmp_path, rank, signal.SIGKILL)
    assert run.code != 0
    [sentence] = run.sentences()
    assert f"rank {1 - rank} of 2: another rank ended or does not answer" in sentence
    assert ("continue with resume=True" in sentence) == (rank == 1)
    assert seconds < 25  # on a crowded machine; torchrun would end it by force after 30
    out = tmp_path / "out"
    done = len(metrics(out))
    saved = (out / "checkpoint.safetensors").read_bytes()
    words = [f"--steps={done + 3}", "--validate-every=0", "--dropout=0"]
    for world in (1, 2, 3):
        (out / "checkpoint.safetensors").write_bytes(saved)
        again = options(data, out, *words, "--resume")
        log = tmp_path / f"log{world}"
        run = torchrun(world, *TRAIN, *again, folder=log)
        assert run.code == 0, run.err[-2000:]
        assert len(metrics(out)) == done + 3
        shutil.copytree(out, tmp_path / f"with{world}")
    assert adapter(tmp_path / "with1") == adapter(tmp_path / "with2")
    assert farthest(tmp_path / "with3", tmp_path / "with1") < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_that_is_told_to_stop_stops_all_after_one_step(data, tmp_path, number):
    run, _ = killed_on_the_way(data, tmp_path, None, number)
    assert run.sentences() == []
    steps = len(metrics(tmp_path / "out"))
    assert f"interrupted after step {steps}" in run.err
    assert f"Stopped at step {steps}. Continue with the same command and --resume." in run.out


TWICE = """
import sys
from minilora.scale import join
for number in range(4):
    try:
        with join() as ranks:
            assert ranks.each(4, lambda n: n + number) == [n + number for n in range(4)]
            if number == 2:
                with join():
                    pass
            if number < 3:
                ranks.check_same({"rank": ranks.rank, "number": number})
    except ValueError as error:
        sys.stdout.write(f"{number} {str(error)[:30]}\\n")
"""


@pytest.mark.slow
def test_after_an_error_the_same_processes_join_again(tmp_path):
    (tmp_path / "twice.py").write_text(TWICE)
    run = torchrun(2, tmp_path / "twice.py", folder=tmp_path / "log")
    assert run.code == 0, run.err[-2000:]
    lines = sorted(run.out.splitlines())
    differs = "rank 1 differs from rank 0 in:"
    joined = "this process has joined alread"
    assert lines == [f"{n} {differs}" for n in (0, 0, 1, 1)] + [f"2 {joined}"] * 2


@pytest.mark.long
def test_torchrun_starts_a_killed_run_again_from_its_checkpoint(data, tmp_path):
    """``--max-restarts``: nobody types --resume; the bits are those of a run that nobody killed."""
    out, log = tmp_path / "out", tmp_path / "log"
    log.mkdir()
    words = ["--steps=60", "--checkpoint-every=1", "--validate-every=0"]
    restarts = ["--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    file = out / "metrics.jsonl"
    with started([*TORCHRUN, *restarts, *TRAIN, *options(data, out, *words)], log) as process:
        wait_until(lambda: file.is_file() and len(file.read_bytes().splitlines()) > 5)
        os.kill(children(process)[1], signal.SIGKILL)
        run = ended(process, log, 400)
    assert run.code == 0, run.err[-2000:]
    assert main(["train", *options(data, tmp_path / "alone", *words)]) == 0
    assert adapter(out) == adapter(tmp_path / "alone")


HOSTS = """
set -e
mount -t tmpfs tmpfs /run && mkdir -p /run/netns
ip netns add a && ip netns add b
ip link add va netns a type veth peer name vb netns b
for host in a:va:1 b:vb:2; do
  IFS=: read name link number <<< "$host"
  ip -n $name addr add 10.9.0.$number/24 dev $link
  ip -n $name link set $link up && ip -n $name link set lo up
done
"""


def namespaces():
    """Why there are no network namespaces here; empty where there are."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "unshare or ip is not installed"
    tried = subprocess.run(["unshare", "-rmn", "bash", "-c", HOSTS], capture_output=True, text=True)
    return tried.stderr.strip()[-80:] if tried.returncode else ""


@pytest.mark.long
def test_two_hosts_with_a_wire_between_them(data, tmp_path):
    """What the kernel counts on the wire is what the note says, and TCP's own: a few percent."""
    if reason := namespaces():
        pytest.skip(f"network namespaces are not permitted: {reason}")
    steps, quiet = 40, ["--validate-every=0"]
    for name, more in (("short", ["--steps=10"]), ("long", [f"--steps={10 + steps}"])):
        lines = [HOSTS]
        for rank, (host, link) in enumerate([("a", "va"), ("b", "vb")]):
            words = options(data, tmp_path / f"{name}_{host}", *quiet, *more)
            where = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            where += ["--master-addr=10.9.0.1", "--master-port=29517"]
            command = " ".join([*TORCHRUN, *where, *TRAIN, *words])
            log = tmp_path / f"{name}_{host}.log"
            environment = f"GLOO_SOCKET_IFNAME={link}"
            lines.append(f"{environment} ip netns exec {host} {command} > {log} 2>&1 &")
        counted = "ip netns exec b cat /proc/net/dev"
        lines.append(f"wait -n && wait -n; code=$?; {counted} > {tmp_path / name}; exit $code")
        log = tmp_path / f"log_{name}"
        log.mkdir()
        with started(["unshare", "-rmn", "bash", "-c", "\n".join(lines)], log) as process:
            run = ended(process, log, 400)
        said = [(tmp_path / f"{name}_{host}.log").read_text()[-1500:] for host in "ab"]
        assert run.code == 0, said
    sent = [int((tmp_path / n).read_text().split("vb:")[1].split()[8]) for n in ("short", "long")]
    step = (sent[1] - sent[0]) / steps
    assert 86_124 < step < 1.1 * 86_124
    print(f"\n{step:,.0f} bytes a step on the wire")
    assert not (tmp_path / "long_b").exists()  # the second host writes nothing
    alone = tmp_path / "alone"
    assert main(["train", *options(data, alone, *quiet, *more)]) == 0
    assert adapter(alone) == adapter(tmp_path / "long_a")

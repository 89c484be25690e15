"""``minilora jobs run | submit | list | show | watch | cancel | pause | resume | worker``.

A job lives in its folder, not in the terminal: ``run`` goes on when the terminal closes, ``watch``
shows any job from anywhere, and a job whose process was killed goes on with the next ``run`` or
``worker``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..text import columns, time_text
from .jobs_adapt import adapt, add_adapt_options
from .options import check_folder

EPILOG = """examples:
  minilora jobs run spec.toml          submit, and work on it here; again after a kill: it goes on
  minilora jobs submit spec.toml       leave it to a worker
  minilora jobs worker                 work on whatever waits; several may run
  minilora jobs watch ftjob-1f…        progress, loss, time left
  minilora jobs list                   minilora jobs show ftjob-1f…
  minilora jobs cancel ftjob-1f…       pause, resume: the same way
  minilora jobs adapt spec.toml --add corrections.jsonl    learn from users, through the gate
a spec.toml:
  name = "naval"                       its name in the hub
  data = { train = "naval.jsonl" }     as in minilora train --data
  [train]
  steps = 200"""
PURPOSES = {
    "run": "submit a spec.toml and work on it here",
    "submit": "put a spec.toml into the queue",
    "list": "all jobs, the newest first",
    "show": "what a job is, what it made, what happened",
    "watch": "follow a job until it ends",
    "cancel": "end a job that waits or runs",
    "pause": "stop a job; resume goes on from its checkpoint",
    "resume": "let a paused job go on",
    "worker": "work on the queue until Ctrl-C",
    "quota": "how much a tenant may have",
    "adapt": "train on what users corrected; promote what the gate lets in",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options and sub-commands of ``minilora jobs``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="run | submit | list | …", required=True)
    made = {
        name: actions.add_parser(name, help=purpose, description=purpose)
        for name, purpose in PURPOSES.items()
    }
    for action in made.values():
        action.add_argument(
            "--jobs", type=Path, default=Path("jobs"), help="the queue's folder (default: jobs)"
        )
        action.add_argument("--tenant", default="default", help="whose jobs (default: default)")
    add_adapt_options(made["adapt"])
    for name in ("run", "submit"):
        made[name].add_argument("spec", type=Path, help="spec.toml")
    for name in ("show", "watch", "cancel", "pause", "resume"):
        made[name].add_argument("id", help="as list shows it")
    for name in ("run", "submit", "worker"):
        add = made[name].add_argument
        add(
            "--memory", type=float, metavar="GB", help="what a job may hold (default: all there is)"
        )
        add("--hours", type=float, help="how long a job's steps may take (default: any time)")
    for name in ("run", "worker"):
        add = made[name].add_argument
        add("--hub", type=Path, default=Path("hub"), help="where adapters go (default: hub)")
        add("--lease", type=float, default=30.0, help="seconds (default: %(default)s)")
    made["worker"].add_argument("--until-idle", action="store_true", help="end when nothing waits")
    for name, kind in {"max-jobs": int, "seconds": float, "bytes": int}.items():
        about = "(default: as before, at first any; without any option: show what is allowed)"
        made["quota"].add_argument(f"--{name}", type=kind, help=about)
    made["quota"].add_argument("--lift", action="store_true", help="take every limit away")


def run(options: argparse.Namespace) -> int:
    """``minilora jobs``."""
    from ..jobs import Queue

    check_folder(options.jobs, "--jobs")
    if hasattr(options, "hub"):
        from ..hub import Hub

        Hub(options.hub)  # which a file in its place cannot be
    lease = {"lease": options.lease} if hasattr(options, "lease") else {}
    try:
        return ACTIONS[options.action](Queue(options.jobs, **lease), options) or 0
    except KeyError as error:
        raise ValueError(f"{error.args[0]} in {options.jobs}: minilora jobs list") from None


def submitted(queue: Any, options: argparse.Namespace) -> Any:
    """The job of a spec, which is checked whole before."""
    from ..jobs.preflight import check_spec
    from ..jobs.spec import read_spec

    spec = read_spec(options.spec)
    check_spec(spec, limits_of(options))
    return queue.submit(spec.as_dict(), tenant=options.tenant)


def limits_of(options: argparse.Namespace) -> Any:
    """What one job may use."""
    from ..jobs.forecast import Limits

    if options.memory is not None and not 0 < options.memory < math.inf:
        raise ValueError(f"--memory: expected a positive number of GB, got {options.memory}")
    memory = None if options.memory is None else int(options.memory * 1e9)
    return Limits(memory, None if options.hours is None else options.hours * 3600)


def submit(queue: Any, options: argparse.Namespace) -> None:
    """``minilora jobs submit``."""
    job = submitted(queue, options)
    print(f"{job.id} {job.status}. A worker does it: minilora jobs worker --jobs {options.jobs}")


def run_here(queue: Any, options: argparse.Namespace) -> int:
    """``minilora jobs run``: a worker for one job, and its news on the terminal."""
    job = submitted(queue, options)
    over = threading.Event()
    news = threading.Thread(target=follow, args=(queue, job.id, over.is_set), daemon=True)
    news.start()
    worker_of(queue, options).run(job.id)
    over.set()
    news.join()
    job = queue.job(job.id)
    if job.status == "succeeded":
        version = job.result["version"]
        say(f'Next: minilora generate --adapter {version} --hub {options.hub} "your question"')
    elif job.is_open:
        say(f"{job.id} is {job.status}; the same command goes on with it")
        return 130
    return 0 if job.status == "succeeded" else 1


def worker_of(queue: Any, options: argparse.Namespace) -> Any:
    """A worker that outlives the terminal, and gives its job back when told to end."""
    from ..jobs.worker import Worker

    worker = Worker(queue, options.hub, limits=limits_of(options))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
    return worker


def work(queue: Any, options: argparse.Namespace) -> None:
    """``minilora jobs worker``."""
    worker = worker_of(queue, options)
    worker.tell_of = tell_of
    say(f"{worker.name} works on {options.jobs}; Ctrl-C gives its job back")
    claims = worker.run(until_idle=options.until_idle)
    say(f"{worker.name} ends after {claims} claims")


def tell_of(job: Any) -> None:
    """A worker's line: a job that it takes or leaves."""
    made = job.result.get("version", "") if job.status == "succeeded" else job.error
    at = f"from {job.step} on" if job.status == "running" else job.status
    now = time.strftime("%H:%M:%S")
    say(f"{now}  {job.id} {job.name} of {job.tenant}: {at}{f': {made}' if made else ''}")


def watch(queue: Any, options: argparse.Namespace) -> int:
    """``minilora jobs watch``."""
    queue.job(options.id, options.tenant)
    follow(queue, options.id, lambda: False)
    return 0 if queue.job(options.id).status == "succeeded" else 1


def follow(queue: Any, id: str, is_over: Callable[[], bool], pause: float = 1.0) -> None:
    """Print what happens to a job, until it ends or ``is_over()``."""
    seen, last = 0, ""
    while True:
        ending = is_over() or not queue.job(id).is_open
        for event in queue.events(id, seen):
            seen = event.number
            say(f"{time.strftime('%H:%M:%S', time.localtime(event.at))}  {event.message}")
        if ending:
            return
        if (line := progress_of(queue.job(id))) != last:
            say(f"          {line}")
            last = line
        time.sleep(pause)


def progress_of(job: Any) -> str:
    """Step, loss and time left of a job that trains; else its step."""
    at = job.progress
    if job.status != "running" or job.step != "train" or "step" not in at:
        return f"{job.status}: {job.step}" if job.is_open else job.status
    return f"step {at['step']}/{at['steps']}  loss {at['loss']:.3f}  {time_text(at['left'])} left"


def list_all(queue: Any, options: argparse.Namespace) -> None:
    """``minilora jobs list``."""
    rows = [("id", "name", "state", "result")]
    for job in queue.jobs(options.tenant):
        made = job.result.get("version", "") or job.error[:60]
        rows.append((job.id, job.name, progress_of(job), made))
    print(
        "\n".join(columns(rows))
        if len(rows) > 1
        else f"no job of {options.tenant} in {options.jobs}"
    )
    others = Counter(job.tenant for job in queue.jobs() if job.tenant != options.tenant)
    if others:
        told = ", ".join(f"{tenant} ({count})" for tenant, count in sorted(others.items()))
        print(f"jobs of other tenants: {told}; see --tenant")


def show(queue: Any, options: argparse.Namespace) -> None:
    """``minilora jobs show``."""
    from ..files import json_text

    job = queue.job(options.id, options.tenant)
    print(f"{job.id}: {progress_of(job)}{'; ' * bool(job.error)}{job.error}")
    print(f"spec {job.spec}")
    print(json_text(job.result), end="")
    follow(queue, job.id, lambda: True)


def change(queue: Any, options: argparse.Namespace) -> None:
    """``minilora jobs cancel | pause | resume``."""
    job = getattr(queue, options.action)(options.id, options.tenant)
    later = f"; its worker will {job.wish} it at its next look" if job.wish else ""
    print(f"{job.id} is {job.status}{later}")


def set_quota(queue: Any, options: argparse.Namespace) -> None:
    """``minilora jobs quota``."""
    asked = {"jobs": options.max_jobs, "seconds": options.seconds, "bytes": options.bytes}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and options.lift:
        raise ValueError("--lift takes every limit away: leave the limits out")
    if options.lift:
        queue.set_quota(options.tenant)
    elif given:
        queue.change_quota(options.tenant, **given)
    limits = queue.quota(options.tenant)
    said = ", ".join(f"{value:,} {name}" for name, value in limits.items() if value is not None)
    print(f"{options.tenant} may have {said or 'any number of everything'}")


def say(line: str) -> None:
    """A line on the terminal, if it is still there."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True, file=sys.stdout)


ACTIONS: dict[str, Callable[[Any, argparse.Namespace], int | None]] = {
    "run": run_here,
    "submit": submit,
    "list": list_all,
    "show": show,
    "watch": watch,
    "cancel": change,
    "pause": change,
    "resume": change,
    "worker": work,
    "quota": set_quota,
    "adapt": adapt,
}

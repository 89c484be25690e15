"""``minilora serve``: a base and its adapters behind the OpenAI API, on this machine.

On loopback, without keys until the first is added, it asks nobody who they are. It stops on Ctrl-C
or SIGTERM: no new requests, the running ones end (at most ``--grace`` seconds), then it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import time
from pathlib import Path
from typing import Any

from ..text import did_you_mean
from .hub_names import HUB, add_hub_option
from .options import add_base_option, add_device_option, check_device, check_out
from .serve_experiment import add_experiment, run_experiment
from .serve_keys import add_keys, add_state_option, run_keys, warning_of
from .serve_workers import (
    add_worker_options,
    bound,
    check_gateway,
    end_with_the_gateway,
    listen,
    run_gateway,
)

EPILOG = """examples:
  minilora serve                                     the shipped base and the adapters of ./hub
  minilora serve --adapter naval=mine/adapter        one more, from a folder
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "naval", "messages": [{"role": "user", "content": "Status?"}]}'"""


LEAST = {"slots": 1, "max_rank": 1, "memory": 1, "grace": 0, "answer_cache": 0}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora serve``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{parser.epilog}\n{EPILOG}"
    add = parser.add_argument
    add_base_option(parser)
    add("--name", help="what the base is called (default: its folder, or minilora-base)")
    each = "an adapter and its folder, or a name of the hub; may be repeated"
    add("--adapter", action="append", default=[], metavar="NAME=FOLDER", help=each)
    add_hub_option(parser)
    add("--root", type=Path, help="folder from which /v1/load_lora_adapter may load")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="0 for any free one (default: %(default)s)")
    add("--slots", type=int, default=64, help="requests at once (default: %(default)s)")
    add("--max-rank", type=int, default=16, help="of an adapter (default: %(default)s)")
    add("--memory", type=int, default=1024, help="MB of adapters (default: %(default)s)")
    add("--qlora", action="store_true", help="the base in four bits")
    add("--grace", type=int, default=30, help="seconds to end in (default: %(default)s)")
    add_device_option(parser)
    add_state_option(parser)
    orders = "take orders by the fine-tuning API into this queue; minilora jobs worker does them"
    add("--jobs", type=Path, metavar="FOLDER", help=orders)
    learn = "keep answers there, and take corrections of them: minilora jobs adapt learns from it"
    add("--feedback", type=Path, metavar="FOLDER", help=learn)
    add("--audit", action="store_true", help="log who asked which adapter, without texts")
    add("--audit-texts", action="store_true", help="with questions and answers")
    about = "MB of greedy answers kept for each tenant (default: %(default)s, none)"
    add("--answer-cache", type=float, default=0, metavar="MB", help=about)
    about = "which adapters share a name's users: experiments.toml (docs/traffic.md)"
    add("--experiments", type=Path, metavar="FILE", help=about)
    late = "a first token after more seconds counts as a failure of its adapter"
    add("--latency", type=float, metavar="SECONDS", help=late)
    add_worker_options(parser)
    actions = parser.add_subparsers(dest="action", metavar="keys | experiment")
    add_keys(actions)
    add_experiment(actions)


def run(options: argparse.Namespace) -> int:
    """``minilora serve``. Raises ``ValueError`` without the extra."""
    if options.action == "keys":
        return run_keys(options)
    if options.action == "experiment":
        return run_experiment(options)
    check_options(options)
    if options.worker:
        end_with_the_gateway()  # also while it loads
    place = bound(options.host, options.port)  # first: what follows takes seconds to import
    try:
        import uvicorn

        if options.workers or options.service:
            return run_gateway(options, place)
        from ..serving.app import create_app
        from ..serving.slow_clients import ImpatientProtocol
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'minilora[serve]'") from error

    service = service_of(options)
    config = uvicorn.Config(
        create_app(service, routers=routers_of(options, service)),
        log_level="warning",
        access_log=False,
        http=ImpatientProtocol,
        timeout_graceful_shutdown=options.grace,
    )

    class Server(uvicorn.Server):
        """Says when it is ready, and when it stops."""

        async def startup(self, sockets: Any = None) -> None:
            """Listen, then say so."""
            listen(place, self.config.backlog)
            await super().startup(sockets)
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                print(ready_text(service, options.host, port), flush=True)
                for note in unknown_rights(service):
                    print(note, flush=True)
                if warning := warning_of(options.host, options.state):
                    print(warning, flush=True)

        def handle_exit(self, sig: int, frame: Any) -> None:
            """The first signal drains, the second ends at once."""
            super().handle_exit(sig, frame)  # first: what follows could fail
            if not service.draining:
                service.draining = True
                say("stopping: requests in progress end first")

    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has drained
    Server(config).run([place])
    say("stopped")
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raise ``ValueError``, before a base is loaded, for numbers and folders that cannot serve."""
    for name, least in LEAST.items():
        if not least <= getattr(options, name) < math.inf:
            option, given = name.replace("_", "-"), getattr(options, name)
            raise ValueError(f"--{option}: expected at least {least}, got {given}")
    check_gateway(options)
    if options.hub.exists() and not options.hub.is_dir():
        raise ValueError(f"--hub: expected a hub's folder, got the file {options.hub}")
    may_be_missing = options.hub == HUB or options.jobs is not None  # a job's adapter makes it
    if not options.hub.exists() and not may_be_missing:
        raise ValueError(f"--hub: there is no folder {options.hub}: minilora hub push makes one")
    for name in ("state", "jobs", "feedback"):
        if (folder := getattr(options, name)) is not None:
            check_out(folder, f"--{name}")


def say(text: str) -> None:
    """Print; the gateway that read a worker's lines may be gone, and a worker ends all the same."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def routers_of(options: argparse.Namespace, service: Any) -> list[Any]:
    """The endpoints of other parts: the fine-tuning API, where a queue was named."""
    if options.jobs is None:
        return []
    from ..jobs.api import fine_tuning_router
    from ..jobs.queue import Queue

    base = {"four_bits": options.qlora, "device": options.device}
    base |= {"folder": str(Path(options.base).absolute())} if options.base else {}
    return [fine_tuning_router(service, Queue(options.jobs), base=base)]


def service_of(options: argparse.Namespace) -> Any:
    """What the options ask for, loaded and checked."""
    from ..hub import Hub
    from ..model.pretrained import load_base
    from ..serving import AdapterBank, Engine, Service
    from ..serving.answer_cache import AnswerCache
    from ..serving.assignment import read_experiments
    from ..serving.audit import Audit
    from ..serving.experiments import Experiments
    from ..serving.failover import Failover, Limits
    from ..serving.tenants import Tenants
    from ..serving.traffic import check_arms
    from .hub_names import adapter_folder

    quantize, device = "nf4" if options.qlora else None, check_device(options.device)
    limits = Limits(budget=options.latency)
    if options.experiments is not None:
        read_experiments(options.experiments)  # a wrong file is said before the base is read
    base = load_base(options.base, device=device, quantize=quantize)
    bank = AdapterBank(base, options.max_rank, memory=options.memory * 1_000_000)
    name = options.name or (Path(options.base).name if options.base else "minilora-base")
    for given in options.adapter:
        label, found, folder = given.partition("=")
        if not found or label in (name, "auto"):
            raise ValueError(f"--adapter: expected NAME=FOLDER, another name, got {given!r}")
        bank.load(label, adapter_folder(folder, options.hub), any_base=options.qlora)
    hub = Hub(options.hub) if options.hub.is_dir() or options.jobs is not None else None
    engine = Engine(bank, options.slots)
    answers = int(options.answer_cache * 1_000_000)
    texts = options.audit_texts
    audited = options.audit or texts
    experiments = Experiments(options.state, options.experiments)
    service = Service(
        engine,
        bank,
        base_name=name,
        hub=hub,
        router=None if hub is None else hub.router,
        root=options.root,
        tenants=Tenants(options.state / "keys.sqlite"),
        experiments=experiments,
        failover=Failover(limits, experiments.worse),
        audit=Audit(options.state / "audit.sqlite", texts=texts) if audited else None,
        answers=AnswerCache(bank.fingerprint.tensors, answers) if answers else None,
    )
    check_arms(service)
    if options.feedback is not None:
        from ..jobs.corrections import Corrections

        heard = Corrections(options.feedback, experiments)
        service.on_answer, service.on_feedback = heard.answered, heard.corrected
    return service


def unknown_rights(service: Any) -> list[str]:
    """A note on each adapter that a valid key names and that is not here: a typo, perhaps."""
    from ..serving.tenants import EVERY, LOCAL

    names = {name.partition("@")[0] for name in service.names(LOCAL)}
    rows = [
        row
        for row in service.tenants.all_keys()
        if row.revoked is None and (row.expires is None or row.expires > time.time())
    ]
    rights = {(row.tenant, name) for row in rows for name in row.adapters if name != EVERY}
    return [
        f"note: the key of {tenant} is for {name!r}, which is not here; "
        f"{did_you_mean(name, names, 'it may come later')}"
        for tenant, name in sorted(rights)
        if name not in names
    ]


def ready_text(service: Any, host: str, port: int) -> str:
    """What stands on the terminal when it is ready: where, what, and what to do next."""
    from ..serving.tenants import LOCAL

    names = service.names(LOCAL)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    address = f"http://{'localhost' if host == '127.0.0.1' else host}:{port}"
    locked = bool(service.tenants.all_keys())
    key = "ml-…" if locked else "any"
    header = f" -H 'authorization: Bearer {key}'" * locked
    said = r"Log: Hull 90%, Fuel 12%, Engines stop.\nStatus?"  # what the shipped base has learnt
    messages = f'"messages": [{{"role": "user", "content": "{said}"}}], "temperature": 0'
    body = f'{{"model": "{names[-1]}", {messages}}}'
    curl = f"curl {address}/v1/chat/completions{header} -H 'content-type: application/json'"
    return f"""ready at {address}   models: {shown}
try it:   {curl} -d '{body}'
or:       OpenAI(base_url="{address}/v1", api_key="{key}")   Ctrl-C stops it"""

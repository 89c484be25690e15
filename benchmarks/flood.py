"""What does a tenant that floods the engine cost the others?

    python -m benchmarks.flood [--seconds 5] [--rounds 2]

Four quiet tenants ask once a second each (a Poisson process); one more keeps 60 requests open, and
no quota holds it. Time is the CPU time of the thread that steps the engine, so a busy machine
changes little; idle time is skipped. Printed are the seconds from a quiet request to its end, alone
and beside the flood, and what the flood got; ``--without-shares`` as it would be with turns alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import minilora
from minilora.lora.layer import lora_layers
from minilora.serving import AdapterBank, Engine

QUIET, ADAPTERS, CLIENTS = ("ann", "bob", "eve", "joe"), 20, 60
QUESTIONS = ("Hull status?", "How is the fuel?", "Report the oxygen level.")


def bank_of_random_adapters(root: Path) -> AdapterBank:
    """The shipped base with adapters that change its answers."""
    model = minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(r=4))
    bank = AdapterBank(minilora.load_base())
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        for _, layer in lora_layers(model):
            layer.reset_parameters()
            nn.init.normal_(layer.lora_B, std=0.1)
        name = f"n{number}"
        bank.load(name, minilora.save_adapter(model, root / name))
    return bank


def ask(engine: Engine, tenant: str, draw: random.Random) -> Any:
    """One request: adapter, question and length are drawn."""
    prompt, adapter = (draw.choice(QUESTIONS), ""), f"n{draw.randrange(ADAPTERS)}"
    most = draw.choice([8, 16, 24])
    return engine.submit(prompt, adapter, tenant=tenant, max_new_tokens=most)


def arrivals(seconds: float) -> Iterator[tuple[float, str]]:
    """When which quiet tenant asks, the same at every run."""
    draw, now = random.Random("arrivals"), 0.0
    while (now := now + draw.expovariate(len(QUIET))) < seconds:
        yield now, draw.choice(QUIET)


def has_ended(answer: Any) -> bool:
    """Whether an answer is whole."""
    while answer.end is None and not answer.events.empty():
        answer.next_event()
    return answer.end is not None


def latencies(bank: AdapterBank, seconds: float, clients: int, shares: bool) -> tuple[Any, int]:
    """(seconds of each quiet request, answers of the flood)."""
    engine = Engine(bank, 64)
    if not shares:
        engine.waiting.shares.full = lambda holders, rested=True: set()
    plan, draw = list(arrivals(seconds)), random.Random("requests")
    skipped, began = 0.0, time.thread_time()
    asked: dict[Any, float] = {}
    flood, took, answered = list[Any](), list[float](), 0
    while plan or asked:
        now = time.thread_time() - began + skipped
        if plan and not asked and not flood and plan[0][0] > now:
            skipped += plan[0][0] - now
            now = plan[0][0]
        while plan and plan[0][0] <= now:
            when, tenant = plan.pop(0)
            asked[ask(engine, tenant, draw)] = when
        flood += [ask(engine, "max", draw) for _ in range(clients - len(flood) if plan else 0)]
        engine.step()
        now = time.thread_time() - began + skipped
        ended = [answer for answer in [*asked, *flood] if has_ended(answer)]
        took += [now - asked.pop(answer) for answer in ended if answer in asked]
        answered += sum(answer in flood for answer in ended)
        flood = [answer for answer in flood if answer.end is None]
    engine.close()
    return took, answered


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--without-shares", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of_random_adapters(Path(folder))
        for _ in range(options.rounds):
            for clients in (0, CLIENTS):
                shares = not options.without_shares
                took, answered = latencies(bank, options.seconds, clients, shares)
                p95 = statistics.quantiles(took, n=20)[-1]
                line = f"{clients:3} clients flood: quiet median {statistics.median(took):.3f} s"
                print(f"{line}, 95% {p95:.3f} s of {len(took)}; the flood got {answered}")


if __name__ == "__main__":
    main()

"""What does a tenant that floods the engine cost the others?

    python -m benchmarks.flood [--seconds 30] [--rounds 3]

Four quiet tenants ask once a second each (a Poisson process); one more keeps 60 requests open, and
no quota holds it. Time is the CPU time of the thread that steps the engine, so a busy machine
changes little; idle time is skipped. In each round the quiet tenants ask the same three times:
alone, beside the flood, and beside the flood with turns alone, without shares of the rows. Printed
and kept are the seconds from a quiet request to its end, the largest too, and what the flood got.
"""

from __future__ import annotations

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

from .common import Row, options, save

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


CASES = {"alone": (0, True), "flood": (CLIENTS, True), "flood, turns alone": (CLIENTS, False)}


def arrivals(seconds: float, seed: int) -> Iterator[tuple[float, str]]:
    """When which quiet tenant asks, the same at every run."""
    draw, now = random.Random(f"arrivals {seed}"), 0.0
    while (now := now + draw.expovariate(len(QUIET))) < seconds:
        yield now, draw.choice(QUIET)


def has_ended(answer: Any) -> bool:
    """Whether an answer is whole."""
    while answer.end is None and not answer.events.empty():
        answer.next_event()
    return answer.end is not None


def latencies(
    bank: AdapterBank, seconds: float, seed: int, clients: int, shares: bool
) -> tuple[list[float], int]:
    """(seconds of each quiet request, answers of the flood)."""
    engine = Engine(bank, 64)
    if not shares:
        engine.waiting.shares.full = lambda holders, several=True: set()
    plan, draw = list(arrivals(seconds, seed)), random.Random(f"requests {seed}")
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


def row_of(name: str, rounds: list[tuple[list[float], int]], alone: list[list[float]]) -> Row:
    """What all rounds of a case say together, and its 95% over that alone, round by round."""
    took = [each for quiet, _ in rounds for each in quiet]
    over = [p95(quiet) / p95(other) for (quiet, _), other in zip(rounds, alone, strict=True)]
    return {
        "case": name,
        "requests": len(took),
        "median": statistics.median(took),
        "p95": p95(took),
        "largest": max(took),
        "p95 over alone": p95(took) / p95([each for quiet in alone for each in quiet]),
        "p95 over alone, by round": over,
        "flood's answers": sum(answered for _, answered in rounds),
    }


def p95(took: list[float]) -> float:
    """What 95% of the requests do not exceed."""
    return statistics.quantiles(took, n=20, method="inclusive")[-1]


def main() -> None:
    """Measure, print, keep."""
    given = options(__doc__, threads=1, seconds=30.0, rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of_random_adapters(Path(folder))
        rounds: dict[str, list[tuple[list[float], int]]] = {name: [] for name in CASES}
        for seed in range(given.rounds):
            for name, case in CASES.items():
                rounds[name].append(latencies(bank, given.seconds, seed, *case))
    alone = [quiet for quiet, _ in rounds["alone"]]
    rows = [row_of(name, rounds[name], alone) for name in CASES]
    for row in rows:
        figures = ", ".join(f"{key} {row[key]:.3f} s" for key in ("median", "p95", "largest"))
        flood, over = row["flood's answers"], row["p95 over alone"]
        print(f"{row['case']}: {figures} of {row['requests']}; {over:.2f} of alone's; {flood}")
    print(save("flood", rows, given))


if __name__ == "__main__":
    main()

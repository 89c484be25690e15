"""A minute of traffic: 64 clients, 100 adapters, 5 tenants of which one floods (``long``)."""

import asyncio
import collections
import json
import os
import random
import statistics
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import minilora
from minilora.lora.layer import lora_layers
from minilora.serving import AdapterBank
from minilora.serving.tenants import Limits, Tenants

from ..commands.test_serve import served
from .live import serving, small_service

SECONDS = float(os.environ.get("MINILORA_LOAD_SECONDS", "60"))
QUIET, FLOOD, ADAPTERS = ["ann", "bob", "eve", "joe"], "max", 100
RATE, FLOODING = 1.0, 60  # requests a second of a quiet tenant; clients of the flooding one
QUESTIONS = [
    "Hull status?",
    "How is the fuel?",
    "Report the oxygen level.",
    "Status of the shield?",
]


def clocks(pid):
    """Seconds now, and the processor's seconds that the server has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    processor = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), processor


async def ask(port, body, key="", pid="self"):
    """One request on a connection of its own: (status, JSON, seconds, retry-after).

    The seconds are a pair: on the wall, and of the server's processor, which says what the wall
    would say on a machine that nobody else keeps busy.
    """
    content = json.dumps(body).encode()
    began = clocks(pid)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    status, wait = int(head.split()[1]), float(headers.get(b"retry-after", 0))
    took = tuple(now - before for now, before in zip(clocks(pid), began, strict=True))
    return status, json.loads(answer), took, wait


def request(random_state):
    """A request as the pattern has it: adapter, question, length."""
    return {
        "model": f"n{random_state.randrange(ADAPTERS)}",
        "messages": [{"role": "user", "content": random_state.choice(QUESTIONS)}],
        "max_tokens": random_state.choice([8, 16, 24]),
        "temperature": 0,
    }


def arrivals(tenant, seconds):
    """(when, request) of a quiet tenant: a Poisson process, the same at every run."""
    random_state, now = random.Random(f"arrivals of {tenant}"), 0.0
    while (now := now + random_state.expovariate(RATE)) < seconds:
        yield now, request(random_state)


async def traffic(port, keys, pid, seconds, flooding):
    """{tenant: [(request, answer, seconds)]}, and how many 429 each tenant got."""
    log, refused = collections.defaultdict(list), collections.Counter()
    begin = time.monotonic()

    async def until_answered(tenant, body):
        while True:
            status, answer, took, wait = await ask(port, body, keys[tenant], pid)
            if status == 200:
                log[tenant].append((body, answer, took))
                return
            assert status == 429, answer
            refused[tenant] += 1
            await asyncio.sleep(wait)

    async def at(when, tenant, body):
        await asyncio.sleep(max(0, begin + when - time.monotonic()))
        await until_answered(tenant, body)

    async def flood(number):
        random_state = random.Random(f"client {number}")
        while time.monotonic() < begin + seconds:
            await until_answered(FLOOD, request(random_state))

    plan = [(tenant, *each) for tenant in QUIET for each in arrivals(tenant, seconds)]
    await asyncio.gather(
        *(at(when, tenant, body) for tenant, when, body in plan),
        *(flood(number) for number in range(flooding)),
    )
    assert sum(len(log[tenant]) for tenant in QUIET) == len(plan)  # nothing is lost
    return log, refused


def p95(log):
    """Of the quiet tenants' answers: on the wall, and by the server's processor; seconds."""
    took = [seconds for name in QUIET for *_, seconds in log[name]]
    return [statistics.quantiles(times, n=20)[-1] for times in zip(*took, strict=True)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """{name: folder} of a hundred, each with other random weights."""
    root, model = tmp_path_factory.mktemp("hundred"), minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(r=4))
    folders = {}
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        for _, layer in lora_layers(model):
            layer.reset_parameters()
            nn.init.normal_(layer.lora_B, std=0.1)
        folders[f"n{number}"] = minilora.save_adapter(model, root / f"n{number}")
    return folders


@pytest.mark.long
@pytest.mark.parametrize("limit", [4, None], ids=["limited", "unlimited"])
def test_a_flood_costs_the_others_little_and_no_answer_is_wrong(adapters, tmp_path, limit):
    with Tenants(tmp_path / "server" / "keys.sqlite") as tenants:
        keys = {name: tenants.add(name, ["*"]) for name in QUIET}
        keys[FLOOD] = tenants.add(FLOOD, ["*"], Limits(concurrent=limit))
    options = [
        word for pair in adapters.items() for word in ("--adapter", "=".join(map(str, pair)))
    ]
    with served(tmp_path, *options) as (process, address, _):
        server = int(address.rpartition(":")[2]), keys, process.pid
        alone, _ = asyncio.run(traffic(*server, SECONDS / 3, 0))
        before = clocks(process.pid)
        together, refused = asyncio.run(traffic(*server, SECONDS, FLOODING))
        wall, processor = (b - a for a, b in zip(before, clocks(process.pid), strict=True))
    count = {name: len(rows) for name, rows in together.items()}
    print(
        f"\nanswers {count}, 429 {dict(refused)}; the server had {processor / wall:.2f} of a core"
    )
    for clock, own, beside in zip(("wall", "processor"), p95(alone), p95(together), strict=True):
        print(
            f"the quiet tenants' 95%, {clock}: alone {own:.3f} s, beside the flood {beside:.3f} s"
        )
    check_against_solo(
        adapters, [row for log in (alone, together) for rows in log.values() for row in rows]
    )
    if limit is not None:  # the aim is 1.5 (docs/aims.md: missed); without fair shares it is 3.7
        assert beside <= 2.5 * own, "by the server's processor"


def check_against_solo(adapters, rows):
    """Each answer is the one that its request gets alone."""
    bank = AdapterBank(minilora.load_base())
    for name, folder in adapters.items():
        bank.load(name, folder)
    solo = {}
    for body, answer, _ in rows:
        asked = (body["model"], body["messages"][0]["content"], body["max_tokens"])
        if asked not in solo:
            row = [(asked[0], body["messages"])]
            solo[asked] = bank.generate(row, max_new_tokens=asked[2])[0]
        assert answer["choices"][0]["message"]["content"] == solo[asked]
        assert answer["minilora"]["digest"] == bank.known[asked[0]].content
    print(f"{len(rows)} answers equal their solo runs ({len(solo)} different)")


def resident():
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.long
def test_memory_is_flat_over_ten_thousand_requests():
    """In blocks of a thousand; the first two fill caches and the allocator's pools."""
    body = {"messages": [{"role": "user", "content": "Hull?"}], "max_tokens": 4, "temperature": 0}
    sizes = []

    async def block(port, count):
        async def client(number):
            for step in range(count // 16):
                model = "abc"[(number + step) % 3] if step % 50 else f"unknown-{number}-{step}"
                status, *_ = await ask(port, {**body, "model": model, "user": f"{number}-{step}"})
                assert status == (200 if step % 50 else 404)

        await asyncio.gather(*(client(number) for number in range(16)))

    service = small_service(slots=16)
    with serving(service) as address:
        port = int(address.rpartition(":")[2])
        for _ in range(10):
            asyncio.run(block(port, 1000))
            sizes.append(resident())
    print(f"\nMB after each thousand requests: {[round(size) for size in sizes]}")
    assert sizes[-1] - sizes[1] < 16

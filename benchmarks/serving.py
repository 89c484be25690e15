"""What do a thousand adapters on one base cost? Ours beside PEFT and transformers, in one run.

    python -m benchmarks.serving [--adapters 1 8 64 1000] [--requests 64] [--parts step …]

The shipped base, adapters of rank 8 on q and v, all different.

    step        64 rows in one pass over the same pass of the base: prefill (64 tokens a row) and
                decode (one). Of N adapters each row has its own where N reaches, 64 distinct ones
                at most; PEFT's way is ``adapter_names``
    batching    the same requests by the engine with 64 slots, with one, by ``generate`` one after
                the other, by PEFT and transformers as one padded batch: useful tokens a second
    arrivals    requests that come one after the other, as recorded by a seed, from two tenants:
                seconds to the first token and to the end
    newcomer    a request that comes while 63 stream: to its first token, in steps of the others
    memory      bytes of N adapters
    swap        another adapter: PEFT's ``set_adapter``, ours in a model and in a row, from disk

Logits and tokens are compared before anything is timed. Times are processor time of one thread, so
they hold on a busy machine; ``arrivals`` has wall time beside it.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import minilora
from minilora.formats import load_low_rank
from minilora.lora.twin import twin
from minilora.serving import AdapterBank, Engine
from minilora.serving.layer import AdapterRows

from .common import Row, kept_rows, measure, options, rows_of, save
from .generation import SHIPPED
from .serving_runs import (
    asked,
    by_engine,
    by_generate,
    by_padding,
    make_adapters,
    our_pass,
    peft_model,
    peft_pass,
    spent,
    switchable,
)

ROWS, TIME, MOST_OF_PEFT = 64, 64, 64
PARTS = ["memory", "step", "batching", "arrivals", "newcomer", "swap"]
BASE, OURS, PEFT = "base alone", "minilora", "PEFT, adapter_names"


@torch.inference_mode()
def steps(bank: AdapterBank, folders: list[Path], counts: list[int], seconds: float) -> list[Row]:
    """One pass of 64 rows over the base's, for each number of adapters."""
    results, draw = [], random.Random(0)
    ids = torch.randint(3, 1500, (ROWS, TIME), generator=torch.Generator().manual_seed(0))
    theirs = peft_model(folders[: min(MOST_OF_PEFT, len(folders))])
    base, model = twin(bank.base).eval(), twin(bank.base).eval()
    rows = AdapterRows(model, max_rank=8, size=ROWS)
    for count in counts:
        numbers = [n % count for n in range(ROWS)] if count < ROWS else range(count)
        names = [str(n) for n in draw.sample(numbers, ROWS)]
        for row, name in enumerate(names):
            held = bank.hold(name)
            rows.admit(row, held.parts)
            bank.release(held)
        for phase, new, past in (("prefill", ids, None), ("decode", ids[:, :1], ids)):
            runs = {BASE: our_pass(base, new, past), OURS: our_pass(model, new, past)}
            if count <= MOST_OF_PEFT:
                runs[PEFT] = peft_pass(theirs, new, past, names)
                torch.testing.assert_close(runs[OURS](), runs[PEFT](), rtol=1e-3, atol=1e-3)
            times = measure(runs, seconds, 7, "cpu", time.thread_time)
            setting = {"what": "step", "phase": phase, "adapters": count}
            found = rows_of(times, BASE, **setting, distinct=len(set(names)))
            said = ", ".join(f"{row['contestant']} {row['ratio']['median']:.2f}" for row in found)
            results += found
            print(f"{phase}, {count} adapters, over the base alone: {said}", flush=True)
    return results


def batching(bank: AdapterBank, folders: list[Path], count: int, seconds: float) -> list[Row]:
    """Useful tokens a second of the same requests, by each."""
    requests = asked(count)
    theirs = peft_model(folders[:count])
    plain = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    many, one = (Engine(bank, slots) for slots in (64, 1))
    model, switch = switchable(folders[:count])
    runs: dict[str, Callable[[], Any]] = {
        "minilora, 64 slots": lambda: by_engine(many, requests),
        "minilora, one at a time": lambda: by_engine(one, requests),
        "minilora, generate one after the other": lambda: by_generate(model, switch, requests),
        "PEFT, one padded batch": lambda: by_padding(theirs, requests, True),
        "transformers, padded, no adapters": lambda: by_padding(plain, requests, False),
        "minilora, 64 slots, no adapters": lambda: by_engine(
            many, [(prompt, new, None) for prompt, new, _ in requests]
        ),
    }
    ours, peers = by_engine(many, requests), by_padding(theirs, requests, True)
    same = sum(map(list.__eq__, ours, peers)) / count
    assert same > 0.9, f"only {same:.0%} of the answers equal PEFT's"
    assert ours == by_engine(one, requests) == by_generate(model, switch, requests)
    times = measure(runs, seconds, 3, "cpu", time.thread_time)  # a round takes ten seconds
    tokens = sum(new for _, new, _ in requests)
    rows = rows_of(times, "minilora, 64 slots", what="batching", requests=count, same=same)
    for row in rows:
        row["tokens_a_second"] = tokens / row["seconds"]
        print(f"{row['contestant']:<36}{row['tokens_a_second']:>9,.0f} tokens/s", flush=True)
    return rows


def arrivals(bank: AdapterBank, count: int) -> list[Row]:
    """Requests arrive while others decode: seconds to the first token, and to the end."""
    draw, requests = random.Random(2), asked(count)
    rows = []
    for slots in (64, 1):
        with Engine(bank, slots) as engine:
            answers, started = [], time.monotonic()
            for number, (prompt, new, name) in enumerate(requests):
                time.sleep(draw.expovariate(100))
                tenant = "large" if number % 4 else "small"  # three of four are one tenant's
                answers.append(
                    engine.submit(prompt, name, max_new_tokens=new, tenant=tenant, ends=())
                )
            ends = [answer.result() for answer in answers]
            took = time.monotonic() - started
        by_tenant = {
            tenant: statistics.median(
                end.waited or 0.0
                for end, answer in zip(ends, answers, strict=True)
                if answer.request.tenant == tenant
            )
            for tenant in ("small", "large")
        }
        row: Row = {"what": "arrivals", "slots": slots, "requests": count, "clock": "wall"}
        row |= {"first_token": percentiles([end.waited or 0.0 for end in ends])}
        row |= {"whole": percentiles([end.took for end in ends]), "first_by_tenant": by_tenant}
        row["tokens_a_second"] = sum(len(end.ids) for end in ends) / took
        rows.append(row)
        print(f"{slots} slots: first token {row['first_token']}, end {row['whole']}", flush=True)
    return rows


def newcomer(bank: AdapterBank, rounds: int = 7) -> list[Row]:
    """Processor time from a request to its first token while 63 others stream."""
    names = bank.names()
    requests = [(p, 64, names[n % len(names)]) for n, (p, *_) in enumerate(asked(ROWS))]
    waits, decodes, prefills = [], [], []
    for _ in range(rounds):
        engine = Engine(bank, ROWS)
        for prompt, new, name in requests[1:]:
            engine.submit(prompt, name, max_new_tokens=new, ends=())
        while len(engine.batch.running) < ROWS - 1:
            engine.step()
        decodes.append(spent(engine.step))
        prompt, new, name = requests[0]
        late = engine.submit(prompt, name, max_new_tokens=new, ends=())
        waits.append(spent(engine.step))
        assert late.first_token is not None, "expected the first token within the next step"
        engine.close()
        alone = Engine(bank, ROWS)
        alone.submit(prompt, name, max_new_tokens=1, ends=())
        prefills.append(spent(alone.step))
    wait, decode, prefill = map(statistics.median, (waits, decodes, prefills))
    row: Row = {"what": "newcomer", "streaming": ROWS - 1, "wait": wait, "decode": decode}
    row |= {"prefill": prefill, "rounds": rounds}
    print(f"first token after {1e3 * wait:.1f} ms; a step {1e3 * decode:.1f}, prefill alone "
          f"{1e3 * prefill:.1f}", flush=True)  # fmt: skip
    return [row]


def percentiles(values: list[float]) -> dict[str, float]:
    """The median and the 95th."""
    return {"p50": statistics.median(values), "p95": statistics.quantiles(values, n=20)[-1]}


def swaps(bank: AdapterBank, folders: list[Path], seconds: float) -> list[Row]:
    """Another adapter: PEFT's switch for the whole model, a copy into a row, a reading."""
    theirs = peft_model(folders[:MOST_OF_PEFT])
    rows = AdapterRows(twin(bank.base), max_rank=8, size=ROWS)
    held = [bank.hold(str(n)) for n in range(min(2, len(folders)))]
    turn = iter(range(10**9))
    swapped, (_, switch) = switchable(folders[:1])[0], switchable(folders[:2])
    parts = load_low_rank(folders[0])
    runs = {
        "PEFT, set_adapter": lambda: theirs.set_adapter(str(next(turn) % len(theirs.peft_config))),
        "minilora, swap_adapter": lambda: minilora.swap_adapter(swapped, parts),
        "minilora, AdapterSwitch": lambda: switch.to(str(next(turn) % len(switch.ready))),
        "minilora, into a row": lambda: rows.admit(0, held[next(turn) % len(held)].parts),
        "minilora, load: read and checked": lambda: bank.load("0", folders[0]),
        "minilora, read again after eviction": lambda: bank.read_again("0", bank.known["0"]),
    }
    with torch.inference_mode(False):
        times = measure(runs, seconds, 7, "cpu", time.thread_time)
    measured = rows_of(times, "PEFT, set_adapter", what="swap")
    for row in measured:
        print(f"{row['contestant']:<36}{1e6 * row['seconds']:,.1f} µs", flush=True)
    return measured


def main() -> None:
    """The chosen parts, on one thread; the rows of other parts stay in the results."""
    shape: dict[str, Any] = {"adapters": [1, 8, 64, 1000], "requests": 64, "seconds": 3.0}
    settings = options(__doc__, **shape, parts=PARTS, threads=1)
    transformers.logging.set_verbosity_error()
    kept = kept_rows("serving", settings)
    results = [row for row in kept if row["what"] not in settings.parts]
    most = max(settings.adapters) if {"memory", "step"} & set(settings.parts) else 0
    with tempfile.TemporaryDirectory() as root:
        folders = make_adapters(max(most, settings.requests), Path(root))
        bank = AdapterBank(minilora.load_base(), max_rank=8)
        for number, folder in enumerate(folders):
            bank.load(str(number), folder)
            if number + 1 in settings.adapters and "memory" in settings.parts:
                size = bank.cache.nbytes
                results.append({"what": "memory", "adapters": number + 1, "bytes": size})
        if "step" in settings.parts:
            results += steps(bank, folders, settings.adapters, settings.seconds)
        if "batching" in settings.parts:
            results += batching(bank, folders, settings.requests, settings.seconds)
        if "arrivals" in settings.parts:
            results += arrivals(bank, settings.requests)
        if "newcomer" in settings.parts:
            results += newcomer(bank)
        if "swap" in settings.parts:
            results += swaps(bank, folders, settings.seconds)
    results.sort(key=lambda row: PARTS.index(row["what"]))
    settings.parts = sorted({row["what"] for row in results}, key=PARTS.index)
    save("serving", results, settings, "peft", "transformers")


if __name__ == "__main__":
    main()

"""What does HTTP cost over the engine alone? And how fast is a server that runs?

    python -m benchmarks.http [--streams 64] [--tokens 64] [--rounds 5] [--hidden 128 --layers 6]
    python -m benchmarks.http --address http://localhost:8000 --model mine --streams 8 --seconds 5

The first starts a server in this process and a client in another, and alternates rounds: the same
requests to the engine directly, then over HTTP as streams. Printed are tokens/s of wall time, the
process's CPU seconds for a thousand tokens, and the seconds to the first token; medians over the
rounds, and the ratios within one round. They are kept in the results. ``--hidden`` makes a random
Llama of another size: HTTP's cost is by the token, the engine's by the model, so the ratio says as
much about the model.

The client reads raw sockets, so that it takes little of a CPU that it shares with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from .common import RESULTS, kept_rows, save

Timing = tuple[float, float, int]  # seconds to the first event, to the end; events

PROMPT = "Once upon a time in a land"


async def one(address: str, body: dict[str, Any], timings: list[Timing], key: str = "") -> None:
    """Send one request on a connection of its own, and read the stream."""
    place = urlsplit(address)
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {place.hostname}\r\nconnection: close\r\n"
    head += f"authorization: Bearer {key}\r\n" if key else ""
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    began = time.perf_counter()
    writer.write(head.encode() + content)
    first, events, status = 0.0, 0, b""
    while piece := await reader.read(65536):
        status = status or piece.split(b"\r\n")[0]
        first = first or time.perf_counter() - began
        events += piece.count(b"data: {")
    writer.close()
    if b" 200 " not in status:
        hint = ": this key has a quota, give one without" if b" 429 " in status else ""
        raise SystemExit(f"the server answered {status.decode()}{hint}")
    timings.append((first, time.perf_counter() - began, events))


async def at_once(address: str, body: dict[str, Any], streams: int) -> list[Timing]:
    """So many requests at the same time."""
    timings: list[Timing] = []
    await asyncio.gather(*(one(address, body, timings) for _ in range(streams)))
    return timings


async def for_a_while(
    address: str, body: dict[str, Any], streams: int, seconds: float, key: str = ""
) -> list[Timing]:
    """So many clients, each with one request after the other."""
    timings: list[Timing] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            await one(address, body, timings, key)

    await asyncio.gather(*(client() for _ in range(streams)))
    return timings


def measure_server(options: argparse.Namespace) -> None:
    """Print what a running server does."""
    body = request_body(options.model, options.tokens)
    began = time.perf_counter()
    load = options.streams, options.seconds, options.key
    timings = asyncio.run(for_a_while(options.address, body, *load))
    took = time.perf_counter() - began
    firsts, wholes = sorted(t[0] for t in timings), sorted(t[1] for t in timings)
    events = sum(t[2] for t in timings)
    print(f"{len(timings)} requests of {options.streams} clients in {took:.1f} s")
    print(f"at least {events / took:,.0f} tokens/s")
    for what, values in (("first token", firsts), ("whole answer", wholes)):
        p95 = values[int(0.95 * (len(values) - 1))]
        print(f"{what:13} median {statistics.median(values):.3f} s   95% {p95:.3f} s")


def request_body(model: str, tokens: int) -> dict[str, Any]:
    """A request for a stream of completion tokens."""
    common = {"model": model, "prompt": PROMPT, "max_tokens": tokens}
    return {**common, "temperature": 1, "seed": 1, "stream": True}


def client_process(address: str, body: dict[str, Any], streams: int, pipe: Any) -> None:
    """The other process: a round whenever it is told to."""
    while pipe.recv():
        began = time.perf_counter()
        timings = asyncio.run(at_once(address, body, streams))
        pipe.send((time.perf_counter() - began, timings))


def base_of(options: argparse.Namespace) -> Any:
    """The shipped base, or a random one of another size with its tokenizer."""
    import minilora

    shipped = minilora.load_base()
    if not options.hidden:
        return shipped
    sizes = {"hidden_size": options.hidden, "intermediate_size": 3 * options.hidden}
    heads = {"num_attention_heads": options.hidden // 64, "max_position_embeddings": 512}
    layers = {"num_hidden_layers": options.layers}
    model = minilora.Llama(minilora.LlamaConfig(vocab_size=1536, **sizes, **heads, **layers))
    model.tokenizer = shipped.tokenizer
    return model


def direct(engine: Any, options: argparse.Namespace) -> tuple[float, float, float, int]:
    """The engine alone: (seconds, CPU seconds, median seconds to the first token, tokens)."""
    prompt = engine.model.tokenizer.encode_text(PROMPT)
    began, cpu = time.perf_counter(), time.process_time()
    settings = {"temperature": 1.0, "seed": 1, "max_new_tokens": options.tokens}
    answers = [engine.submit(prompt, None, **settings) for _ in range(options.streams)]
    ends = [answer.result() for answer in answers]
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    firsts = [end.waited for end in ends if end.waited is not None]
    return took, cpu, statistics.median(firsts), sum(len(end.ids) for end in ends)


def compare(options: argparse.Namespace) -> None:
    """Print the engine alone beside the engine behind HTTP."""
    import torch
    import uvicorn

    from minilora.serving import AdapterBank, Engine, Service
    from minilora.serving.app import create_app

    torch.set_num_threads(1)
    bank = AdapterBank(base_of(options))
    engine = Engine(bank, options.streams)
    app = create_app(Service(engine, bank, base_name="base", usual_tokens=options.tokens))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    ours, theirs = multiprocessing.Pipe()
    body = request_body("base", options.tokens)
    arguments = (f"http://127.0.0.1:{port}", body, options.streams, theirs)
    client = multiprocessing.get_context("spawn").Process(target=client_process, args=arguments)
    client.start()
    rounds = []
    for number in range(options.rounds + 1):
        took, cpu, first, tokens = direct(engine, options)
        http_cpu = time.process_time()
        ours.send(True)
        http_took, timings = ours.recv()
        http_cpu = time.process_time() - http_cpu
        http_first = statistics.median(t[0] for t in timings)
        if number:  # the first warms up
            rounds.append((tokens, took, cpu, first, http_took, http_cpu, http_first))
    ours.send(False)
    client.join()
    server.should_exit = True
    thread.join()
    report(rounds, options)


def report(rounds: list[tuple[float, ...]], options: argparse.Namespace) -> None:
    """The table, printed and kept beside those of other bases."""
    # each round: tokens; seconds, CPU seconds, seconds to the first token; the same over HTTP
    measures: dict[str, Any] = {
        "tokens/s": (lambda n, t, c, f, *_: n / t, lambda n, t, c, f, ht, hc, hf: n / ht),
        "CPU s / 1000 tokens": (
            lambda n, t, c, *_: 1000 * c / n,
            lambda n, t, c, f, ht, hc, hf: 1000 * hc / n,
        ),
        "first token, s": (lambda n, t, c, f, *_: f, lambda *each: each[6]),
    }
    shape = {"hidden": options.hidden, "streams": options.streams, "tokens": options.tokens}
    rows = []
    print(f"{options.streams} streams of {options.tokens} tokens, {len(rounds)} rounds, medians")
    print(f"{'':22}{'engine':>10}{'HTTP':>10}{'ratio':>8}{'HTTP - engine':>15}")
    for name, (direct, served) in measures.items():
        pairs = [(direct(*each), served(*each)) for each in rounds]
        engine, http = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        more = statistics.median(b - a for a, b in pairs)
        print(f"{name:22}{engine:10.3f}{http:10.3f}{ratio:8.2f}{more:15.3f}")
        figures = {"engine": engine, "http": http, "ratio": ratio, "more": more}
        rows.append({**shape, "measure": name, **figures, "rounds": len(rounds)})
    settings = argparse.Namespace(device="cpu", out=options.out, rounds=options.rounds)
    others = [row for row in kept_rows("http", settings) if row["hidden"] != options.hidden]
    print(save("http", [*others, *rows], settings, "fastapi", "uvicorn"))


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--key", default="", help="of that server, where it asks for one")
    add("--address", help="of a server that runs; without it: one of its own, beside the engine")
    add("--model", default="minilora-base")
    add("--streams", type=int, default=64)
    add("--tokens", type=int, default=64)
    add("--seconds", type=float, default=10)
    add("--rounds", type=int, default=5)
    add("--hidden", type=int, default=0, help="of a random Llama (default: the shipped base)")
    add("--layers", type=int, default=6)
    add("--out", default=str(RESULTS), help="folder of the results (default: %(default)s)")
    options = parser.parse_args()
    measure_server(options) if options.address else compare(options)


if __name__ == "__main__":
    main()

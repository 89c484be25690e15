"""A client that leaves frees its row; one that reads slowly, or never, holds nobody up."""

import asyncio
import json
import socket
import threading
from contextlib import suppress
from unittest.mock import Mock

import httpx
import openai
import pytest

from minilora.serving.requests import Answer, Finished, RequestFailed, TokenLogprob
from minilora.serving.streams import Doorbell, Doorbells, Reader

from .live import eventually, serving, small_service
from .small import small_bank

ASKED = [{"role": "user", "content": "Hull status?"}]


@pytest.fixture(scope="module")
def service():
    service = small_service(slots=4)
    take = service.engine.batch.take

    def slow(first, logits):  # a step takes its time, so that an answer is still going on
        threading.Event().wait(0.01)
        take(first, logits)

    service.engine.batch.take = slow
    return service


@pytest.fixture(scope="module")
def address(service):
    with serving(service) as address:
        yield address


def raw(address, body, path="/v1/chat/completions"):
    """A socket on which a request was sent."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return connection


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_a_client_that_leaves_frees_its_row_within_a_step(address, service, stream):
    steps, step = [], service.engine.step

    def counted():
        steps.append(1)
        return step()

    body = {"model": "a", "messages": ASKED, "max_tokens": 80, "temperature": 1, "stream": stream}
    connection = raw(address, {**body, "n": 3, "seed": 1})
    eventually(lambda: len(service.engine.batch.running) == 3)
    before = [slot.answer for slot in service.engine.batch.running]
    connection.close()
    eventually(lambda: service.engine.cancels or not service.engine.batch.in_use)
    service.engine.step, after = counted, len(steps)
    try:
        eventually(lambda: not service.engine.batch.in_use)
    finally:
        service.engine.step = step
    assert len(steps) - after <= 2
    assert all(len(answer.ids) < 80 for answer in before)


def test_an_openai_stream_that_is_closed_frees_its_row(address, service):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client:
        stream = client.chat.completions.create(
            model="a", messages=ASKED, max_tokens=80, stream=True, seed=1
        )
        next(iter(stream))
        assert len(service.engine.batch.in_use) == 1
        stream.close()
    eventually(lambda: not service.engine.batch.in_use)


def test_who_reads_nothing_holds_nobody_up(address, service):
    deaf = [
        raw(address, {"model": "a", "messages": ASKED, "max_tokens": 60, "stream": True})
        for _ in range(3)
    ]
    half = [raw(address, {"model": "a"}) for _ in range(3)]
    for connection in half:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-le")  # and no more
    body = {"model": "b", "messages": ASKED, "max_tokens": 8, "temperature": 0}
    got = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=20).json()
    expected = small_bank().generate([("b", ASKED)], max_new_tokens=8)[0]
    assert got["choices"][0]["message"]["content"] == expected
    eventually(lambda: not service.engine.batch.in_use, 20)  # computed, though nobody has read
    for connection in [*deaf, *half]:
        connection.close()


def test_each_tokens_log_probability_comes_once_and_beside_the_first_text_after_it():
    """A token of half a letter has no text of its own yet."""
    tokenizer = small_bank().base.tokenizer
    ids, text = tokenizer.encode_text("a 🙂 b"), " a 🙂 b"
    request = Mock(prompt=tuple(tokenizer.encode_text("Status?")), stops=(), raw=True)
    answer = Answer(request, tokenizer, cancel=print)
    reader, parts = Reader(0, answer), []
    for token in ids:
        answer.logprobs.append(TokenLogprob(token, -1.0, ()))
        answer.events.put(token)
        parts.append(reader.new_part())
    assert reader.new_part() is None
    answer.events.put(Mock(spec=Finished, text=text))
    parts.append(reader.new_part())
    assert "".join(part.text for part in parts) == text
    assert any(not part.text for part in parts[:-1])
    assert all(part.text or not part.logprobs for part in parts[:-1])
    assert [each.id for part in parts for each in part.logprobs] == ids


def test_many_threads_may_ring_and_no_ring_is_lost():
    async def main():
        loop = asyncio.get_running_loop()
        bell = Doorbell(loop, 0)
        bell.loop = Mock(wraps=loop)
        events = [asyncio.Event() for _ in range(64)]
        threads = [
            threading.Thread(target=lambda some=events[n::4]: [bell.press(each) for each in some])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in events)), 20)
        for thread in threads:
            thread.join()
        return bell.loop.call_soon_threadsafe.call_count

    assert 1 <= asyncio.run(main()) <= 64  # the loop may wake between two


@pytest.mark.parametrize("pause", [0, 0.05])
def test_many_rings_are_one_call_into_the_loop(pause):
    async def main():
        loop = asyncio.get_running_loop()
        bell = Doorbell(loop, pause)
        bell.loop = Mock(wraps=loop)
        events = [asyncio.Event() for _ in range(64)]
        for event in events:  # in the loop's own thread, so that it cannot wake in between
            bell.press(event)
        await asyncio.gather(*(event.wait() for event in events))
        bell.press(events[0])
        await asyncio.sleep(0)
        return bell.loop.call_soon_threadsafe.call_count

    assert asyncio.run(main()) == 2


def test_a_first_token_and_an_end_wake_the_loop_at_once_and_what_is_between_waits():
    async def main(stream):
        loop, heard = asyncio.get_running_loop(), []
        bells = Doorbells(loop)
        bells.soon.pause = 0.3
        event = asyncio.Event()
        press = bells.button(event, stream)

        async def after(what, most):
            event.clear()
            press(what)
            began = loop.time()
            with suppress(asyncio.TimeoutError):  # which is not TimeoutError before Python 3.11
                await asyncio.wait_for(event.wait(), most)
                heard.append(loop.time() - began)

        for what in (1, 2, 3, RequestFailed()):
            await after(what, 2.0 if stream else 0.01)
        return heard

    first, second, third, end = asyncio.run(main(stream=True))
    assert max(first, second, end) < 0.25 <= third  # the pause is after the second, not before
    assert len(asyncio.run(main(stream=False))) == 1  # its end alone


@pytest.mark.parametrize(("streams", "pause"), [(1, 0.05), (32, 0.05), (64, 0.1), (256, 0.4)])
def test_all_streams_together_are_woken_so_many_times_a_second(streams, pause):
    loop, events = Mock(), [Mock() for _ in range(streams)]
    loop.time.return_value = 7.0
    bell = Doorbell(loop, pause=0.05, most=640)
    for event in [*events, *events]:  # two tokens each
        bell.press(event)
    bell.answer()
    assert all(event.set.call_count == 1 for event in events)
    assert bell.due == pytest.approx(7.0 + pause)
    bell.press(events[0])
    bell.hear()
    assert loop.call_later.call_args.args == (pytest.approx(pause), bell.answer)

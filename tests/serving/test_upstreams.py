"""Servers that miss their health checks, and who is asked first; no process is started."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from minilora.serving.upstreams import (
    HOPELESS,
    MISSES,
    PLACES,
    Upstream,
    candidates,
    of_domain,
    ranked,
)


class Client:
    """Answers each check with the next status; None: nobody answers."""

    def __init__(self, *statuses):
        self.statuses, self.asked = list(statuses), []

    async def get(self, url, timeout):
        self.asked.append((url, timeout))
        if (status := self.statuses.pop(0)) is None:
            raise httpx.ConnectError("nobody")
        return SimpleNamespace(status_code=status)


def checked(*statuses, times=None):
    """An upstream after so many checks, and what was done to it."""
    upstream, done = Upstream("w0", "http://x"), []
    upstream.client, upstream.kill = Client(*statuses), lambda: done.append("kill")

    async def prepare(each):
        done.append("prepare")
        assert each is upstream
        assert not upstream.up.is_set(), "before its first request"

    async def main():
        for _ in range(len(statuses)):
            await upstream.check(prepare)

    asyncio.run(main())
    return upstream, done


def test_one_answer_and_it_is_up_and_it_is_prepared_once():
    upstream, done = checked(200, 200)
    assert upstream.up.is_set()
    assert not upstream.down.is_set()
    assert done == ["prepare"]
    assert upstream.client.asked == [("http://x/ready", 5.0)] * 2


@pytest.mark.parametrize("status", [None, 503, 404])
def test_three_misses_in_a_row_and_it_is_down(status):
    upstream, done = checked(200, *[status] * (MISSES - 1))
    assert (upstream.up.is_set(), upstream.down.is_set()) == (True, False)
    upstream, done = checked(200, *[status] * MISSES)
    assert (upstream.up.is_set(), upstream.down.is_set()) == (False, True)
    upstream, done = checked(200, status, status, 200, status, status)
    assert upstream.up.is_set(), "not in a row"
    assert done == ["prepare"]


def test_who_comes_back_is_prepared_again():
    upstream, done = checked(200, *[None] * MISSES, 200)
    assert upstream.up.is_set()
    assert not upstream.down.is_set()
    assert done == ["prepare", "prepare"]


def test_one_that_hangs_is_killed_once_and_counted_anew():
    upstream, done = checked(*[None] * (HOPELESS - 1))
    assert done == []
    upstream, done = checked(*[None] * HOPELESS)
    assert (done, upstream.misses) == (["kill"], 0)
    upstream, done = checked(*[None] * (2 * HOPELESS))
    assert done == ["kill", "kill"]


def test_one_without_an_address_is_not_asked():
    upstream = Upstream("w0")
    upstream.client = Client()
    asyncio.run(upstream.check(None))
    assert upstream.client.asked == []
    assert upstream.misses == 0


def ready(count=4, **models):
    made = [Upstream(f"w{number}", models=models.get(f"w{number}", ())) for number in range(count)]
    for each in made:
        each.come_up()
    return made


def test_of_an_adapters_first_places_the_less_busy_is_asked_and_the_rest_keep_their_order():
    everyone = ready()
    order = ranked("naval", [each.name for each in everyone])
    assert [each.name for each in candidates(everyone, "naval")] == order
    busy = {name: upstream for name in order for upstream in everyone if upstream.name == name}
    busy[order[0]].busy = 2
    busy[order[PLACES]].busy = 5
    expected = [order[1], order[0], *order[PLACES:]]
    assert [each.name for each in candidates(everyone, "naval@1.0.0")] == expected


@pytest.mark.parametrize("model", [None, "", "auto", "auto@x"])
def test_where_any_may_answer_the_least_busy_does(model):
    everyone = ready()
    for number, each in enumerate(everyone):
        each.busy = -number
    assert candidates(everyone, model) == everyone[::-1]
    everyone[3].go_down()
    assert candidates(everyone, model) == everyone[2::-1]


def test_a_domain_is_answered_by_its_own():
    everyone = ready(w3={"legal"})
    assert of_domain(everyone, "legal") == everyone[3:]
    assert of_domain(everyone, "naval") == of_domain(everyone, "") == everyone[:3]
    everyone[3].go_down()
    assert candidates(everyone, "legal") == [], "nobody else has it"

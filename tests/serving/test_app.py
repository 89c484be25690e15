"""What the server says of itself is true: requests made from its own description find nothing."""

import asyncio

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from minilora.serving.app import RequestIds, create_app, on_http_error
from minilora.serving.protocol import ChatRequest
from minilora.serving.refusals import Refused

from .live import serving, small_service
from .small import TOKENIZER

SERVICE = small_service("ab", slots=4, on_feedback=lambda *_: "quarantine")
schema = schemathesis.openapi.from_dict(create_app(SERVICE).openapi())


@pytest.fixture(scope="module")
def address():
    with serving(SERVICE) as address:
        yield address


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def known(prompt):
    """A prompt in ids of the vocabulary, whose size the description does not say."""
    if isinstance(prompt, list):
        return [known(each) for each in prompt]
    sound = isinstance(prompt, int | float) and not isinstance(prompt, bool) and prompt >= 0
    return int(prompt) % 1536 if sound and prompt == int(prompt) else prompt


def fits(messages):
    """Whether sound messages fit into this model's positions, which the description does not say;
    None: they are not sound, which is schemathesis' business."""
    try:
        (prompt,) = ChatRequest(model="a", messages=messages).prompts(TOKENIZER)
    except (ValueError, Refused):
        return None
    return len(prompt) < 90


def call(case, address):
    """Ask for a model that exists, for few tokens; the rest is schemathesis'."""
    if isinstance(case.body, dict) and case.path.endswith("completions"):
        case.body |= {"max_tokens": 3} if case.body.get("max_tokens") is None else {}
        named = case.body.get("model")
        case.body |= {"model": "a"} if isinstance(named, str) and named else {}
        case.body |= {"prompt": known(case.body.get("prompt"))} if "prompt" in case.body else {}
        several = isinstance(case.body.get("prompt"), list) and len(case.body["prompt"]) > 4
        case.body |= {"n": 1} if several and "n" in case.body else {}  # 64 answers in all
        if fits(case.body.get("messages")) is False:
            case.body |= {"messages": [{"role": "user", "content": "Hull?"}]}
    case.call_and_validate(base_url=address)


TOO_MUCH = {
    "answers": ("/v1/completions", {"prompt": ["Hull"] * 9, "n": 8}, "n"),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hull " * 95}]},
        "messages",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_the_description_allows_and_this_model_cannot_hold_is_a_400(case, address):
    """``call`` keeps schemathesis from these."""
    path, body, param = TOO_MUCH[case]
    got = httpx.post(f"{address}{path}", json={"model": "a", "max_tokens": 2, **body})
    assert got.status_code == 400
    assert got.json()["error"]["param"] == param
    schema[path]["POST"].validate_response(got)


@schema.parametrize()
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate], **QUIET)
def test_the_description_holds(case, address):
    call(case, address)


@pytest.mark.long
@schema.parametrize()
@settings(max_examples=400, **QUIET)
def test_the_description_holds_for_long(case, address):
    call(case, address)


def test_operation(address):
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/ready").json() == {"status": "ready"}
    body = {"model": "a", "prompt": "Hull", "max_tokens": 4, "temperature": 0}
    httpx.post(f"{address}/v1/completions", json=body)
    text = httpx.get(f"{address}/metrics").text
    assert 'minilora_tokens_total{kind="generated",model="a"}' in text
    assert "minilora_rows_running 0.0" in text
    SERVICE.draining = True
    try:
        got = httpx.get(f"{address}/ready")
        assert (got.status_code, got.headers["retry-after"]) == (503, "5")
        assert httpx.get(f"{address}/health").status_code == 200
        got = httpx.post(f"{address}/v1/completions", json=body)
        assert (got.status_code, got.json()["error"]["code"]) == (503, "draining")
    finally:
        SERVICE.draining = False


def test_labels_are_bounded():
    from minilora.serving.metrics import MOST, Metrics

    metrics = Metrics()
    labels = {metrics.label(f"name-{n}@1.{n}.0") for n in range(3 * MOST)}
    assert len(labels) == MOST + 1
    assert metrics.label("name-5@2.0.0") == "name-5"


def test_a_bug_is_a_500_without_details(monkeypatch):
    service = small_service("a")
    with serving(service) as address:
        monkeypatch.setattr(service, "names", lambda tenant: 1 / 0)
        got = httpx.get(f"{address}/v1/models")
    assert got.status_code == 500
    assert got.json()["error"]["code"] == "internal_error"
    assert got.headers["x-request-id"] in got.json()["error"]["message"]
    assert "division" not in got.text


def named(**headers):
    """(status, id told, ids that the application saw) of a request with these headers."""
    seen, sent = [], []

    async def application(scope, receive, send):
        seen.append(scope["state"]["request_id"])
        await JSONResponse({})(scope, receive, send)

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": raw}
    asyncio.run(RequestIds(application)(scope, None, send))
    return sent[0]["status"], Headers(raw=sent[0]["headers"])["x-request-id"], seen


def test_an_id_is_the_clients_own_if_it_is_sound_and_else_a_new_one():
    for own in ("mine-1", "A.b_c", "x" * 64):
        assert named(x_request_id=own) == (200, own, [own])
    given = [{}, *({"x_request_id": odd} for odd in ("", "a b", "x" * 65, "a/b", "a\tb"))]
    told = [named(**headers) for headers in given]
    assert all(seen == [name] and name.isalnum() and len(name) >= 16 for _, name, seen in told)
    assert len({name for _, name, _ in told}) == len(told)


def test_a_request_of_two_lengths_is_refused_before_anybody_reads_it():
    status, name, seen = named(content_length="5", transfer_encoding="chunked")
    assert (status, bool(name), seen) == (400, True, [])
    assert named(content_length="5")[0] == named(transfer_encoding="chunked")[0] == 200


def test_a_wrong_type_is_a_400_that_names_the_field_and_allow_names_every_method(address):
    got = httpx.post(f"{address}/v1/completions", json={"model": "a", "prompt": "x", "n": "1"})
    assert (got.status_code, got.json()["error"]["param"]) == (400, "n")
    got = httpx.put(f"{address}/v1/experiments")
    assert (got.status_code, got.headers["allow"]) == (405, "GET, POST")
    error = HTTPException(418, "no coffee", headers={"x-pot": "tea"})
    got = asyncio.run(on_http_error(None, error))
    assert (got.status_code, got.headers["x-pot"]) == (418, "tea")

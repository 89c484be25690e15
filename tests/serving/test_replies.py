"""The description names every error that the server answers, and what its body looks like."""

import pytest
import schemathesis
from starlette.testclient import TestClient

from minilora.serving.app import create_app
from minilora.serving.tenants import Limits, Tenants

from .live import small_service

CHAT, LOAD = "/v1/chat/completions", "/v1/load_lora_adapter"
ASKED = {"model": "a", "messages": [{"role": "user", "content": "Hull?"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A client, the description as it stands and as schemathesis reads it, keys by tenant."""
    tenants = Tenants(tmp_path_factory.mktemp("keys") / "keys.sqlite")
    boss, acme = tenants.add("boss", admin=True), tenants.add("acme", ["a"])
    poor = tenants.add("poor", ["a"], Limits(requests=1))
    app = create_app(small_service("a", tenants=tenants))
    with TestClient(app, raise_server_exceptions=False) as http:
        described = app.openapi()
        read = schemathesis.openapi.from_dict(described)
        yield http, described["paths"], read, {"boss": boss, "acme": acme, "poor": poor}
    tenants.close()


def answered(server, who, method, path, **request):
    """The response to one request; the description holds for it."""
    http, described, read, keys = server
    headers = {"authorization": f"Bearer {keys[who]}"} if who else {}
    got = http.request(method, path, headers=headers, **request)
    response = described[path][method.lower()]["responses"][str(got.status_code)]
    assert got.headers["content-type"].startswith(next(iter(response["content"])))
    read[path][method].validate_response(got)
    return got.status_code


def test_each_status_that_comes_is_described_with_its_body(server, monkeypatch):
    service = server[0].app.state.service
    load = {"lora_name": "x", "lora_path": "nowhere"}
    seen = [
        answered(server, "acme", "POST", CHAT, json=ASKED),
        answered(server, "acme", "POST", CHAT, json={**ASKED, "n": 0}),
        answered(server, None, "POST", CHAT, json=ASKED),
        answered(server, "acme", "POST", LOAD, json=load),
        answered(server, "boss", "POST", LOAD, json=load),
        answered(server, "acme", "POST", CHAT, json={**ASKED, "user": "x" * 8_000_001}),
        answered(server, "poor", "POST", CHAT, json=ASKED),
        answered(server, "poor", "POST", CHAT, json=ASKED),
        answered(server, "boss", "GET", "/metrics"),
        answered(server, "boss", "POST", "/v1/unload_lora_adapter", json={"lora_name": "x"}),
    ]
    monkeypatch.setattr(service, "names", lambda tenant: 1 / 0)
    seen.append(answered(server, "acme", "GET", "/v1/models"))
    monkeypatch.setattr(service, "draining", True)
    seen += [answered(server, None, "GET", "/ready"), answered(server, None, "GET", "/health")]
    monkeypatch.setattr(service.engine, "closed", True)
    seen += [answered(server, None, "GET", "/ready"), answered(server, None, "GET", "/health")]
    seen.append(answered(server, "acme", "POST", CHAT, json=ASKED))
    expected = [200, 400, 401, 403, 404, 413, 200, 429, 200, 404, 500, 503, 200, 503, 503, 503]
    assert seen == expected

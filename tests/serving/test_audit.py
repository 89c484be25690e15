"""The audit log: every request by id, no texts unless asked, nothing lost in silence."""

import stat

import httpx
import pytest
from starlette.testclient import TestClient

from minilora.serving.app import create_app
from minilora.serving.audit import Audit
from minilora.serving.refusals import Refused
from minilora.serving.tenants import Tenants

from .live import serving, small_service

ASKED = {"messages": [{"role": "user", "content": "a secret question"}], "temperature": 0}


@pytest.fixture
def audit(tmp_path):
    with Audit(tmp_path / "log" / "audit.sqlite") as made:
        yield made


def ask(address, model="a", id="", **more):
    headers = {"x-request-id": id} if id else {}
    body = {"model": model, "max_tokens": 4, **ASKED, **more}
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=30)


def bytes_of(audit):
    folder = audit.session.file.parent
    return b"".join(file.read_bytes() for file in folder.iterdir())


def test_every_request_is_there_with_its_id_its_adapter_and_its_end(audit):
    service = small_service(audit=audit)
    with serving(service) as address:
        answered = ask(address, id="mine-1")
        assert ask(address, "nobody", id="mine-2").status_code == 404
        assert ask(address, "small", stream=True).status_code == 200
        unload = httpx.post(f"{address}/v1/unload_lora_adapter", json={"lora_name": "b"})
        assert unload.status_code == 200
        told = httpx.get(f"{address}/v1/audit").json()["data"]
    assert [(e["action"], e["model"], e["status"]) for e in told] == [
        ("chat", "a", 200),
        ("chat", "nobody", 404),
        ("chat", "small", 200),
        ("unload", "b", 200),
    ]
    first = told[0]
    assert (first["request"], first["adapter"]) == ("mine-1", "a")
    assert first["digest"] == answered.headers["x-minilora-digest"] != ""
    usage = answered.json()["usage"]
    assert first["prompt_tokens"] == usage["prompt_tokens"]
    assert first["generated_tokens"] == usage["completion_tokens"]
    assert 0 < first["waited"] <= first["took"]
    assert (told[3]["prompt_tokens"], told[3]["generated_tokens"]) == (0, 0), "nothing was asked"
    assert b"secret" not in bytes_of(audit)
    assert first["question"] is first["answer"] is None


def test_texts_are_there_only_when_asked_for(tmp_path):
    with Audit(tmp_path / "audit.sqlite", texts=True) as audit:
        with serving(small_service(audit=audit)) as address:
            text = ask(address).json()["choices"][0]["message"]["content"]
        [entry] = audit.entries(None)
    assert "a secret question" in entry["question"]
    assert entry["answer"] == text


def test_the_file_is_its_owners_alone(audit):
    for file in audit.session.file.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_client_that_leaves_is_written_down_as_such(audit):
    service = small_service(audit=audit)
    with serving(service) as address:
        with httpx.stream(
            "POST",
            f"{address}/v1/chat/completions",
            json={"model": "a", "stream": True, "max_tokens": 60, **ASKED},
        ) as response:
            next(response.iter_lines())
        for _ in range(200):
            if (entry := audit.entries(None)[0])["status"] is not None:
                break
            __import__("time").sleep(0.01)
    assert entry["status"] in (499, 200)  # 200: the small model was done before it was noticed


def test_a_full_disk_refuses_what_comes_and_loses_no_answer_in_silence(audit, caplog):
    service = small_service(audit=audit)
    begin = audit.begin

    def then_full(*values, **named):
        row = begin(*values, **named)
        audit.session.connection.execute("pragma query_only = on")  # as on a full disk
        return row

    audit.begin = then_full
    with serving(service) as address:
        answered = ask(address, id="the-last-one")
        assert answered.status_code == 200
        assert audit.missed == 1
        assert "request the-last-one: its end is not in the audit log" in caplog.text
        audit.begin = begin
        refused = ask(address)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "audit_failed")
        assert int(refused.headers["retry-after"]) >= 1
        assert str(audit.session.file.parent) not in refused.text
        assert not service.engine.batch.in_use
        audit.session.connection.execute("pragma query_only = off")
        assert ask(address).status_code == 200
    assert [entry["status"] for entry in audit.entries(None)] == [None, 200]


def test_a_tenant_reads_its_own_rows_numbered_without_gaps(audit):
    for number in range(3):
        audit.begin("acme", f"r{number}", "chat", "naval")
        audit.begin("zeta", f"s{number}", "chat", "legal")
    own = audit.entries("acme")
    assert [(entry["id"], entry["request"]) for entry in own] == [(1, "r0"), (2, "r1"), (3, "r2")]
    assert {entry["tenant"] for entry in own} == {"acme"}
    assert [entry["request"] for entry in audit.entries("acme", after=1, most=1)] == ["r1"]
    everything = audit.entries(None)
    assert [entry["id"] for entry in everything] == [1, 2, 3, 4, 5, 6]


def test_over_http_a_tenant_reads_its_own_part_in_pages_and_an_admin_all(audit, tmp_path):
    tenants = Tenants(tmp_path / "keys.sqlite")
    boss, acme = tenants.add("boss", admin=True), tenants.add("acme")
    for number in range(5):
        audit.begin("acme", f"r{number}", "chat", "naval")
        audit.begin("zeta", f"s{number}", "chat", "legal")
    with TestClient(create_app(small_service(audit=audit, tenants=tenants))) as http:

        def page(key, **asked):
            headers = {"authorization": f"Bearer {key}"}
            told = http.get("/v1/audit", params=asked, headers=headers).json()
            return [entry["request"] for entry in told["data"]], told["has_more"]

        assert page(acme) == ([f"r{number}" for number in range(5)], False)
        assert page(acme, limit=2) == (["r0", "r1"], True)
        assert page(acme, after=2, limit=3) == (["r2", "r3", "r4"], False)
        assert page(acme, after=5) == ([], False)
        assert len(page(boss)[0]) == 10
        assert page(boss, after=8, limit=1) == (["r4"], True)


def test_a_file_that_is_something_else_is_a_sentence(tmp_path):
    (tmp_path / "audit.sqlite").write_bytes(b"something else, and long enough" * 100)
    with pytest.raises(ValueError, match="is damaged, or is not a audit log|not an audit log"):
        Audit(tmp_path / "audit.sqlite")


def test_nothing_is_asked_of_a_server_without_a_log():
    with serving(small_service()) as address:
        assert httpx.get(f"{address}/v1/audit").status_code == 404


def test_a_refusal_to_write_is_the_client_s_to_retry(audit):
    audit.session.connection.execute("pragma query_only = on")
    with pytest.raises(Refused) as refused:
        audit.begin("acme", "1", "chat", "naval")
    assert refused.value.status == 503

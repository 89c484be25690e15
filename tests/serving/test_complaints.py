"""What users of other servers met, each named after its thread.

Here those that show over HTTP; the others are tested below it, and ``TESTS`` says where.
"""

import importlib
import threading

import httpx
import pytest
from starlette.testclient import TestClient

from minilora.serving.answer_cache import AnswerCache
from minilora.serving.app import create_app
from minilora.serving.audit import Audit
from minilora.serving.tenants import Tenants

from .live import serving, small_service
from .small import FOLDERS, small_bank

TESTS = {
    "1 another user's adapter, after a load while it decodes": {
        "test_engine": "vllm_47724_a_load_while_it_decodes_changes_later_requests_only",
        "test_layer": "vllm_47724_an_adapter_that_changes_after_admission_does_not_reach_the_row",
        "test_complaints": "vllm_47724_and_llama_cpp_10377_loading_and_unloading_disturb_no_stream",
    },
    "2 a name's new weights, the old answer": {
        "test_adapter_store": "vllm_42125_other_weights_under_an_old_name_are_another_content",
        "test_answer_cache": "vllm_42125_new_weights_under_the_name_are_computed_not_remembered",
    },
    "3 keys and values shared between adapters": {
        "test_engine": "vllm_3264_no_keys_or_values_are_shared_between_adapters_or_with_the_base"
    },
    "4 leftovers of the slot's last adapter": {
        "test_layer": "sglang_8103_nothing_of_the_rows_last_adapter_is_left"
    },
    "5 an unknown adapter answered by the base": {
        "test_adapter_store": "tgi_2505_an_unknown_name_is_an_error_with_the_nearest_names",
        "test_complaints": "tgi_2505_and_peft_2090_a_foreign_name_and_a_missing_one_are_one_404",
    },
    "6 a wrong key in the file, and the base is served": {
        "test_adapter_files": "vllm_34186_wrong_keys_and_every_other_misfit_are_errors"
    },
    "7 wrong segments under load": {
        "test_engine": "lorax_62_under_load_every_row_has_its_own_weights"
    },
    "8 a swap disturbs streams; adapters not batched together": {
        "test_complaints": "vllm_47724_and_llama_cpp_10377_loading_and_unloading_disturb_no_stream",
        "test_engine": "llama_cpp_10994_rows_of_all_adapters_decode_in_one_pass",
    },
    "9 rsLoRA ignored; a rank above the first one's": {
        "test_adapter_files": "vllm_10798_the_scale_is_that_of_rslora_and_of_every_module",
        "test_adapter_store": "sglang_7808_a_rank_above_the_banks_is_refused_whatever_came_first",
    },
    "10 starved behind adapters that are loaded, or are not": {
        "test_engine": "vllm_15422_nobody_waits_for_an_adapter_that_is_not_theirs",
        "test_waiting": "one_adapter_on_disk_does_not_wait_for_anothers_twenty",
    },
    "11 the neighbours change an answer": {
        "test_engine": "vllm_11658_greedy_and_seeded_answers_do_not_depend_on_neighbours"
    },
    "12 it goes on after the client has left": {
        "test_engine": "vllm_9428_who_leaves_frees_the_row",
        "test_streams": "a_client_that_leaves_frees_its_row_within_a_step",
    },
    "13 loading without a key, paths, pickles": {
        "test_complaints": "sglang_26789_no_route_was_forgotten_when_keys_were_asked_for",
        "test_model_routes": "no_path_leads_out_of_the_root",
        "test_adapter_files": "tensorrt_13391_a_pickle_is_never_opened",
    },
    "14 one bad adapter blocks the good ones; read at each step": {
        "test_engine": "one_bad_adapter_does_not_block_the_good_ones",
        "test_complaints": "gateway_584_a_damaged_adapter_fails_alone_and_tells_no_folder",
    },
    "15 loaded and unseen by the router; memory grows with every adapter": {
        "test_complaints": "production_stack_331_a_loaded_adapter_is_listed_and_answers_at_once",
        "test_gateway": "every_worker_loads_and_one_that_comes_back_too",
        "test_adapter_store": "llama_cpp_19153_a_hundred_adapters_take_the_memory_that_was_given",
    },
    "16 a mixed batch serial in its adapters": {
        "test_bank": "peft_2283_the_base_is_called_once_for_a_batch_of_many_adapters"
    },
    "CVE-2025-46570, vllm 53347: what another asked shows in the time": {
        "test_complaints": "cve_2025_46570_what_another_asked_before_makes_nothing_quicker"
    },
    "vllm 44701: a name and a salt collide": {
        "test_answer_cache": "vllm_44701_one_text_in_two_places_has_two_keys"
    },
}


@pytest.mark.parametrize("complaint", TESTS, ids=[each.split(" ")[0] for each in TESTS])
def test_each_complaint_has_its_test(complaint):
    for module, name in TESTS[complaint].items():
        tests = importlib.import_module(f"tests.serving.{module}")
        assert callable(getattr(tests, f"test_{name}"))


ASKED = [{"role": "user", "content": "Hull status?"}]
ROOT = FOLDERS["a"].parent
LOGS = "minilora.serving"


def ask(http, model="a", key=None, **more):
    body = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 8, **more}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return http.post("/v1/chat/completions", json=body, headers=headers)


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def load(http, name, path, **more):
    body = {"lora_name": name, "lora_path": path, "load_inplace": True}
    return http.post("/v1/load_lora_adapter", json=body, **more)


@pytest.fixture(scope="module")
def alone():
    bank = small_bank("abcde")
    return lambda name, most=8: bank.generate([(name, ASKED)], max_new_tokens=most)[0]


@pytest.fixture
def http():
    with TestClient(create_app(small_service(root=ROOT))) as client:
        yield client


@pytest.fixture
def tenants(tmp_path):
    with Tenants(tmp_path / "state" / "keys") as made:
        yield made


def test_vllm_47724_and_llama_cpp_10377_loading_and_unloading_disturb_no_stream(alone):
    service = small_service(root=ROOT)
    done = threading.Event()
    with serving(service) as address, httpx.Client(base_url=address, timeout=30) as http:

        def disturb():
            while not done.wait(0.02):
                for name, path in (("a", "d"), ("x", "e"), ("a", "a")):
                    assert load(http, name, path).status_code == 200
                http.post("/v1/unload_lora_adapter", json={"lora_name": "x"})

        thread = threading.Thread(target=disturb)
        thread.start()
        digests = {small_bank(n).known[n].content: n for n in "ad"}
        try:
            for _ in range(2):
                got = ask(http, "a", max_tokens=40)
                letter = digests[got.headers["x-minilora-digest"]]
                assert text_of(got) == alone(letter, 40), "the text is the named content's"
                assert text_of(ask(http, "b", max_tokens=40)) == alone("b", 40)
        finally:
            done.set()
            thread.join()


def test_tgi_2505_and_peft_2090_a_foreign_name_and_a_missing_one_are_one_404(tenants):
    key = tenants.add("acme", ["b"])
    with TestClient(create_app(small_service(tenants=tenants))) as http:
        seen = {}
        for name in ("a", "q"):  # one is loaded and another's, one does not exist
            whole = ask(http, name, key)
            card = http.get(f"/v1/models/{name}", headers={"authorization": f"Bearer {key}"})
            for number, got in enumerate((whole, card)):
                ids = {"x-request-id": ""}
                told = got.status_code, got.text.replace(f"'{name}'", "''"), {**got.headers, **ids}
                seen.setdefault(number, []).append(told)
    assert seen[0][0] == seen[0][1]
    assert seen[1][0] == seen[1][1]
    assert seen[0][0][0] == 404


OPEN_TO_ALL = {"/health", "/ready", "/"}


def test_sglang_26789_no_route_was_forgotten_when_keys_were_asked_for(tenants):
    key = tenants.add("acme", ["a"])
    app = create_app(small_service(tenants=tenants, root=ROOT))
    tried = 0
    with TestClient(app, raise_server_exceptions=False) as http:
        for path, methods in app.openapi()["paths"].items():
            if path in OPEN_TO_ALL:
                continue
            for method in methods:
                address = path.replace("{", "x").replace("}", "x")
                for headers in ({}, {"authorization": "Bearer ml-x"}, {"authorization": key}):
                    got = http.request(method, address, json={}, headers=headers)
                    assert got.status_code == 401, (method, path, got.text)
                    tried += 1
        headers = {"authorization": f"Bearer {key}"}
        assert load(http, "mine", "a", headers=headers).status_code == 403
        gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "a"}, headers=headers)
        assert gone.status_code == 403
        assert http.get("/metrics", headers=headers).status_code == 403
    assert tried >= 24


def test_sglang_27315_no_key_is_told_logged_or_counted(tenants, tmp_path, caplog):
    caplog.set_level("DEBUG")
    boss, acme = tenants.add("boss", admin=True), tenants.add("acme", ["a"])
    service = small_service(tenants=tenants, audit=Audit(tmp_path / "state" / "audit", texts=True))
    with TestClient(create_app(service)) as http:
        seen = [ask(http, "a", acme), ask(http, "nobody", acme), ask(http, "a", acme[:-1])]
        admin = {"authorization": f"Bearer {boss}"}
        paths = ("/metrics", "/v1/audit", "/v1/models", "/openapi.json", "/health")
        seen += [http.get(path, headers=admin) for path in paths]
    files = b"".join(file.read_bytes() for file in (tmp_path / "state").iterdir())
    everything = "".join(got.text + str(got.headers) for got in seen) + caplog.text
    for key in (boss, acme):
        assert key.split("-", 2)[2] not in everything
        assert key.split("-", 2)[2].encode() not in files


@pytest.mark.parametrize(
    "model",
    ["../a", "/etc/passwd", "a/../b", "file:///etc", "https://x/y", "a\x00", "~", "a@../../x"],
    ids=["up", "root", "inside", "file", "web", "zero", "home", "version"],
)
def test_lorax_798_a_model_is_a_name_and_never_a_path(http, model, monkeypatch):
    opened = []
    monkeypatch.setattr("minilora.serving.adapter_files.read_adapter_files", opened.append)
    got = ask(http, model)
    assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
    assert opened == []


def test_production_stack_331_a_loaded_adapter_is_listed_and_answers_at_once(http, alone):
    for name, path in (("x", "d"), ("y", "e")):
        assert load(http, name, path).status_code == 200
        listed = [card["id"] for card in http.get("/v1/models").json()["data"]]
        assert name in listed
        assert text_of(ask(http, name)) == alone(path)
    http.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
    assert "x" not in [card["id"] for card in http.get("/v1/models").json()["data"]]
    assert ask(http, "x").status_code == 404


def test_gateway_584_a_damaged_adapter_fails_alone_and_tells_no_folder(tmp_path, alone, caplog):
    import shutil

    folder = tmp_path / "adapters" / "hot"
    shutil.copytree(FOLDERS["d"], folder)
    service = small_service()
    service.bank.load("hot", folder)
    service.bank.cache.drop(service.bank.known["hot"].content)  # as when others need the room
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    with TestClient(create_app(service)) as http:
        got = ask(http, "hot")
        assert got.status_code == 500
        assert str(tmp_path) not in got.text
        assert str(tmp_path) in caplog.text, "the owner is told"
        assert got.headers["x-request-id"] in got.text
        assert text_of(ask(http, "a")) == alone("a")


def positions(engine, monkeypatch):
    """How many positions the model computes, counted."""
    counted, forward = [0], engine.model.model.forward

    def watched(ids, *rest, **named):
        counted[0] += ids.numel()
        return forward(ids, *rest, **named)

    monkeypatch.setattr(engine.model.model, "forward", watched)
    return counted


def test_cve_2025_46570_what_another_asked_before_makes_nothing_quicker(tenants, monkeypatch):
    """The same work for the same question of another tenant; none for one's own (vllm #53347
    asks for both: without the second, a server without any cache would pass)."""
    keys = [tenants.add(name, ["a"]) for name in ("acme", "zeta")]
    service = small_service(tenants=tenants, answers=AnswerCache("base"))
    counted = positions(service.engine, monkeypatch)
    work = []
    with TestClient(create_app(service)) as http:
        for key in (keys[0], keys[1], keys[0]):
            before = counted[0]
            assert text_of(ask(http, "a", key))
            work.append(counted[0] - before)
    assert work[0] == work[1] > 0
    assert work[2] == 0


@pytest.mark.parametrize("field", ["cache_salt", "tenant", "extra_key"])
def test_vllm_53347_whose_cache_it_is_is_not_the_clients_to_say(tenants, field):
    keys = {name: tenants.add(name, ["a"]) for name in ("acme", "zeta")}
    service = small_service(tenants=tenants, answers=AnswerCache("base"))
    with TestClient(create_app(service)) as http:
        assert text_of(ask(http, "a", keys["acme"]))
        assert ask(http, "a", keys["zeta"], **{field: "acme"}).status_code == 400
        got = ask(http, "a", keys["zeta"], user="acme", metadata={field: "acme"})
        assert got.headers["x-minilora-cache"] == "miss"
        again = ask(http, "a", keys["acme"], user="somebody else")
        assert again.headers["x-minilora-cache"] == "hit"


def test_a_retry_of_the_client_is_charged_once_over_http(tenants):
    from minilora.serving.tenants import Limits

    key = tenants.add("acme", ["a"], Limits(requests=2))
    with TestClient(create_app(small_service(tenants=tenants))) as http:

        def status(id, **more):
            headers = {"authorization": f"Bearer {key}", "x-request-id": id}
            body = {"model": "a", "messages": ASKED, "max_tokens": 2, **more}
            got = http.post("/v1/chat/completions", json=body, headers=headers)
            return got.status_code, got.headers.get("retry-after")

        assert [status("mine") for _ in range(3)] == [(200, None)] * 3
        assert status("mine", max_tokens=3)[0] == 400
        assert status("other") == (200, None)
        code, seconds = status("third")
        assert (code, int(seconds) > 20) == (429, True)

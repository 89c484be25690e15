"""Names mean contents: loaded, from the hub, by alias, by the router; never a path outside."""

import shutil
import threading

import httpx
import openai
import pytest

from minilora.hub import Hub
from minilora.serving.refusals import Refused
from minilora.serving.service import Route, chosen

from .live import serving, small_service
from .small import ARCHIVE, FOLDERS, small_bank

ASKED = [{"role": "user", "content": "Hull status?"}]


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub")
    ship = [f"How is system {n} of the ship?" for n in range(20)]
    law = [f"Does clause {n} of the licence grant patents?" for n in range(20)]
    hub.push("naval", FOLDERS["a"], version="1.0.0", examples=ship)
    hub.push("naval", FOLDERS["b"], version="1.1.0", examples=ship)
    hub.push("legal", FOLDERS["c"], version="1.0.0", examples=law)
    hub.alias("naval@1.0.0", "champion")
    return hub


@pytest.fixture
def server(hub, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(FOLDERS["d"], root / "mine")
    service = small_service("a", hub=hub, router=hub.router, root=root)
    with serving(service) as address, httpx.Client(base_url=address) as http:
        http.service = service
        yield http


def ask(http, model, content="Hull status?", **settings):
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return http.post("/v1/chat/completions", json={"model": model, **body, **settings})


def load(http, name, path, **more):
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **more})


def content(folder):
    return ARCHIVE.reader.read(folder, any_base=False)[0]


def test_models_are_the_base_then_adapters(server):
    listed = [card["id"] for card in server.get("/v1/models").json()["data"]]
    assert listed == ["small", "a", "legal", "naval"]
    assert server.get("/v1/models/naval").json()["parent"] == "small"
    assert server.get("/v1/models/auto").status_code == 404


@pytest.mark.parametrize(
    ("model", "letter"),
    [
        ("naval", "a"),
        ("naval@champion", "a"),
        ("naval@1.1", "b"),
        ("naval@1.1.0", "b"),
        ("legal", "c"),
    ],
)
def test_a_name_of_the_hub_is_a_version(server, model, letter):
    got = ask(server, model)
    assert got.json()["minilora"]["digest"] == content(FOLDERS[letter])
    alone = small_bank().generate([(letter, ASKED)], max_new_tokens=8)[0]
    assert got.json()["choices"][0]["message"]["content"] == alone


def test_auto_says_which_adapter_and_why(server, hub):
    got = ask(server, "auto", "How is system 7 of the ship?").json()
    assert (got["model"], got["minilora"]["adapter"]) == ("naval", "naval@1.0.0")
    assert got["minilora"]["why"].startswith("the router chose naval:")
    got = ask(server, "auto", "Zzz?").json()
    assert (got["model"], got["minilora"]["adapter"]) == ("small", None)
    assert "the router chose the base" in got["minilora"]["why"]
    bread = [f"How long does bread number {n} bake?" for n in range(20)]
    hub.push("kitchen", FOLDERS["d"], examples=bread)
    got = ask(server, "auto", "How long does bread number 7 bake?").json()
    assert got["minilora"]["adapter"] == "kitchen@1.0.0", "as soon as it was pushed"


def test_the_router_needs_a_margin():
    assert chosen(Route(None, 0, (("a", 0.5), ("b", 0.4))), 0.2)[0] is None
    assert chosen(Route(None, 0, (("a", 0.5), ("b", 0.1))), 0.2)[0] == "a"
    assert chosen(Route(None, 0, ()), 0.2)[0] is None


def test_a_new_champion_is_for_new_requests_and_running_ones_keep_theirs(server, hub):
    """64 streams: half begin before the move, half after; each is its own adapter's solo run."""
    bank = small_bank()
    digests = {content(FOLDERS[letter]): letter for letter in "ab"}
    begun, moved = threading.Barrier(33), threading.Event()
    results = []

    def one(waits):
        with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="x") as client:
            if not waits:
                moved.wait(20)
            stream = client.chat.completions.create(
                model="naval", messages=ASKED, temperature=0, max_tokens=40, stream=True
            )
            chunks = [next(stream)]
            if waits:
                begun.wait(20)
                moved.wait(20)
            chunks += list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        results.append((waits, digests[chunks[0].minilora["digest"]], text))

    threads = [threading.Thread(target=one, args=(number < 32,)) for number in range(64)]
    for thread in threads:
        thread.start()
    begun.wait(20)
    hub.alias("naval@1.1.0", "champion")
    moved.set()
    for thread in threads:
        thread.join()
    alone = {letter: bank.generate([(letter, ASKED)], max_new_tokens=40)[0] for letter in "ab"}
    assert alone["a"] != alone["b"]
    assert sorted(results) == sorted(
        [(True, "a", alone["a"])] * 32 + [(False, "b", alone["b"])] * 32
    )


def test_a_hub_that_was_made_anew_is_not_answered_for_by_the_old_one(server, hub):
    """One number, other content: the server has had the first in memory."""
    assert ask(server, "legal@1.0.0").headers["x-minilora-digest"] == content(FOLDERS["c"])
    shutil.rmtree(hub.folder)
    hub.push("legal", FOLDERS["d"], version="1.0.0")
    assert ask(server, "legal@1.0.0").headers["x-minilora-digest"] == content(FOLDERS["d"])


def test_loading_and_unloading_as_vllm_does(server):
    got = load(server, "mine", "mine")
    assert (got.status_code, got.text[:7]) == (200, "Success")
    assert ask(server, "mine").json()["minilora"]["digest"] == content(FOLDERS["d"])
    assert load(server, "mine", "mine").status_code == 200  # the same content changes nothing
    assert load(server, "mine", "naval@1.1.0").status_code == 400  # other content
    assert load(server, "mine", "naval@1.1.0", load_inplace=True).status_code == 200
    assert ask(server, "mine").json()["minilora"]["digest"] == content(FOLDERS["b"])
    assert server.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert ask(server, "mine").status_code == 404
    gone = server.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


OUTSIDE = ["../secret", "/etc", ".", "mine/../../secret", "link", "mine/\x00", "~", "https://x/y"]


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_no_path_leads_out_of_the_root(server, tmp_path, path):
    shutil.copytree(FOLDERS["e"], tmp_path / "secret", dirs_exist_ok=True)
    link = tmp_path / "root" / "link"
    if not link.exists():
        link.symlink_to(tmp_path / "secret")
    got = load(server, "mine", path)
    assert got.status_code in (400, 404)
    assert str(tmp_path) not in got.text.replace(path, "")
    assert "mine" not in [card["id"] for card in server.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("name", ["small", "auto", "naval", "naval@9.9.9", "../x", "a b", "x" * 65])
def test_a_name_that_is_taken_or_strange_is_refused(server, name):
    assert load(server, name, "mine").status_code == 400


def test_unknown_versions_and_foreign_names_are_one_404(server):
    answers = [
        ask(server, model) for model in ("naval@7", "naval@nobody", "nobody", "a@1.0.0", "@")
    ]
    assert {got.status_code for got in answers} == {404}
    assert {got.json()["error"]["code"] for got in answers} == {"model_not_found"}


def refusal(call, *values):
    """(status, message) of a call that is refused."""
    with pytest.raises(Refused) as refused:
        call(*values)
    return refused.value.status, refused.value.message


def test_what_cannot_be_loaded_or_routed_says_what_could_be_asked(hub, tmp_path):
    service = small_service("")
    hint = "; folders can be loaded from a server with --root"
    told = f"expected none: there is no hub, got 'mine'{hint}"
    assert refusal(service.folder, "mine") == (404, told)
    service.root = tmp_path
    told = "expected a folder under the server's --root, got 'mine'"
    assert refusal(service.folder, "mine") == (404, told)
    service.root, service.hub = None, hub
    assert refusal(service.folder, "a/b") == (404, f"expected a name of the hub, got 'a/b'{hint}")
    assert service.folder("naval@1.0.0").is_dir()
    assert refusal(service.find, "auto", None)[0] == 400

    def router():
        raise ValueError("no adapter has examples")

    service.router = router
    assert refusal(service.find, "auto", None) == (400, "auto: no adapter has examples")

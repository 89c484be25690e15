"""The page, driven in Chromium: real chats, two adapters, a new champion, keys that end."""

import re
import shutil

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from starlette.testclient import TestClient

from minilora.hub import Hub
from minilora.serving.app import create_app
from minilora.serving.assignment import Experiment
from minilora.serving.experiments import Experiments
from minilora.serving.page_routes import PAGE, page
from minilora.serving.tenants import Limits, Tenants

from .live import serving, small_service
from .small import FOLDERS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
driven = pytest.mark.skipif(
    CHROMIUM is None, reason="the page was not opened: chromium is missing (apt-get install it)"
)


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub")
    hub.push("naval", FOLDERS["a"], version="1.0.0")
    hub.alias("naval@1.0.0", "champion")
    hub.push("naval", FOLDERS["b"], version="2.0.0")
    return hub


@pytest.fixture
def tenants(tmp_path):
    with Tenants(tmp_path / "keys" / "keys.sqlite") as tenants:
        yield tenants


@pytest.fixture(autouse=True)
def patient():
    """The machine may be busy."""
    expect.set_options(timeout=30_000)


@pytest.fixture
def address(hub, tenants):
    with serving(small_service("a", hub=hub, tenants=tenants)) as address:
        yield address


@pytest.fixture
def tab():
    """A browser's tab; what it complains of is an error of the test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, complaints = browser.new_page(), []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.complaints = complaints
        yield page
        browser.close()


def ask(tab, words):
    tab.fill("#words", words)
    tab.press("#words", "Enter")
    tab.wait_for_selector("#send:not([disabled])")


@driven
@pytest.mark.slow
def test_a_chat_with_two_adapters_says_who_answered_and_asks_nobody_else(tab, address):
    tab.goto(address)
    tab.wait_for_selector("#state:has-text('2 adapters on small')")
    tab.click("#beside")
    tab.select_option("#model0", "a")
    tab.select_option("#model1", "naval")
    ask(tab, "Hull status?")
    for side, name in enumerate(("a", "naval@1.0.0")):
        note = tab.locator("#sides > div").nth(side).locator(".log .soft")
        expect(note).to_contain_text(f"{name} ")
        expect(note).to_contain_text("ms to the first piece")
        body = {"model": "a" if side == 0 else "naval", "temperature": 0, "max_tokens": 64}
        body["messages"] = [{"role": "user", "content": "Hull status?"}]
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).json()
        shown = tab.locator("#sides > div").nth(side).locator(".turn:not(.user)").text_content()
        assert shown == reply["choices"][0]["message"]["content"]
    own = [line for line in tab.complaints if line.startswith((address, "data:"))]
    assert tab.complaints == own
    tab.click("#tab-now")
    expect(tab.locator("#gauges")).to_contain_text(re.compile("rows in use ?0 of 8"))
    expect(tab.locator("#gauges")).to_contain_text("naval")


@driven
@pytest.mark.slow
def test_a_version_is_promoted_from_its_card_and_a_stale_page_is_told(tab, address, hub):
    tab.goto(address)
    tab.click("#tab-adapters")
    expect(tab.locator("#cards")).to_contain_text("made from")
    tab.click("text=Make it the champion")
    expect(tab.locator("#cards td:has-text('champion')")).to_have_count(1)
    expect(tab.locator("#cards")).to_contain_text("2.0.0champion")
    assert hub.show("naval@champion").version == "2.0.0"
    hub.push("naval", FOLDERS["c"], version="3.0.0")
    tab.click("#tab-adapters")
    expect(tab.locator("text=Make it the champion")).to_have_count(2)
    hub.alias("naval@1.0.0", "champion")  # somebody else was faster
    tab.locator("text=Make it the champion").first.click()
    expect(tab.locator("#cards [role=alert]")).to_contain_text("champion")
    assert hub.show("naval@champion").version == "1.0.0"


@driven
@pytest.mark.slow
def test_a_key_lives_in_the_tab_and_its_end_is_said(tab, address, tenants):
    key = tenants.add("acme", ["naval"], Limits())
    tab.goto(address)
    expect(tab.locator("#state")).to_contain_text("a key is needed")
    tab.fill("#key", key)
    tab.click("#keyform button")
    expect(tab.locator("#state")).to_contain_text("1 adapter on small")
    ask(tab, "Hull status?")
    expect(tab.locator(".log .soft")).to_contain_text("naval@1.0.0")
    tab.click("#tab-now")
    expect(tab.locator("#gauges")).to_contain_text("admin's key")
    tenants.revoke(key)
    tab.click("#tab-chat")
    ask(tab, "And fuel?")
    expect(tab.locator(".log .bad")).to_contain_text("unknown, revoked or expired")
    tab.reload()
    assert tab.input_value("#key") == ""
    assert tab.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@driven
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_phone_and_works_by_keyboard(tab, address, width):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto(address)
    tab.wait_for_selector("#state:has-text('adapters')")
    tab.focus("#tab-chat")
    for name in ("adapters", "now", "experiments", "training", "chat"):
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.id") == f"tab-{name}"
        expect(tab.locator(f"#{name}")).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    fields = "[...document.querySelectorAll('input, textarea, select')]"
    assert tab.evaluate(f"{fields}.filter(e => !e.labels.length).length") == 0


@driven
@pytest.mark.slow
def test_what_a_model_says_is_text_and_never_html(tab, address):
    tab.goto(address)
    tab.wait_for_selector("#state:has-text('adapters')")
    ask(tab, "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>")
    assert tab.title() == "minilora"
    assert tab.locator(".log img, .log script").count() == 0


WORKERS = """
minilora_rows{worker="worker-0"} 8.0
minilora_rows{worker="worker-1"} 8.0
minilora_rows_running{worker="worker-0"} 3.0
minilora_rows_running{worker="worker-1"} 2.0
minilora_waiting{worker="worker-1"} 7.0
minilora_requests_total{model="a",status="200",worker="worker-0"} 1.0
minilora_requests_total{model="a",status="200",worker="worker-1"} 3.0
minilora_tokens_total{kind="generated",model="a",worker="worker-0"} 20.0
minilora_tokens_total{kind="generated",model="a",worker="worker-1"} 22.0
minilora_first_token_seconds_bucket{le="0.5",model="a",worker="worker-0"} 1.0
minilora_first_token_seconds_bucket{le="2.5",model="a",worker="worker-0"} 1.0
minilora_first_token_seconds_bucket{le="0.5",model="a",worker="worker-1"} 0.0
minilora_first_token_seconds_bucket{le="2.5",model="a",worker="worker-1"} 3.0
"""


@driven
@pytest.mark.slow
def test_behind_a_gateway_it_shows_all_workers_together(tab, address):
    tab.route("**/metrics", lambda route: route.fulfill(body=WORKERS))
    tab.goto(address)
    tab.click("#tab-now")
    expect(tab.locator("#gauges")).to_contain_text(re.compile("rows in use ?5 of 16"))
    expect(tab.locator("#gauges")).to_contain_text("waiting7")
    expect(tab.locator("#gauges")).to_contain_text("a442≤ 2.5 s≤ 2.5 s")


@driven
@pytest.mark.slow
def test_an_experiment_is_shown_with_its_evidence_and_in_the_dark(tab, tmp_path):
    experiments = Experiments(tmp_path / "state")
    experiments.start(Experiment("greeting", "a", {"old": "b", "new": "c"}))
    for number in range(60):
        drawn = experiments.assign("a", f"user {number}")
        experiments.record(drawn, f"request {number}")
        experiments.outcome(f"request {number}", float(drawn.arm == "new"))
    with serving(small_service(experiments=experiments)) as address:
        tab.emulate_media(color_scheme="dark")
        tab.goto(address)
        tab.click("#tab-experiments")
        expect(tab.locator("#trials h2")).to_have_text("greeting")
        expect(tab.locator("#trials")).to_contain_text("new is better")
        expect(tab.locator("#trials svg[role=img]")).to_have_attribute(
            "aria-label", re.compile("log10 E by pairs.*: from ")
        )
        paper = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(paper) == "rgb(21, 25, 30)"


def test_the_page_names_nothing_outside_and_may_load_nothing():
    text, policy = page()
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in policy
    assert "'unsafe-" not in policy
    assert ".innerHTML" not in text
    assert PAGE.stat().st_size < 40_000


def test_versions_and_the_champion_over_http(address, hub, tenants):
    url = f"{address}/v1/adapters/naval"
    cards = httpx.get(url).json()["data"]
    assert [(card["version"], card["aliases"]) for card in cards] == [
        ("2.0.0", []),
        ("1.0.0", ["champion"]),
    ]
    assert httpx.get(f"{address}/v1/adapters/a").json()["data"][0]["digest"]
    assert httpx.get(f"{address}/v1/adapters/nobody").status_code == 404
    wrong = httpx.post(f"{url}/champion", json={"version": "2.0.0", "expected": "9.9.9"})
    assert wrong.status_code == 409
    assert httpx.post(f"{url}/champion", json={"version": "7.0.0"}).status_code == 404
    right = httpx.post(f"{url}/champion", json={"version": "2.0.0", "expected": "1.0.0"})
    assert right.json() == {"name": "naval", "champion": "2.0.0", "before": "1.0.0"}
    acme = {"authorization": f"Bearer {tenants.add('acme', ['other'], Limits())}"}
    assert httpx.get(url, headers=acme).status_code == 404
    body = {"version": "1.0.0", "expected": "2.0.0"}
    assert httpx.post(f"{url}/champion", json=body, headers=acme).status_code == 403


def test_a_server_without_a_hub_has_the_page_and_no_champions():
    with TestClient(create_app(small_service("a"))) as http:
        got = http.get("/")
        assert (got.status_code, got.text) == (200, page()[0])
        assert got.headers["content-security-policy"] == page()[1]
        assert "/" not in http.app.openapi()["paths"], "it is no part of the API"
        (card,) = http.get("/v1/adapters/a").json()["data"]
        assert (card["version"], len(card["digest"])) == (None, 64)
        wanted = http.post("/v1/adapters/a/champion", json={"version": "1.0.0"})
        assert (wanted.status_code, "no hub" in wanted.text) == (404, True)

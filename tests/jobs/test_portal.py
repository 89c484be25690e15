"""From a file to a champion by the page alone, in Chromium: check, start, cancel, watch, test
beside the base, promote.
"""

import threading

import pytest
from playwright.sync_api import expect

import minilora
from minilora.hub import Hub
from minilora.jobs import Worker
from minilora.jobs.api import fine_tuning_router
from minilora.serving import AdapterBank, Engine, Service

from ..serving.live import serving
from ..serving.test_page import ask, driven, tab

assert tab  # a fixture


@driven
@pytest.mark.slow
def test_a_file_becomes_a_champion(tab, naval, queue, tmp_path):
    expect.set_options(timeout=60_000)
    bank, hub = AdapterBank(minilora.load_base()), Hub(tmp_path / "hub")
    service = Service(Engine(bank, 4), bank, hub=hub)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user"}]}\n', encoding="utf-8")
    with serving(service, routers=[fine_tuning_router(service, queue)]) as address:
        tab.goto(address)
        tab.click("#tab-training")
        expect(tab.locator("#jobs")).to_contain_text("No job yet.")
        tab.fill("#suffix", "naval")
        tab.fill("#epochs", "1")
        tab.set_input_files("#file", bad)
        tab.click("#check")
        expect(tab.locator("#forecast.bad")).to_contain_text("bad.jsonl")
        assert tab.locator("#start").is_disabled()
        tab.set_input_files("#file", naval)
        tab.click("#check")
        expect(tab.locator("#forecast.good")).to_contain_text("40 examples, the longest of")
        tab.click("#start")
        tab.locator("#jobs button", has_text="Cancel").click()
        expect(tab.locator("#jobs")).to_contain_text("cancelled")
        tab.click("#check")
        expect(tab.locator("#start")).to_be_enabled()
        tab.click("#start")
        expect(tab.locator("#jobs article")).to_have_count(2)
        worker = threading.Thread(target=Worker(queue, hub.folder).run, kwargs={"until_idle": True})
        worker.start()
        worker.join()
        expect(tab.locator("#jobs")).to_contain_text("naval@1.0.0")
        expect(tab.locator("#jobs")).to_contain_text("forecast seconds")
        expect(tab.locator("#jobs")).to_contain_text("time so far")
        expect(tab.locator("#jobs svg path.curve")).to_be_visible()
        tab.locator("text=Test and promote").click()
        tab.click("text=Test beside the base")
        ask(tab, "Hull status?")
        for side, name in enumerate(("minilora-base", "naval@1.0.0")):
            note = tab.locator("#sides > div").nth(side).locator(".log .soft")
            expect(note).to_contain_text(f"{name} ")
        tab.click("#tab-adapters")
        tab.click("text=Make it the champion")
        expect(tab.locator("#cards")).to_contain_text("1.0.0champion")
        assert hub.show("naval@champion").version == "1.0.0"
    assert [job.status for job in queue.jobs("local")] == ["succeeded", "cancelled"]

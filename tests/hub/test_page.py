"""The page is whole, needs nothing from outside, and shows what people wrote as they wrote it."""

import warnings
from html.parser import HTMLParser

import pytest

from minilora.hub import Hub
from minilora.hub.page import lanes, lineage_graph, write_page

from .adapters import make_adapter

VOID = {"meta"}  # never closed
EVIL = '<script>alert("x")</script>'


class Tags(HTMLParser):
    """The text, and whether every tag that opens closes in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    hub = Hub(tmp_path / "hub", creator=EVIL)
    facts = {"description": EVIL, "tags": [EVIL], "metrics": {EVIL: 0.5, "exact": -1}, "task": EVIL}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub.push("naval", make_adapter(tmp_path / "mine"), metadata={**facts, "parent": EVIL})
        hub.push("naval", make_adapter(tmp_path / "mine", 1))
        hub.push("legal", make_adapter(tmp_path / "mine", 1))
    hub.compress("naval")
    hub.alias("naval@1.0.0", "champion")
    return write_page(hub, tmp_path / "hub.html").read_text(encoding="utf-8")


def test_every_tag_closes_and_nothing_that_was_written_runs(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "<script" not in page
    assert EVIL in tags.text
    assert {"1.0.0", "1.0.1+nf4", "champion", "legal"} <= set(tags.text)


def test_it_asks_for_nothing_from_outside(page):
    tags = Tags()
    tags.feed(page)
    assert not {"src", "href", "onload"} & {name for name, _ in tags.attributes}
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_an_empty_hub_has_a_page(tmp_path):
    from minilora.hub.page import hub_page

    assert "Nothing was pushed yet" in hub_page([])


def test_the_graph_joins_every_version_to_its_parent(tmp_path):
    hub = Hub(tmp_path / "hub")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, parent in enumerate(["", "1.0.0", "1.0.0", "1.0.1", "1.0.2"]):
            told = {"parent": f"naval@{parent}"} if parent else {}
            hub.push("naval", make_adapter(tmp_path / "mine", seed), metadata=told)
    graph = lineage_graph(hub.list())
    assert graph.count("<path") == 4
    assert graph.count("<circle") == 5
    places = lanes([(each.spec, each.manifest.parent) for each in hub.list()])
    assert [lane for _, lane in places.values()] == [0, 0, 1, 0, 1]

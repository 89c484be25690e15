"""The page is whole, needs nothing from outside, and shows what people wrote as they wrote it."""

import re
import warnings
from html.parser import HTMLParser

import pytest

from minilora.hub import Hub
from minilora.hub.manifest import Manifest
from minilora.hub.page import hub_page, lanes, lineage_graph, write_page
from minilora.hub.registry import Version

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
    assert "Nothing was pushed yet" in hub_page([])


def made(number, parent="", aliases=(), **facts):
    """A version as the database would give it."""
    manifest = Manifest("naval", number, "c0ffee", {}, {"r": 8.0}, parent=parent, **facts)
    return Version("default", manifest, "2cf2", aliases, 0.0, 0.0)


@pytest.mark.parametrize(
    ("description", "task", "line"),
    [("Speaks", "log", "Speaks — log"), ("Speaks", "", "Speaks"), ("", "log", "log"), ("", "", "")],
)
def test_a_dash_stands_only_between_two(description, task, line):
    page = hub_page([made("1.0.0", description=description, task=task)])
    assert f"</h2>\n<p>{line}</p>" in page
    assert "Nothing was pushed yet" not in page


def test_a_bar_is_the_share_of_the_largest_score():
    scores = {"1.0.0": 8.0, "1.0.1": 2.0, "1.0.2": -1.0, "1.0.3": 0.0}
    page = hub_page([made(number, metrics={"bits": score}) for number, score in scores.items()])
    bars = re.findall(r"<b>([\d.]+)</b>.*?width:(\d+)%", page)
    assert dict(bars) == {"1.0.0": "100", "1.0.1": "25", "1.0.2": "0", "1.0.3": "0"}
    assert "width:0%" in hub_page([made("1.0.0", metrics={"exact": 0.0})]), "no score but 0"


def test_the_graph_is_drawn_inside_and_goes_from_left_to_right():
    """Every line from its parent's dot to its own; dots and labels within the picture."""
    parents = {"1.0.0": "", "1.0.1": "1.0.0", "1.0.2": "1.0.0", "1.0.3": "1.0.2", "1.0.4": "0.9.0"}
    aliases = {"1.0.1": ("champion", "old")}
    graph = lineage_graph(
        [
            made(number, f"naval@{parent}" if parent else "", aliases.get(number, ()))
            for number, parent in parents.items()
        ]
    )
    width, height = map(float, re.search(r'width="(\d+)" height="(\d+)"', graph).groups())
    circles = re.findall(r'<circle class="(\w*)" cx="(\d+)" cy="(\d+)" r="(\d+)"/>', graph)
    spots = dict(zip(parents, ((float(x), float(y)) for _, x, y, _ in circles), strict=True))
    assert [x for x, _ in spots.values()] == sorted({x for x, _ in spots.values()})
    assert all(8 < x < width - 8 and 8 < y < height - 8 for x, y in spots.values())
    ends = re.findall(r'd="M(\d+) (\d+) .*? L(\d+) (\d+)"', graph)
    lines = {((float(a), float(b)), (float(c), float(d))) for a, b, c, d in ends}
    joined = [(spots[p], spots[v]) for v, p in parents.items() if p in spots]
    assert lines == set(joined)
    assert [kind for kind, *_ in circles] == ["", "named", "", "", ""]
    labels = re.findall(r'<text class="(\w*)" x="(\d+)" y="(\d+)"[^>]*>([^<]*)<', graph)
    assert all(0 < float(x) < width and 12 < float(y) < height for _, x, y, _ in labels)
    for number, (x, y) in spots.items():
        [(under, _)] = [(float(b), text) for _, a, b, text in labels if text == number]
        assert y + 8 < under < y + 30
        above = [text for _, a, b, text in labels if float(a) == x and float(b) < y]
        expected = {"1.0.1": ["champion, old"], "1.0.4": ["from naval@0.9.0"]}
        assert above == expected.get(number, [])


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

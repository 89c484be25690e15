"""The router's benchmark, small: its texts are read, its contestants judged, its figures drawn."""

import json
import sys
import zipfile

import pytest

from benchmarks import router as benchmark
from benchmarks.router_texts import licence_topics, wordnet_topics


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "TOPICS", 4)
    monkeypatch.setattr(benchmark, "FOREIGN", 1)


def notice(topic, number):
    """A rule file of licensedcode-data, in its form."""
    head = f"---\nlicense_expression: {topic}\nis_license_notice: yes\n---\n"
    words = "abcdefghij"[number % 10] * 4 + " " + "klmnopqrst"[number // 10] * 4
    return f"{head}\nThis file {words} is under the {topic} licence, as it says there.\n"


@pytest.fixture
def wheel(tmp_path):
    file = tmp_path / "texts.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for topic in ("mit", "bsd", "gpl", "zlib", "isc", "rare"):
            for number in range(3 if topic == "rare" else 20):
                name = f"licensedcode/data/rules/{topic}_{number}.RULE"
                archive.writestr(name, notice(topic, number))
            archive.writestr(f"licensedcode/data/rules/{topic}_x.RULE", notice("mit or gpl", 1))
    return file


def test_notices_are_read_by_licence(wheel):
    topics = licence_topics(wheel, 5)
    assert sorted(topics) == ["bsd", "gpl", "isc", "mit", "zlib"]
    assert {len(texts) for texts in topics.values()} == {20}
    assert topics["mit"][0] == "This file aaaa kkkk is under the mit licence, as it says there."


def test_branches_of_nouns_do_not_overlap(tmp_path):
    lines = ["  1 The licence of the database."]
    for root in (1, 2):
        lines.append(f"{root:08} 03 n 01 root_{root} 0 000 | the root")
        for leaf in range(120):
            number = root * 1000 + leaf
            lines.append(f"{number:08} 03 n 01 leaf_{leaf} 0 001 @ {root:08} n 0000 | one of many")
    (tmp_path / "data.noun").write_text("\n".join(lines))
    topics = wordnet_topics(tmp_path, 5)
    assert [len(texts) for texts in topics.values()] == [121, 121]
    assert topics["root 1 00000001"][1] == "leaf 0: one of many"


def test_it_runs_and_keeps_what_it_found(small, wheel, tmp_path, monkeypatch, capsys):
    words = ["router", "--licences", str(wheel), "--seeds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path)])
    benchmark.main()
    rows = json.loads((tmp_path / "cpu" / "router.json").read_text())["rows"]
    assert [row["contestant"] for row in rows] == ["router", "centroid", "keywords"]
    assert rows[0]["accuracy"] == 1.0
    assert rows[0]["microseconds"] > 0
    assert (tmp_path / "cpu" / "router.png").exists()
    assert "µs a question" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_compression_runs(tmp_path, monkeypatch, capsys):
    from benchmarks import compression

    words = ["compression", "--seeds", "0", "--steps", "1", "--logs", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path)])
    compression.main()
    rows = json.loads((tmp_path / "cpu" / "compression.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["float32", "fp16", "nf4"]
    assert capsys.readouterr().out.count("exact") == 3

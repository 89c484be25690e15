"""The same rows come out of every container, each with its line; a file that is none is named."""

import csv
import gzip
import io
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.training.data_files import rows_of

# what UTF-8 can hold; a lone \r is a line end to every reader of tables
text = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1)
rows = st.lists(st.fixed_dictionaries({"prompt": text, "completion": text}), min_size=1, max_size=5)


def as_table(rows, delimiter):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(["prompt", "completion"])
    writer.writerows([row["prompt"], row["completion"]] for row in rows)
    return file.getvalue()


CONTAINERS = {
    "lines.jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "windows.jsonl": lambda rows: "\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows),
    "array.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
    "short.json": json.dumps,
    "array.jsonl": lambda rows: json.dumps(rows, indent=2),
    "lines.json": lambda rows: "\n\n".join(map(json.dumps, rows)),
    "one-after-the-other.json": lambda rows: "\n".join(json.dumps(r, indent=1) for r in rows),
    "wrapped.json": lambda rows: json.dumps({"data": rows}),
    "wrapped-long.json": lambda rows: json.dumps({"version": 1, "data": rows}, indent=1),
    "table.csv": lambda rows: as_table(rows, ","),
    "excel.csv": lambda rows: as_table(rows, ";"),
    "table.tsv": lambda rows: as_table(rows, "\t"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", CONTAINERS)
@given(rows=rows, packed=st.booleans())
def test_rows_survive_every_container(tmp_path_factory, name, encoding, rows, packed):
    content = CONTAINERS[name](rows).encode(encoding)
    file = tmp_path_factory.mktemp("data") / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    read = list(rows_of(file))
    assert [row.problem for row in read] == [""] * len(rows)
    assert [row.value for row in read] == rows


def test_each_row_has_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n\n{broken\n{"text": "b"}\n')
    (tmp_path / "b.json").write_text('[\n {"text":\n "a"},\n\n {"text": "b"}]')
    (tmp_path / "c.csv").write_text('text\n"one\ntwo"\nthree\n')
    places = [row.where.rpartition("/")[2] for row in rows_of(tmp_path)]
    assert places == [
        *(f"a.jsonl, line {n}" for n in (2, 4, 5)),
        *(f"b.json, line {n}" for n in (2, 5)),
        *(f"c.csv, line {n}" for n in (2, 4)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("a.jsonl", '{broken\n{"text": "a"}', ["not valid JSON .*'{broken'", ""]),
        ("a.json", '[{"text": "a"},\n{"te', ["", "not valid JSON .* reading ends here"]),
        ("a.json", '[\n{"text": "a"},\n', ["", "the JSON array has no end: is the file cut off?"]),
        ("a.jsonl", "[" * 100_000, ["not valid JSON .*reading ends here"]),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}", ["not valid JSON"]),
        ("a.csv", "a,b\n1,2\n3\n", ["", r"1 cells, the header has 2 \['a', 'b'\]"]),
        ("a.csv", "a,b\n1,2,3\n", ["3 cells, the header has 2 .* without quotes"]),
        ("a.csv", 'a,b\n1,"2\n', ["not valid CSV .* a quote that is not closed"]),
    ],
)
def test_a_broken_row_is_one_with_a_problem(tmp_path, name, content, problems):
    (tmp_path / name).write_text(content)
    read = list(rows_of(tmp_path / name))
    assert len(read) == len(problems)
    for row, problem in zip(read, problems, strict=True):
        assert bool(row.problem) == bool(problem)
        assert re.search(problem, row.problem)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"PK\x03\x04", "is a zip archive or an Excel table: unpack it"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}', mtime=0)[:-9],
            "is a gzip file that is damaged",
        ),
        ("a.jsonl.gz", gzip.compress(b"BZh9", mtime=0), "is a bzip2 file"),
        ("a.pkl", b"\x80\x04\x95", "is a pickle, which could run code"),
        ("a.jsonl", '{"text": "ä"}'.encode("utf-16-le"), "UTF-16 text without its mark"),
        ("a.jsonl", b'{"a": 1}\n{"text": "\xe4"}', r"not UTF-8 text \(byte e4 in line 2\)"),
        ("a.jsonl", b"\xff\xfea", "is not UTF-16 text"),
        ("a.txt", b"Once upon a time", 'is plain text: expected JSON, one {"text"'),
        ("a.csv", b"a,a\n1,2\n", "the header names 'a' twice"),
        ("a.parquet", b"PAR1 and no more PAR1", "is a parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_as_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(rows_of(tmp_path / name))


def test_a_folder_is_read_in_the_order_of_its_names_and_only_its_data(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.JSONL", "deep/c.jsonl", ".hidden.jsonl", "README.md"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert [row.value["text"] for row in rows_of(tmp_path)] == [
        "a.JSONL",
        "b.jsonl",
        "deep/c.jsonl",
    ]


@pytest.mark.parametrize("name", ["valid.jsonl", "data/test-00000-of-00001.json", "my_dev.csv"])
def test_a_folder_with_a_held_out_side_is_not_trained_on_whole(tmp_path, name):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"text": "a"}')
    with pytest.raises(ValueError, match="a folder with a held-out side .* --valid FILE"):
        list(rows_of(tmp_path))


def test_a_folder_without_data_and_a_missing_file_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without a data file: expected \.jsonl"):
        list(rows_of(tmp_path))
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        list(rows_of(tmp_path / "none.jsonl"))


def test_the_limit_of_csv_fields_is_lifted_and_put_back(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "word " * 100_000)
    before = csv.field_size_limit()
    assert len(next(rows_of(tmp_path / "a.csv")).value["text"]) == 500_000
    list(rows_of(tmp_path / "a.csv"))
    assert csv.field_size_limit() == before


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy!"}]
    wanted = [{"messages": talk, "id": None}, {"messages": talk[:1], "id": 3}]
    parquet.write_table(pyarrow.Table.from_pylist(wanted), tmp_path / "a.parquet")
    assert [row.value for row in rows_of(tmp_path)] == wanted
    assert [row.where[-5:] for row in rows_of(tmp_path)] == ["row 1", "row 2"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="which pyarrow reads: pip install pyarrow"):
        list(rows_of(tmp_path / "a.parquet"))

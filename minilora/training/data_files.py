"""Rows of a data file: JSON lines, a JSON array, CSV, TSV, parquet; each of them gzipped too.

    path  ──bytes──>  gunzipped  ──text──>  rows, each with its line, or with why it cannot be read

A file is taken for what its content says, not for what its name says: ``data.json`` may hold one
object a line, ``data.jsonl`` one array over many lines. Only commas and tabs go by the name. One
broken row is a ``Row`` with a problem, because the rest of the file is still good; a file that
cannot be read at all is a ``ValueError`` that names what it is.

Left out: anything that could run code (pickle, datasets' scripts), archives of several files.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
ELSEWHERE = ("valid", "val", "validation", "dev", "test", "eval", "heldout")  # not to train on
MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel table: unpack it, or save the table as CSV",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it with zstd -d",
    b"\xfd7zXZ\x00": "an xz file: unpack it with xz -d",
    b"BZh": "a bzip2 file: unpack it with bunzip2",
    b"ARROW1": "an Arrow file: save it with datasets' to_json, or as parquet",
    b"SQLite format 3": "an SQLite database: export the table as CSV",
    b"%PDF": "a PDF: it has pages, not examples",
    b"\x80\x04\x95": "a pickle, which could run code when it is read: write JSON lines",
    b"\x80\x05\x95": "a pickle, which could run code when it is read: write JSON lines",
}
WRAPPERS = ("data", "train", "rows", "examples", "items")  # {"data": [row, row]}


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and its value, or why there is none."""

    where: str
    value: Any = None
    problem: str = ""


def rows_of(path: str | Path) -> Iterator[Row]:
    """The rows of a file, or of every data file in a folder, in the order of their names.

    Raises ``ValueError`` when a file cannot be read as any of the forms.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "my.csv").write_text("prompt,completion\\nHi,Ahoy!\\n")
    ...     [row.value for row in rows_of(folder)]
    [{'prompt': 'Hi', 'completion': 'Ahoy!'}]
    """
    path = Path(path)
    if not path.is_dir():
        yield from rows_of_file(path, path.as_posix())
        return
    files = [file for file in sorted(path.rglob("*")) if is_data_file(file, path)]
    if not files:
        raise ValueError(f"{path} is a folder without a data file: expected {', '.join(SUFFIXES)}")
    held_out = [file for file in files if set(words(file, path)) & set(ELSEWHERE)]
    if held_out and len(held_out) < len(files):
        raise ValueError(
            f"{path} is a folder with a held-out side ({held_out[0].relative_to(path)}), which "
            "must not be trained on: name the files, --data FILE --valid FILE"
        )
    for file in files:
        yield from rows_of_file(file, file.as_posix())


def is_data_file(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is read: by its name, hidden ones and folders aside."""
    inside = file.relative_to(folder)
    name = file.name.lower().removesuffix(".gz")
    hidden = any(part.startswith(".") for part in inside.parts)
    return file.is_file() and not hidden and name.endswith(SUFFIXES)


def words(file: Path, folder: Path) -> list[str]:
    """The words of a file's path in its folder: ``valid-00000-of-00001.parquet`` has ``valid``."""
    path = file.relative_to(folder).as_posix().lower()
    return "".join(letter if letter.isalnum() else " " for letter in path).split()


def rows_of_file(path: Path, name: str) -> Iterator[Row]:
    """The rows of one file; ``name`` stands in front of each line number."""
    content = read_bytes(path)
    if content.startswith(b"PAR1"):
        yield from parquet_rows(content, name)
        return
    text, suffix = decode(content, path), Path(path.name.lower().removesuffix(".gz")).suffix
    if text.lstrip()[:1] in ("{", "["):
        yield from json_rows(text, name)
    elif suffix in (".csv", ".tsv"):
        yield from csv_rows(text, name, "\t" if suffix == ".tsv" else "")
    elif suffix in (".json", ".jsonl", ".ndjson") or not text.strip():
        yield from line_rows(text, name)
    else:
        raise ValueError(
            f'{path} is plain text: expected JSON, one {{"text": "…"}} or {{"instruction": "…", '
            '"output": "…"} a line, or a table named .csv or .tsv'
        )


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, gunzipped; ``ValueError`` for a kind of file that is not read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a gzip file that is damaged: {error}") from error
    for magic, kind in MAGIC.items():
        if content.startswith(magic):
            raise ValueError(f"{path} is {kind}")
    return content


def decode(content: bytes, path: Path) -> str:
    """The text of a file, in UTF-8, or in UTF-16 where it begins with its mark."""
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        encoding = "utf-32"
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\x00" in content[:1000]:
        raise ValueError(
            f"{path} holds zero bytes: UTF-16 text without its mark, or no text; save it as UTF-8"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {content[error.start : error.start + 1].hex()} in line {line}"
        raise ValueError(
            f"{path} is not {encoding.upper().removesuffix('-SIG')} text ({byte}): save it as UTF-8"
        ) from error
    return text


def json_rows(text: str, name: str) -> Iterator[Row]:
    """One value a line where the first line is one; else an array, or values over many lines."""
    first = next(line for line in text.split("\n") if line.strip())
    value, problem = parse(first)
    whole = text.strip() == first.strip()
    if problem or (whole and isinstance(value, list)):
        yield from spread_rows(text, name)
    elif whole and (rows := wrapped(value)) is not None:
        yield from (Row(f"{name}, row {number}", row) for number, row in enumerate(rows, 1))
    else:
        yield from line_rows(text, name)


def line_rows(text: str, name: str) -> Iterator[Row]:
    """One JSON value a line. Not ``splitlines``: JSON text may hold U+2028."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value, problem = parse(line)
            yield Row(f"{name}, line {number}", value, problem)


def spread_rows(text: str, name: str) -> Iterator[Row]:
    """The elements of an array over many lines, or objects one after the other.

    A value that is broken ends the reading, since nobody knows where the next one begins; if it is
    the very first of a file that is no array, the file is read line by line.
    """
    decoder, place, line = json.JSONDecoder(), skip(text, 0), 1
    is_array, before = text[place] == "[", 0
    place += is_array
    while (place := skip(text, place)) < len(text) and text[place] != "]":
        line, before = line + text.count("\n", before, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            if before == skip(text, 0) and not is_array:
                yield from line_rows(text, name)
                return
            yield Row(
                f"{name}, line {line}", problem=f"not valid JSON ({error}); reading ends here"
            )
            return
        if not is_array and before == skip(text, 0) and (rows := wrapped(value)) is not None:
            yield from (Row(f"{name}, row {number}", row) for number, row in enumerate(rows, 1))
        else:
            yield Row(f"{name}, line {line}", value)
    if is_array and place >= len(text):
        yield Row(f"{name}, line {line}", problem="the JSON array has no end: is the file cut off?")


def skip(text: str, place: int) -> int:
    """The place of the next character that is neither a space nor a comma."""
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def parse(line: str) -> tuple[Any, str]:
    """A line of JSON as its value, or why it has none."""
    try:
        return json.loads(line), ""
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON ({error}): {line.strip()[:60]!r}"


def wrapped(value: Any) -> list[Any] | None:
    """The rows inside ``{"data": [row, row]}``; None for a row itself."""
    lists = [key for key in value if key in WRAPPERS] if isinstance(value, dict) else []
    if len(lists) != 1 or not isinstance(rows := value[lists[0]], list):
        return None
    return rows if all(isinstance(row, dict) for row in rows) else None


def csv_rows(text: str, name: str, delimiter: str) -> Iterator[Row]:
    """The rows of a table with a header; each begins on the line after the one before it."""
    header = text.lstrip().split("\n", 1)[0]
    if not delimiter:  # some countries' Excel writes semicolons
        delimiter = max(",;\t", key=header.count)
    before = csv.field_size_limit(max(len(text), 1))  # the default is 128 kB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in next(reader)]
        if repeated := [a for a, b in pairwise(sorted(columns)) if a == b]:
            raise ValueError(f"{name}: the header names {repeated[0]!r} twice: {columns}")
        while True:
            where = f"{name}, line {reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(where, problem=f"not valid CSV ({error}): a quote that is not closed?")
                return
            if len(cells) not in (0, len(columns)):
                problem = f"{len(cells)} cells, the header has {len(columns)} {columns}"
                yield Row(where, problem=f"{problem}: a comma or a line end without quotes?")
            elif cells:
                yield Row(where, dict(zip(columns, cells, strict=True)))
    finally:
        csv.field_size_limit(before)


def parquet_rows(content: bytes, name: str) -> Iterator[Row]:
    """The rows of a parquet file, where pyarrow is installed."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f"{name} is a parquet file, which pyarrow reads: pip install pyarrow, or save it as "
            "JSON lines"
        ) from error
    number = 0
    try:
        for batch in ParquetFile(io.BytesIO(content)).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(f"{name}, row {number}", value)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{name} is a parquet file that is damaged: {error}") from error

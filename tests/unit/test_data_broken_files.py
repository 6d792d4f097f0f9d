"""Files and rows that cannot be read: each is named with its reason, whatever a file holds."""

import bz2
import gzip
import json
import lzma
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import Task
from finetune_trainer.prepare.data import lines
from finetune_trainer.prepare.data.chunks import chunks, read_records
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.examples import examples
from finetune_trainer.prepare.data.formats import LONGEST_LINE, Code, Format, Row
from finetune_trainer.prepare.data.shapes import columns_of
from tests.unit.test_data_files import ROWS, TEXT, arrow, csv_of, jsonl, open_as, parquet, records, refusal

# ---------------------------------------------------------------- files that cannot be read


def cut(content: bytes, share: float = 0.6) -> bytes:
    return content[: int(len(content) * share)]


LONG = jsonl([{"text": f"{index * 7919}"} for index in range(30_000)])
REFUSED: dict[str, tuple[str, bytes, dict[str, Any], str, str]] = {
    "gzip cut short": ("x.jsonl.gz", cut(gzip.compress(LONG)), {}, "TruncatedFile", "before its end mark"),
    "zstd cut short": ("x.jsonl.zst", cut(zstandard.compress(LONG)), {}, "TruncatedFile", "before its end mark"),
    "gzip with a bit turned": (
        "x.jsonl.gz",
        gzip.compress(LONG)[:-8] + b"\0" * 8,
        {},
        "DamagedFile",
        "the gzip data is damaged",
    ),
    "zstd with bytes turned": (
        "x.jsonl.zst",
        zstandard.ZstdCompressor(write_checksum=True).compress(LONG)[:-4] + b"\0" * 4,
        {},
        "DamagedFile",
        "the zstd data is damaged",
    ),
    "an array cut short": ("x.json", cut(json.dumps(ROWS).encode()), {}, "TruncatedFile", "the file ends after"),
    "an array cut between rows": ("x.json", b'[{"a": 1},', {}, "TruncatedFile", "the file ends after 1 rows"),
    "an array that stops": ("x.json", b'[{"a": 1}', {}, "TruncatedFile", "the file ends after 1 rows"),
    "an array with a last comma": ("x.json", b'[{"a": 1},\n]', {}, "TrailingComma", "line 2 column 1"),
    "an array without a comma": ("x.json", b'[{"a": 1}\n{"a": 2}]', {}, "InvalidJSON", "line 2 column 1"),
    "an array with a broken row": ("x.json", b'[{"a": 1},\n {"a" 2}]', {}, "InvalidJSON", "row 2 is not valid JSON at"),
    "an array with more behind it": ("x.json", b'[{"a": 1}] x', {}, "InvalidJSON", "more text after the end"),
    "an array of Python's": ("x.json", b"[{'a': None}]", {}, "PythonLiteral", "row 1"),
    "an empty array": ("x.json", b"[]", {}, "EmptyFile", "no rows"),
    "lines declared as an array": ("x.json", b'{"a": 1}\n', {"declared": "json"}, "NotAnArray", "begin with '['"),
    "an array declared as lines": ("x.json", b'[{"a": 1}]', {"declared": "jsonl"}, "JSONArray", "JSON array"),
    "indented JSON": ("x.jsonl", b'{\n  "a": 1\n}\n{\n  "a": 2\n}\n', {}, "IndentedJSON", "indented JSON"),
    "nothing": ("x.jsonl", b"", {}, "EmptyFile", "empty"),
    "nothing in gzip": ("x.jsonl.gz", gzip.compress(b""), {}, "EmptyFile", "no rows"),
    "a name that tells nothing": ("x.dat", b"a b c\n", {}, "UnknownFormat", "neither the name nor the content"),
    "UTF-16 without a mark": ("x.jsonl", '{"a": "text"}'.encode("utf-16-le"), {}, "NotUTF8", "UTF-16"),
    "a hole": ("x.jsonl", b"\0" * 5000, {}, "DamagedFile", "begins with 4,096 bytes of 0"),
    "a pointer of Git LFS": (
        "x.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n",
        {},
        "GitLFSPointer",
        "not the data",
    ),
    "a web page": ("x.jsonl", b"<!DOCTYPE html><html>", {}, "WebPage", "a web page"),
    "a zip archive": ("x.csv", b"PK\x03\x04rest", {}, "NotData", "zip archive or an office document"),
    "bzip2 cut short": ("x.jsonl.bz2", cut(bz2.compress(LONG)), {}, "TruncatedFile", "the bzip2 data ends before"),
    "xz cut short": ("x.jsonl.xz", cut(lzma.compress(LONG)), {}, "TruncatedFile", "the xz data ends before"),
    "bzip2 with bytes turned": (
        "x.jsonl.bz2",
        bz2.compress(LONG)[:-10] + b"\0" * 10,
        {},
        "DamagedFile",
        "the bzip2 data is damaged",
    ),
    "UTF-16 cut within a character": (
        "x.jsonl",
        '{"a": 1}\n'.encode("utf-16")[:-1],
        {},
        "TruncatedFile",
        "the UTF-16 text ends within a character",
    ),
    "a name that says gzip": ("x.jsonl.gz", b"\x01\0\x02", {}, "NotCompressed", "the name says gzip"),
    "a table in gzip": ("x.parquet.gz", gzip.compress(parquet(ROWS)), {}, "CompressedTable", "inside gzip"),
    "half a table": ("x.parquet", cut(parquet(ROWS)), {}, "DamagedFile", "cannot be read as parquet"),
    "text called a table": ("x.parquet", b"a,b\n", {}, "DamagedFile", "cannot be read as parquet"),
    "text called an arrow file": ("x.arrow", b"a,b\n", {}, "DamagedFile", "cannot be read as arrow"),
    "a wrong delimiter": (
        "x.csv",
        b"a;b;c\n1;2;3\n",
        {"delimiter": ","},
        "WrongDelimiter",
        "one column, 'a;b;c'; the delimiter",
    ),
    "tabs in rows of other lengths": ("x.csv", b"a\tb\n1\n2\n3\n", {}, "WrongDelimiter", "seems to be '\\t'"),
    "a delimiter that nobody can tell": (
        "x.csv",
        b"a;b|c\n1;2|3\n",
        {},
        "AmbiguousDelimiter",
        "may be separated by ';' or '|'",
    ),
    "a long delimiter of CSV": ("x.csv", b"a||b\n", {"delimiter": "||"}, "InvalidDelimiter", "is one character"),
    "a delimiter of JSON lines": ("x.jsonl", b"{}", {"delimiter": ","}, "InvalidDelimiter", "has no delimiter"),
    "a header in Latin-1": ("x.csv", b"caf\xe9,b\n1,2\n", {}, "NotUTF8", "the header holds 0xe9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    name, content, given, code, message = REFUSED[case]
    seen = refusal(tmp_path, name, content, **given)
    assert seen[0] == code
    assert message in seen[1]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_what_stands_before_the_cut_is_read_and_counted(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    file = open_as(tmp_path, "x.jsonl", compress(LONG)[:-200])
    seen = []
    with pytest.raises(DataError, match=r"the .* data ends before its end mark; [\d,]+ whole lines could be read"):
        seen.extend(read_records(file))
    assert seen
    assert all(isinstance(record, Row) for record in seen)


# ---------------------------------------------------------------- rows that cannot be read

BROKEN_LINES: dict[str, tuple[bytes, Code, str]] = {
    "Python's dict": (b"{'text': 'x', 'label': None}", Code.PYTHON_LITERAL, "as Python prints it"),
    "a comma at the end of the line": (b'{"text": "x"},', Code.TRAILING_COMMA, "a comma follows the object"),
    "a comma before the bracket": (b'{"text": "x",}', Code.TRAILING_COMMA, "column 14: a comma comes before"),
    "a comma in a list": (b'{"text": ["x", ]}', Code.TRAILING_COMMA, "a comma comes before"),
    "two objects": (b'{"text": "x"}{"text": "y"}', Code.SEVERAL_OBJECTS, "several objects"),
    "a key twice": (b'{"text": "x", "text": "y"}', Code.DUPLICATE_KEY, "'text' occurs twice"),
    "a key twice within": (b'{"a": [{"b": 1, "b": 2}]}', Code.DUPLICATE_KEY, "'b' occurs twice"),
    "no quotes": (b"{text: x}", Code.INVALID_JSON, "column 2"),
    "half a line": (b'{"text": "x', Code.INVALID_JSON, "column 10"),
    "a line break within": (b'{"text": "x\ty"}', Code.INVALID_JSON, "Invalid control character"),
}


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_broken_line_says_what_its_author_did(tmp_path: Path, case: str) -> None:
    content, code, message = BROKEN_LINES[case]
    _, fault = read_records(open_as(tmp_path, "x.jsonl", b'{"text": "fine"}\n' + content + b"\n"))
    assert (fault.line, getattr(fault, "code", None)) == (2, code)
    assert message in getattr(fault, "message", "")


@pytest.mark.parametrize("case", ["a key twice", "a key twice within"])
def test_a_row_of_an_array_that_breaks_a_rule_of_ours_does_not_end_it(tmp_path: Path, case: str) -> None:
    content, code, _ = BROKEN_LINES[case]
    file = open_as(tmp_path, "x.json", b'[{"a": 1}, ' + content + b', 7, {"a": 2}]')
    assert records(file) == [(1, {"a": 1}), (2, code), (3, Code.NOT_AN_OBJECT), (4, {"a": 2})]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_line_of_100_mb_is_named_and_passed_over(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.jsonl"
    with gzip.open(path, "wb", 1) if compressed else path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"a": 2}\n')
    found = open_file(path, "x.jsonl", "spec.dataset.train")
    assert records(found) == [(1, {"a": 1}), (2, Code.LINE_TOO_LONG), (3, {"a": 2})]
    assert max(len(getattr(chunk, "piece").data or b"") for chunk in chunks(found)) < 2 * LONGEST_LINE  # noqa: B009


def test_a_quote_that_is_never_closed_says_so(tmp_path: Path) -> None:
    (_, fault, lost) = read_records(open_as(tmp_path, "x.csv", b'a,b\n1,2\n"3,4\n5,6\n'))
    assert (fault.line, getattr(fault, "message", "")) == (3, "a quote is opened here and never closed")
    assert (lost.line, getattr(lost, "message", "")) == (4, "the line is inside a quote that is opened in line 3")


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "stream.arrow"])
def test_columns_that_nobody_asks_for_are_not_read(tmp_path: Path, name: str) -> None:
    rows = [{**row, "image": b"x" * 1000} for row in ROWS]
    content = parquet(rows) if name == "x.parquet" else arrow(rows, stream=name.startswith("stream"))
    file = replace(open_as(tmp_path, name, content), columns=("text", "label", "absent"))
    assert [values for _, values in records(file)] == ROWS


def test_text_of_a_table_that_is_no_utf8_is_named_with_its_row(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(struct.pack("<4i", 0, 2, 6, 8)), pa.py_buffer(b"okcaf\xe9ok")]
    )
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"text": column}), sink)
    file = open_as(tmp_path, "x.parquet", bytes(sink.getvalue()))
    assert records(file) == [(1, {"text": "ok"}), (2, Code.BAD_UTF8), (3, {"text": "ok"})]


# ---------------------------------------------------------------- anything at all

WORDS = [b'{"text": "a"}', b'{"messages": [', b"NaN", b"1e999", b":", b",", b'"', b"[", b"]", b"{", b"}", b"\n", b"\t"]
BYTES = [b"PAR1", b"ARROW1", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xff\xff\xff\xff", b"\xef\xbb\xbf", b"\0", b"\r"]
FRAGMENTS = st.sampled_from([*WORDS, *BYTES])
ANYTHING = st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=20).map(b"".join))


@pytest.mark.parametrize("form", [None, *Format])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=ANYTHING, compressed=st.booleans())
def test_whatever_a_file_holds_is_rows_faults_or_a_refusal(
    tmp_path: Path, form: Format | None, content: bytes, compressed: bool
) -> None:
    name = "data.gz" if form is None else f"data.{form}"
    seen: list[int] = []
    problems: list[Problem] = []
    try:
        file = open_as(tmp_path, name, gzip.compress(content) if compressed else content, declared=form)
        columns = columns_of(file, Task.CAUSAL_LM, {})
        seen = [record.line for record in examples(read_records(file), columns)]
    except (DataError, SpecError) as error:
        problems = list(error.problems)
    assert seen == sorted(seen)
    assert seen or problems
    assert all(problem.message and problem.cure for problem in problems)


# ---------------------------------------------------------------- in parts


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.json", "x.txt"])
def test_parts_hold_the_same_records_however_long_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    content = {"csv": csv_of(ROWS), "json": json.dumps(ROWS).encode(), "txt": TEXT}.get(
        name.rpartition(".")[2], b"\xef\xbb\xbf\n" + jsonl(ROWS)
    )
    file = open_as(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    whole = list(read_records(file))
    monkeypatch.setattr(lines, "PIECE", size)
    monkeypatch.setattr("finetune_trainer.prepare.data.chunks.PIECE", size)
    monkeypatch.setattr("finetune_trainer.prepare.data.streams.BLOCK", max(1, size // 3))
    monkeypatch.setattr("finetune_trainer.prepare.data.streams.COMPRESSED_BLOCK", max(1, size // 30))
    parts = list(chunks(file))
    assert [record for part in parts for record in pickle.loads(pickle.dumps(part)).records()] == whole
    assert len(parts) > 1 or size > 10
    assert [part.end for part in parts] == sorted(part.end for part in parts)

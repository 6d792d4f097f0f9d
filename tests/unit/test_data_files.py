"""Data files of every format: told by name and content, uncompressed whatever they are called, read in parts."""

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

from finetune_api.errors import DataError, FineTuneError, Problem, SpecError
from finetune_api.messages import Task
from finetune_trainer.prepare.data import lines
from finetune_trainer.prepare.data.chunks import chunks, read
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.examples import examples
from finetune_trainer.prepare.data.formats import LONGEST_LINE, Code, DataFile, Format, Row
from finetune_trainer.prepare.data.shapes import columns_of

ROWS = [{"text": f"text {index} \u00e4", "label": index % 3} for index in range(50)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def open_as(folder: Path, name: str, content: bytes, **given: Any) -> DataFile:
    (folder / name).write_bytes(content)
    return open_file(folder / name, f"s3://bucket/{name}", "spec.dataset.train", **given)


def records(file: DataFile) -> list[tuple[int, Any]]:
    return [(record.line, record.values if isinstance(record, Row) else record.code) for record in read(file)]


def refusal(folder: Path, name: str, content: bytes, **given: Any) -> tuple[str, str]:
    with pytest.raises(FineTuneError) as caught:
        list(read(open_as(folder, name, content, **given)))
    return caught.value.problems[0].code, caught.value.problems[0].message


# ---------------------------------------------------------------- which format


def parquet(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=7)
    return bytes(sink.getvalue())


def arrow(rows: list[Any], stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return bytes(sink.getvalue())


def csv_of(rows: list[Any]) -> bytes:
    return ("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)).encode()


WRITERS: dict[str, tuple[bytes, Format]] = {
    "rows.jsonl": (jsonl(ROWS), Format.JSONL),
    "rows.NDJSON": (jsonl(ROWS), Format.JSONL),
    "rows.jsonl.gz": (gzip.compress(jsonl(ROWS)), Format.JSONL),
    "rows.json.zst": (zstandard.compress(json.dumps(ROWS).encode()), Format.JSON),
    "an array called jsonl.jsonl": (json.dumps(ROWS).encode(), Format.JSON),
    "indented.json": (json.dumps(ROWS, indent=2).encode(), Format.JSON),
    "lines called json.json": (jsonl(ROWS), Format.JSONL),
    "gzip that says nothing.jsonl": (gzip.compress(jsonl(ROWS)), Format.JSONL),
    "plain that says gzip.jsonl.gz": (jsonl(ROWS), Format.JSONL),
    "zstd that says gzip.jsonl.gz": (zstandard.compress(jsonl(ROWS)), Format.JSONL),
    "two gzips in one.jsonl": (gzip.compress(jsonl(ROWS[:20])) + gzip.compress(jsonl(ROWS[20:])), Format.JSONL),
    "two zstds in one.jsonl": (
        zstandard.compress(jsonl(ROWS[:20])) + zstandard.compress(jsonl(ROWS[20:])),
        Format.JSONL,
    ),
    "bzip2 that says nothing": (bz2.compress(jsonl(ROWS)), Format.JSONL),
    "rows.jsonl.bz2": (bz2.compress(jsonl(ROWS[:20])) + bz2.compress(jsonl(ROWS[20:])), Format.JSONL),
    "rows.jsonl.xz": (lzma.compress(jsonl(ROWS)), Format.JSONL),
    "lines called text.txt": (jsonl(ROWS), Format.JSONL),
    "lines called text.txt.gz": (gzip.compress(jsonl(ROWS)), Format.JSONL),
    "lines called csv.csv": (jsonl(ROWS), Format.JSONL),
    "lines called tsv.tsv": (jsonl(ROWS), Format.JSONL),
    "lines called a table.parquet": (jsonl(ROWS), Format.JSONL),
    "an array called text.txt": (json.dumps(ROWS, indent=1).encode(), Format.JSON),
    "an array called csv.csv": (json.dumps(ROWS).encode(), Format.JSON),
    "a table called text.txt": (parquet(ROWS), Format.PARQUET),
    "UTF-16.jsonl": (jsonl(ROWS).decode().encode("utf-16"), Format.JSONL),
    "UTF-16 of the other order.jsonl.gz": (
        gzip.compress(b"\xfe\xff" + jsonl(ROWS).decode().encode("utf-16-be")),
        Format.JSONL,
    ),
    "UTF-32.txt": (jsonl(ROWS).decode().encode("utf-32"), Format.JSONL),
    "old line breaks.jsonl": (jsonl(ROWS).replace(b"\n", b"\r"), Format.JSONL),
    "no suffix": (jsonl(ROWS), Format.JSONL),
    "no suffix, an array": (json.dumps(ROWS).encode(), Format.JSON),
    "rows.parquet": (parquet(ROWS), Format.PARQUET),
    "a table without suffix": (parquet(ROWS), Format.PARQUET),
    "rows.arrow": (arrow(ROWS, stream=False), Format.ARROW),
    "stream.arrow": (arrow(ROWS, stream=True), Format.ARROW),
    "feather.bin": (arrow(ROWS, stream=False), Format.ARROW),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    content, form = WRITERS[name]
    file = open_as(tmp_path, name, content)
    assert file.format is form
    assert [values for _, values in records(file)] == ROWS
    assert [line for line, _ in records(file)] == list(range(1, len(ROWS) + 1))


COLUMNS: dict[str, tuple[str, str, Callable[[str], bytes]]] = {
    "as the name says": ("rows.csv", ",", str.encode),
    "tabs": ("rows.tsv", "\t", str.encode),
    "compressed": ("rows.csv.gz", ",", lambda text: gzip.compress(text.encode())),
    "CSV of a country whose comma stands in numbers": ("rows.csv", ";", str.encode),
    "TSV called CSV": ("rows.csv", "\t", str.encode),
    "CSV called TSV": ("rows.tsv", ",", str.encode),
    "bars": ("rows.csv", "|", str.encode),
    "CSV called text": ("rows.txt", ",", str.encode),
    "TSV called text, as Excel's Unicode text": ("rows.txt", "\t", lambda text: text.encode("utf-16")),
    "CSV called JSON lines": ("rows.jsonl", ",", str.encode),
    "CSV without a suffix": ("rows", ";", str.encode),
    "Excel's line names the delimiter": ("rows.csv", ";", lambda text: b"sep=;\r\n" + text.encode()),
    "Excel's line and mark": ("rows.csv", "\t", lambda text: b"\xef\xbb\xbfsep=\t\n" + text.encode()),
    "the old Mac's line breaks": ("rows.csv", ",", lambda text: text.replace("\n", "\r").encode()),
    "an index without a name, in text": (
        "rows.txt",
        ",",
        lambda text: "".join(f",{x}\n" for x in text.split("\n")[:-1]).encode(),
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_between_delimiters_are_told_by_content(tmp_path: Path, case: str) -> None:
    name, mark, written = COLUMNS[case]
    content = written(csv_of(ROWS).decode().replace(",", mark))
    file = open_as(tmp_path, name, content)
    found = [{key: values[key] for key in ("text", "label")} for _, values in records(file)]
    assert found == [{**row, "label": str(row["label"])} for row in ROWS]


def test_a_table_without_quotes_is_told_by_its_header_though_its_rows_are_broken(tmp_path: Path) -> None:
    content = "text\tlabel\r\na\t b\t1\r\nc\t d\t2\r\n".encode("utf-16")  # as UKGovernmentBEIS/inspect_ai#5353
    file = open_as(tmp_path, "x.txt", content)
    assert (file.format, records(file)) == (Format.TSV, [(2, Code.RAGGED_ROW), (3, Code.RAGGED_ROW)])


PROSE = {
    "verses": b"Roses are red, violets are blue\nSugar is sweet, and so are you\n",
    "a list in brackets": b"[Verse 1]\nla la\n[Verse 2]\nla\n",
    "a set in braces": b"{ x | x > 1 }\nis a set\nof numbers\n",
    "code": b"{\n  return 1;\n}\n",
    "a log with commas": b"2024-01-01,started\n2024-01-02,stopped\n",
    "one word": b"text\nanother\n",
}


@pytest.mark.parametrize("case", PROSE)
def test_prose_stays_text(tmp_path: Path, case: str) -> None:
    assert open_as(tmp_path, "x.txt", PROSE[case]).format is Format.TEXT
    assert open_as(tmp_path, "y.txt", jsonl(ROWS), documents="line").format is Format.TEXT, "the job says so"


SWALLOWED = {
    "two stray quotes": (b",", 50, 70, 1000 - 21),
    "far apart": (b",", 500, 700, 1000 - 201),
    "neighbours": (b",", 500, 501, 1000 - 2),
    "of another delimiter": (b";", 500, 502, 1000 - 3),
}


def test_pairs_of_which_one_is_broken_are_pairs(tmp_path: Path) -> None:
    lines = [f"question {n}\tanswer {n}" for n in range(40)]
    lines[20] = "no tab"
    file = open_as(tmp_path, "x.txt", "\n".join([*lines, ""]).encode())
    assert file.format is Format.PAIRS
    assert (21, Code.RAGGED_ROW) in records(file)


def test_an_array_of_texts_is_no_text(tmp_path: Path) -> None:
    file = open_as(tmp_path, "x.txt", b'[\n "one",\n "two"\n]\n')
    assert records(file) == [(1, Code.NOT_AN_OBJECT), (2, Code.NOT_AN_OBJECT)]


@pytest.mark.parametrize("case", SWALLOWED)
def test_rows_that_a_quote_swallows_are_faults(tmp_path: Path, case: str) -> None:
    mark, first, last, good = SWALLOWED[case]
    lines = [f"it was number {n}{mark.decode()}{'good' if n % 3 else 'bad'}" for n in range(1000)]
    lines[first] = f'"{lines[first]}'
    lines[last] = lines[last].replace(mark.decode(), f'"{mark.decode()}')
    content = f"text{mark.decode()}label\n" + "\n".join(lines) + "\n"
    found = list(read(open_as(tmp_path, "x.csv", content.encode())))
    faults = [record for record in found if not isinstance(record, Row)]
    assert len(found) == 1000
    assert len(found) - len(faults) == good
    assert {fault.code for fault in faults} == {Code.ROWS_IN_QUOTES}
    assert faults[0].line == first + 2


def test_pairs_that_a_quote_swallows_are_faults_without_a_column_of_few_values(tmp_path: Path) -> None:
    lines = ["prompt,completion", *(f"what is {n},it is {n}" for n in range(100))]
    lines[50], lines[60] = f'"{lines[50]}', lines[60].replace(",", '",')
    found = list(read(open_as(tmp_path, "x.csv", "\n".join(lines).encode())))
    assert sum(isinstance(record, Row) for record in found) == 100 - 11


LETTERS = {
    "prose": "Dear all,\nplease come, and bring a cake,\nthanks",
    "numbers": "It cost 1,000\nand 2,000 later,\nand more",
    "a place": "Paris,France\nis lovely",
    "verses": "red, blue\nwhite, black\ngreen, grey\n",
    "blank lines": "one\n\n\ntwo",
}


@pytest.mark.parametrize("case", LETTERS)
def test_a_text_of_several_lines_is_no_swallowed_row(tmp_path: Path, case: str) -> None:
    rows = [f"plain {n},{'good' if n % 2 else 'bad'}\n" for n in range(40)]
    content = "text,label\n" + "".join(rows) + f'"{LETTERS[case]}",good\n' + "".join(rows)
    found = records(open_as(tmp_path, "x.csv", content.encode()))
    assert len(found) == 81
    assert (42, {"text": LETTERS[case], "label": "good"}) in found


TABS: dict[str, tuple[bytes, list[tuple[int, Any]]]] = {
    "a quote is a character": (
        b'text\tlabel\n"Hello" she said\ta\n"left\tb\n',
        [(2, {"text": '"Hello" she said', "label": "a"}), (3, {"text": '"left', "label": "b"})],
    ),
    "doubled quotes within quotes are a spreadsheet's": (
        b'text\tlabel\nplain\ta\n"she said ""hi"""\tb\n',
        [(2, {"text": "plain", "label": "a"}), (3, {"text": 'she said "hi"', "label": "b"})],
    ),
    "a quoted header means quotes": (b'"text"\t"label"\n"a\tb"\t"c"\n', [(2, {"text": "a\tb", "label": "c"})]),
    "a quoted field with a tab means quotes": (
        b'text\tlabel\nx\ty\n"a\tb"\tc\n',
        [(2, {"text": "x", "label": "y"}), (3, {"text": "a\tb", "label": "c"})],
    ),
}


@pytest.mark.parametrize("case", TABS)
def test_between_tabs_a_quote_is_a_character_unless_the_file_shows_otherwise(tmp_path: Path, case: str) -> None:
    content, expected = TABS[case]
    assert records(open_as(tmp_path, "x.tsv", content)) == expected


def test_a_declared_format_goes_before_name_and_content(tmp_path: Path) -> None:
    file = open_as(tmp_path, "x.csv", b'{"a": 1}\n', declared="jsonl")
    assert records(file) == [(1, {"a": 1})]
    assert records(open_as(tmp_path, "x.jsonl", b'{"a": 1}\n', declared="text")) == [(1, {"text": '{"a": 1}'})]


@pytest.mark.parametrize(
    ("name", "content", "given", "expected"),
    [
        ("x.txt", b"one\ttwo\nthree\tfour\n", {}, [(1, "one", "two"), (2, "three", "four")]),
        ("x.txt", b"one ||| two\n", {"delimiter": " ||| "}, [(1, "one", "two")]),
        ("x", b"q=>a\n\nq2=>a2", {"declared": "pairs", "delimiter": "=>"}, [(1, "q", "a"), (3, "q2", "a2")]),
    ],
)
def test_pairs_have_one_delimiter_and_no_header(
    tmp_path: Path, name: str, content: bytes, given: dict[str, Any], expected: list[tuple[int, str, str]]
) -> None:
    found = records(open_as(tmp_path, name, content, **given))
    assert found == [(line, {"input": first, "output": second}) for line, first, second in expected]


def test_a_line_without_or_with_two_delimiters_is_no_pair(tmp_path: Path) -> None:
    file = open_as(tmp_path, "x", b"a\tb\nc\nd\te\tf\n", declared="pairs")
    assert records(file) == [(1, {"input": "a", "output": "b"}), (2, Code.RAGGED_ROW), (3, Code.RAGGED_ROW)]


TEXT = b"First line.\r\nSecond line.\n\n  \nThird, a paragraph of its own.\n"


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (None, [(1, "First line."), (2, "Second line."), (5, "Third, a paragraph of its own.")]),
        ("line", [(1, "First line."), (2, "Second line."), (5, "Third, a paragraph of its own.")]),
        ("paragraph", [(1, "First line.\r\nSecond line."), (5, "Third, a paragraph of its own.")]),
        ("file", [(1, TEXT.decode().rstrip())]),
    ],
)
def test_plain_text_is_documents_by_line_paragraph_or_file(
    tmp_path: Path, documents: str | None, expected: list[tuple[int, str]]
) -> None:
    file = open_as(tmp_path, "x.txt", TEXT, documents=documents)
    assert records(file) == [(line, {"text": text}) for line, text in expected]


def test_a_byte_that_is_no_utf8_has_its_own_line_in_a_paragraph(tmp_path: Path) -> None:
    (fault,) = read(open_as(tmp_path, "x.txt", b"one\ntwo \xe9\n", documents="paragraph"))
    assert (fault.line, getattr(fault, "code", None)) == (2, Code.BAD_UTF8)
    assert "byte 5 of the line is 0xe9" in getattr(fault, "message", "")
    assert "in Latin-1 (Windows-1252) it is '\u00e9'" in getattr(fault, "message", "")


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
        seen.extend(read(file))
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
    _, fault = read(open_as(tmp_path, "x.jsonl", b'{"text": "fine"}\n' + content + b"\n"))
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
    (_, fault, lost) = read(open_as(tmp_path, "x.csv", b'a,b\n1,2\n"3,4\n5,6\n'))
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
        seen = [record.line for record in examples(read(file), columns)]
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
    whole = list(read(file))
    monkeypatch.setattr(lines, "PIECE", size)
    monkeypatch.setattr("finetune_trainer.prepare.data.chunks.PIECE", size)
    monkeypatch.setattr("finetune_trainer.prepare.data.streams.BLOCK", max(1, size // 3))
    monkeypatch.setattr("finetune_trainer.prepare.data.streams.COMPRESSED_BLOCK", max(1, size // 30))
    parts = list(chunks(file))
    assert [record for part in parts for record in pickle.loads(pickle.dumps(part)).records()] == whole
    assert len(parts) > 1 or size > 10
    assert [part.end for part in parts] == sorted(part.end for part in parts)

"""Data files of every format: told by name and content, uncompressed whatever they are called, read in parts."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from finetune_api.errors import FineTuneError
from finetune_trainer.prepare.data.chunks import read_records
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.formats import Code, DataFile, Format, Row

ROWS = [{"text": f"text {index} \u00e4", "label": index % 3} for index in range(50)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def open_as(folder: Path, name: str, content: bytes, **given: Any) -> DataFile:
    (folder / name).write_bytes(content)
    return open_file(folder / name, f"s3://bucket/{name}", "spec.dataset.train", **given)


def records(file: DataFile) -> list[tuple[int, Any]]:
    return [(record.line, record.values if isinstance(record, Row) else record.code) for record in read_records(file)]


def refusal(folder: Path, name: str, content: bytes, **given: Any) -> tuple[str, str]:
    with pytest.raises(FineTuneError) as caught:
        list(read_records(open_as(folder, name, content, **given)))
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
    found = list(read_records(open_as(tmp_path, "x.csv", content.encode())))
    faults = [record for record in found if not isinstance(record, Row)]
    assert len(found) == 1000
    assert len(found) - len(faults) == good
    assert {fault.code for fault in faults} == {Code.ROWS_IN_QUOTES}
    assert faults[0].line == first + 2


def test_pairs_that_a_quote_swallows_are_faults_without_a_column_of_few_values(tmp_path: Path) -> None:
    lines = ["prompt,completion", *(f"what is {n},it is {n}" for n in range(100))]
    lines[50], lines[60] = f'"{lines[50]}', lines[60].replace(",", '",')
    found = list(read_records(open_as(tmp_path, "x.csv", "\n".join(lines).encode())))
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
    (fault,) = read_records(open_as(tmp_path, "x.txt", b"one\ntwo \xe9\n", documents="paragraph"))
    assert (fault.line, getattr(fault, "code", None)) == (2, Code.BAD_UTF8)
    assert "byte 5 of the line is 0xe9" in getattr(fault, "message", "")
    assert "in Latin-1 (Windows-1252) it is '\u00e9'" in getattr(fault, "message", "")

"""Readers: every record or what is wrong with it, with the line an editor shows."""

from pathlib import Path

import pytest

from finetune_api.errors import DataError
from finetune_trainer.prepare.data.chunks import read_records
from finetune_trainer.prepare.data.detect import open_file
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault, Format, Row


def file(folder: Path, content: bytes, form: Format, delimiter: str | None = None) -> DataFile:
    path = folder / "data"
    path.write_bytes(content)
    return DataFile(path, "s3://bucket/data", "spec.dataset.train", form, delimiter)


def records(folder: Path, content: bytes, form: Format, delimiter: str | None = None) -> list[tuple[int, object]]:
    """(line, values) of rows and (line, code) of faults."""
    found = read_records(file(folder, content, form, delimiter))
    return [(record.line, record.values if isinstance(record, Row) else record.code) for record in found]


JSONL: dict[str, tuple[bytes, list[tuple[int, object]]]] = {
    "two rows": (b'{"a": 1}\n{"a": "x"}\n', [(1, {"a": 1}), (2, {"a": "x"})]),
    "no line break at the end": (b'{"a": 1}', [(1, {"a": 1})]),
    "carriage returns": (b'{"a": 1}\r\n{"a": 2}\r\n', [(1, {"a": 1}), (2, {"a": 2})]),
    "blank lines keep their numbers": (b'\n{"a": 1}\n \t\n{"a": 2}\n\n', [(2, {"a": 1}), (4, {"a": 2})]),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}\n', [(1, {"a": 1})]),
    "other separators within a string are no line breaks": (
        '{"a": "\u2028\x85"}\n{}'.encode(),
        [
            (1, {"a": "\u2028\x85"}),
            (2, {}),
        ],
    ),
    "no JSON": (b'{"a": 1}\n{"a": \n{"a": 2}\n', [(1, {"a": 1}), (2, Code.INVALID_JSON), (3, {"a": 2})]),
    "two objects on one line": (b'{"a": 1} {"a": 2}\n', [(1, Code.SEVERAL_OBJECTS)]),
    "no object": (b'7\nnull\n"x"\n{}\n', [*((line, Code.NOT_AN_OBJECT) for line in (1, 2, 3)), (4, {})]),
    "a list on a later line": (b"{}\n[1]\n", [(1, {}), (2, Code.NOT_AN_OBJECT)]),
    "bad UTF-8": (b'{"a": "\xff"}\n{}\n', [(1, Code.BAD_UTF8), (2, {})]),
    "NUL": (b'{"a": "\0"}\n{}\n', [(1, Code.NUL), (2, {})]),
    "nested too deeply": (b"{}\n" + b"[" * 100_000 + b"\n", [(1, {}), (2, Code.INVALID_JSON)]),
    "too many digits": (b"{}\n" + b'{"a": ' + b"9" * 5000 + b"}\n", [(1, {}), (2, Code.INVALID_JSON)]),
}

CSV: dict[str, tuple[bytes, list[tuple[int, object]]]] = {
    "two rows": (b"a,b\n1,2\n3,4\n", [(2, {"a": "1", "b": "2"}), (3, {"a": "3", "b": "4"})]),
    "quoted delimiters and quotes": (b'a,b\n"x,y","say ""hi"""\n', [(2, {"a": "x,y", "b": 'say "hi"'})]),
    "a record with line breaks has the line it starts on": (
        b'a,b\n"1\n2\n3",x\n4,y\n',
        [(2, {"a": "1\n2\n3", "b": "x"}), (5, {"a": "4", "b": "y"})],
    ),
    "carriage returns": (b"a\r\n1\r\n\r\n2\r\n", [(2, {"a": "1"}), (4, {"a": "2"})]),
    "a byte order mark, and spaces in the header": (b"\xef\xbb\xbfa , b\n1,2\n", [(2, {"a": "1", "b": "2"})]),
    "ragged rows": (b"a,b\n1\n1,2,3\n1,2\n", [(2, Code.RAGGED_ROW), (3, Code.RAGGED_ROW), (4, {"a": "1", "b": "2"})]),
    "a header between rows, as of joined files": (
        b"a,b\n1,2\na, b\n3,4\n",
        [(2, {"a": "1", "b": "2"}), (3, Code.REPEATED_HEADER), (4, {"a": "3", "b": "4"})],
    ),
    "one column: its name may be a value": (b"a\na\n", [(2, {"a": "a"})]),
    "bad UTF-8 after a record of two lines": (
        b'a,b\n"x\ny",1\nz,\xe9\nok,2\n',
        [(2, {"a": "x\ny", "b": "1"}), (4, Code.BAD_UTF8), (5, {"a": "ok", "b": "2"})],
    ),
    "an index without a name, as pandas writes it": (b",a\n0,x\n", [(2, {"column 1": "0", "a": "x"})]),
    "NUL": (b"a\nx\0y\nz\n", [(2, Code.NUL), (3, {"a": "z"})]),
    "text after a closing quote": (b'a\n"x"y\nz\n', [(2, Code.INVALID_CSV), (3, {"a": "z"})]),
    "a quote that is never closed loses the lines that follow: all are counted": (
        b'a\nx\n"y\nz\n\nu\n',
        [(2, {"a": "x"}), (3, Code.INVALID_CSV), (4, Code.INVALID_CSV), (6, Code.INVALID_CSV)],
    ),
    "Excel's line that names the delimiter": (b"sep=,\r\na,b\r\n1,2\r\n", [(3, {"a": "1", "b": "2"})]),
}


@pytest.mark.parametrize("case", JSONL)
def test_jsonl(case: str, tmp_path: Path) -> None:
    content, expected = JSONL[case]
    assert records(tmp_path, content, Format.JSONL) == expected


@pytest.mark.parametrize("case", CSV)
def test_csv(case: str, tmp_path: Path) -> None:
    content, expected = CSV[case]
    assert records(tmp_path, content, Format.CSV) == expected


def test_csv_takes_another_delimiter(tmp_path: Path) -> None:
    assert records(tmp_path, b"a\tb\n1,5\t2\n", Format.CSV, "\t") == [(2, {"a": "1,5", "b": "2"})]


def test_a_long_text_in_one_field_is_read(tmp_path: Path) -> None:
    text = "x" * 300_000
    assert records(tmp_path, f"a\n{text}\n".encode(), Format.CSV) == [(2, {"a": text})]


@pytest.mark.parametrize(
    ("content", "form", "code"),
    [
        (b"", Format.JSONL, "EmptyFile"),
        (b"\n\n", Format.JSONL, "EmptyFile"),
        (b"\xef\xbb\xbf", Format.JSONL, "EmptyFile"),
        (b"", Format.CSV, "EmptyFile"),
        (b"a,b\n", Format.CSV, "EmptyFile"),
        ('{"a": 1}'.encode("utf-16-le"), Format.JSONL, "NotUTF8"),
        ("a,b\n1,2\n".encode("utf-16-be"), Format.CSV, "NotUTF8"),
        (b'[{"a": 1}]', Format.JSONL, "JSONArray"),
        (b"a,a\n1,2\n", Format.CSV, "InvalidHeader"),
        (b",\n1,2\n", Format.CSV, "InvalidHeader"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_named(tmp_path: Path, content: bytes, form: Format, code: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(open_file(tmp_path / "data", "s3://bucket/data", "spec.dataset.train", form)))
    problem = caught.value.problems[0]
    assert (problem.code, problem.file, problem.field) == (code, "s3://bucket/data", "spec.dataset.train")


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b'{"a": "x\xffy"}', Format.JSONL, "byte 9 of the line is 0xff"),
        (b'{"a": 1,}', Format.JSONL, "column 9"),
        (b"a,b\n1,2,3\n", Format.CSV, "there are 3 fields, but the header has 2"),
        (b"a,b\n1,\xff\n", Format.CSV, "column 'b' holds the byte 0xff"),
    ],
)
def test_a_fault_says_what_is_seen_and_where(tmp_path: Path, content: bytes, form: Format, message: str) -> None:
    fault = list(read_records(file(tmp_path, content, form)))[-1]
    assert isinstance(fault, Fault)
    assert message in fault.message

"""Files whose records span lines, in parts: the same records as one parser reads, wherever the parts end."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.errors import DataError
from finetune_trainer.prepare.data import lines, streams
from finetune_trainer.prepare.data.chunks import ParsedChunk, chunks, read_records
from finetune_trainer.prepare.data.delimited import _Values
from finetune_trainer.prepare.data.formats import DataFile, DocumentUnit, Format, Record
from finetune_trainer.prepare.data.jsonarray import parse_element
from finetune_trainer.prepare.data.record_parts import parse_records
from finetune_trainer.prepare.data.streams import opened


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PIECE", 60)
    monkeypatch.setattr(streams, "BLOCK", 40)
    monkeypatch.setattr(_Values, "ROWS", 10**9)  # a part learns labels from its own rows only


def file_of(path: Path, kind: Format) -> DataFile:
    return DataFile(path, path.name, "spec.dataset.train", kind, documents=DocumentUnit.PARAGRAPH)


def in_order(file: DataFile) -> list[Record]:
    """All records by the parser alone."""
    with opened(file.path) as reader:
        return [record for record, _, _ in parse_records(file, reader)]


def table(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["text", "a label"])
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


FIELDS = st.text(alphabet='ab é"\n,\r', max_size=12)
ROWS = st.lists(st.lists(FIELDS, min_size=2, max_size=2), min_size=1, max_size=30)
BYTES = st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"x,y\n", b'"x\ny",z\n', b"\xff", b"\n \n"]), max_size=120)


@settings(max_examples=150, deadline=None)
@given(ROWS.map(table) | BYTES.map(lambda parts: b"text,label\nfirst,row\n" + b"".join(parts)))
def test_rows_of_a_table_are_the_same_in_parts(data: bytes) -> None:
    compare(data, Format.CSV)


@settings(max_examples=100, deadline=None)
@given(BYTES.map(b"".join))
def test_paragraphs_are_the_same_in_parts(data: bytes) -> None:
    compare(data, Format.TEXT)


def compare(data: bytes, kind: Format) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "data").write_bytes(data)
        file = file_of(path, kind)
        try:
            expected = in_order(file)
        except DataError:
            with pytest.raises(DataError):
                list(read_records(file))
            return
        if expected:
            assert list(read_records(file)) == expected


def of_format(kind: Format) -> bytes:
    rows: list[dict[str, Any]] = [{"text": f'He said "{index}",\nand left.', "label": index} for index in range(60)]
    match kind:
        case Format.JSON:
            return json.dumps(rows, indent=1).encode()
        case Format.TEXT:
            return "".join(f"Paragraph {index}\nof two lines.\n\n" for index in range(60)).encode()
        case _:
            return table([[row["text"], str(row["label"])] for row in rows])


@pytest.mark.parametrize("kind", [Format.CSV, Format.TEXT, Format.JSON])
def test_records_are_parsed_where_they_are_used(kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.prepare.data import chunks as module

    monkeypatch.setattr(module, "PIECE", 60)
    (path := tmp_path / "data").write_bytes(of_format(kind))
    parts = list(chunks(file_of(path, kind)))
    assert len(parts) > 10
    assert not any(isinstance(part, ParsedChunk) for part in parts)
    assert [record.line for part in parts for record in part.records()] == list(expected_lines(kind))


def expected_lines(kind: Format) -> Iterator[int]:
    match kind:
        case Format.JSON:
            yield from range(1, 61)
        case Format.TEXT:
            yield from range(1, 181, 3)
        case _:
            yield from range(2, 122, 2)


def test_an_element_that_breaks_a_rule_of_ours_is_a_fault_with_its_number() -> None:
    assert getattr(parse_element(7, '{"a": 1, "a": 2}'), "code", "") == "DuplicateKey"

"""A file in parts: each is read by one process, and small enough to be sent to it.

A part is whole lines, whole records (`records`), elements of an array or rows of a table, parsed in the process that
gets it. Where only a parser can find the end of a record, the part holds parsed records.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from finetune_api.errors import DataError
from finetune_trainer.prepare.data.delimited import parse_pair
from finetune_trainer.prepare.data.formats import LONGEST_LINE, DataFile, DocumentUnit, Fault, Format, Record, Row
from finetune_trainer.prepare.data.jsonarray import parse_element, read_array
from finetune_trainer.prepare.data.jsonl import parse_line
from finetune_trainer.prepare.data.lines import PIECE, Piece, pieces, too_long
from finetune_trainer.prepare.data.record_parts import Rest, in_parts, parse_records, parts
from finetune_trainer.prepare.data.streams import Reader, StreamError, opened
from finetune_trainer.prepare.data.text import parse_document

EMPTY = "EmptyFile"
INDENTED = re.compile(rb"\{[ \t\r]*\n\s*[\"}]")
READY_RECORDS = 20_000  # of one part, however small they are


class Chunk(Protocol):
    """A part of a file; picklable. The records of all chunks of a file, in order, are the file's.

    Attributes:
        end: bytes of the file, as it lies on disk, that had been read when the part was made.
    """

    @property
    def file(self) -> DataFile: ...

    @property
    def end(self) -> int: ...

    def records(self) -> Iterator[Row | Fault]:
        """Parse the part: a Row for each record, or a Fault that says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Whole lines."""

    file: DataFile
    piece: Piece

    @property
    def end(self) -> int:
        return self.piece.end

    def records(self) -> Iterator[Record]:
        """Yield the records of the chunk."""
        if self.piece.data is None:
            yield too_long(self.piece.first)
            return
        parse = self._parser()
        for line, raw in enumerate(self.piece.data.split(b"\n"), self.piece.first):
            text = raw.strip(b" \t\r\n") if self.file.format is Format.JSONL else raw.rstrip(b"\r")
            if len(raw) > LONGEST_LINE:
                yield too_long(line)
            elif text and not text.isspace():
                yield parse(line, text)

    def _parser(self) -> Callable[[int, bytes], Record]:
        if self.file.format is Format.PAIRS:
            return lambda line, raw: parse_pair(self.file, line, raw)
        return parse_line if self.file.format is Format.JSONL else parse_document


@dataclass(frozen=True, slots=True)
class ArrayChunk:
    """Elements of a JSON array.

    Attributes:
        first: number of the first, from 1.
    """

    file: DataFile
    first: int
    texts: tuple[str, ...]
    end: int

    def records(self) -> Iterator[Record]:
        """Yield the records of the chunk."""
        for row, text in enumerate(self.texts, self.first):
            yield parse_element(row, text)


@dataclass(frozen=True, slots=True)
class ParsedChunk:
    """Records of a format that only its parser can part."""

    file: DataFile
    parsed: tuple[Record, ...]
    end: int

    def records(self) -> Iterator[Record]:
        """Yield the records of the chunk."""
        return iter(self.parsed)


@dataclass(frozen=True, slots=True)
class TableChunk:
    """Rows of a columnar file, as an Arrow stream."""

    file: DataFile
    first: int
    packed: bytes
    end: int

    def records(self) -> Iterator[Record]:
        """Yield the records of the chunk."""
        from finetune_trainer.prepare.data.tables import parse_table

        return parse_table(self.first, self.packed)


def chunks(file: DataFile) -> Iterator[Chunk]:
    """Yield the parts of a file, in order. Equal bytes give equal parts, also at a second reading.

    Raises:
        DataError: the file as a whole cannot be read: it is empty, ends early, is damaged, its header is wrong or it
            is of another format. What could be read was yielded before.
    """
    empty = True
    for chunk in _chunks(file):
        empty = False
        yield chunk
    if empty:
        raise DataError(file.problem(EMPTY, "the file holds no rows", "name a file with at least one row"))


def read_records(file: DataFile) -> Iterator[Record]:
    """Yield all records of a file, in order; errors as of `chunks`."""
    for chunk in chunks(file):
        yield from chunk.records()


def _chunks(file: DataFile) -> Iterator[Chunk]:
    if not file.format.is_text:
        from finetune_trainer.prepare.data.tables import read_tables

        for first, packed, end in read_tables(file):
            yield TableChunk(file, first, packed, end)
        return
    line = 0
    with opened(file.path) as reader:
        try:
            if _by_line(file):
                for piece in pieces(reader):
                    line = piece.first - 1 + max(1, (piece.data or b"").count(b"\n"))
                    if piece.first == 1 and file.format is Format.JSONL and piece.data is not None:
                        _refuse_other_json(file, piece.data)
                    if piece.data is None or not piece.data.isspace():
                        yield LineChunk(file, piece)
            elif file.format is Format.JSON:
                for array in _elements(file, reader):
                    line = array.first + len(array.texts) - 1
                    yield array
            elif in_parts(file):
                for part in parts(file, reader):
                    if isinstance(part, Rest):
                        for parsed in _parsed(file, part, part.lines_before):
                            line = max(line, parsed.parsed[-1].line)
                            yield parsed
                    else:
                        line = part.last
                        yield part
            else:
                for parsed in _parsed(file, reader, 0):
                    line = max(line, parsed.parsed[-1].line)
                    yield parsed
        except StreamError as error:
            unit = "lines" if file.format is not Format.JSON else "rows"
            message = f"{error.message}; {line:,} whole {unit} could be read"
            raise DataError(file.problem(error.code, message, "copy or compress the whole file again")) from error


def _by_line(file: DataFile) -> bool:
    if file.format is Format.TEXT:
        return file.documents is DocumentUnit.LINE
    return file.format in (Format.JSONL, Format.PAIRS)


def _elements(file: DataFile, reader: Reader) -> Iterator[ArrayChunk]:
    gathered: list[str] = []
    first, size, end = 1, 0, 0
    for text, end in read_array(file, reader):
        gathered.append(text)
        size += len(text)
        if size >= PIECE or len(gathered) >= READY_RECORDS:
            yield ArrayChunk(file, first, tuple(gathered), end)
            first += len(gathered)
            gathered, size = [], 0
    if gathered:
        yield ArrayChunk(file, first, tuple(gathered), end)


def _parsed(file: DataFile, reader: Reader, lines_before: int) -> Iterator[ParsedChunk]:
    gathered: list[Record] = []
    started = end = 0
    for record, size, end in parse_records(file, reader, lines_before):
        gathered.append(record)
        if size - started >= PIECE or len(gathered) >= READY_RECORDS:
            yield ParsedChunk(file, tuple(gathered), end)
            gathered.clear()
            started = size
    if gathered:
        yield ParsedChunk(file, tuple(gathered), end)


def _refuse_other_json(file: DataFile, data: bytes) -> None:
    start = data[:4096].lstrip()
    if start.startswith(b"["):
        message = "the file is a JSON array; JSON Lines has one object on each line"
        raise DataError(
            file.problem("JSONArray", message, "set spec.dataset.format to json, or write one object per line")
        )
    if INDENTED.match(start):
        message = "the file is indented JSON, one object over many lines; JSON Lines has one object on each line"
        raise DataError(file.problem("IndentedJSON", message, "write one object per line, as `jq -c .` does"))

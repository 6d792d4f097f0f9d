"""Parts of formats whose records may span lines: found by one process as fast as it reads, parsed by many.

A part ends where a record ends for sure. Where that cannot be told (a quote that is nowhere closed, a line too long to
be held), what follows is parsed here, in order.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from finetune_trainer.prepare.data.delimited import read_csv
from finetune_trainer.prepare.data.formats import LONGEST_LINE, DataFile, DocumentUnit, Format, Record
from finetune_trainer.prepare.data.lines import Piece, pieces
from finetune_trainer.prepare.data.streams import Compression, Reader
from finetune_trainer.prepare.data.text import read_documents

BETWEEN_PARAGRAPHS = re.compile(rb"\n[ \t\r\f\v]*\n")


@dataclass(frozen=True, slots=True)
class RecordsChunk:
    """Whole records, as bytes.

    Attributes:
        head: what the file begins with before its first record: the names of the columns.
        first: number of the first line of `data`.
    """

    file: DataFile
    head: bytes
    first: int
    data: bytes
    end: int

    @property
    def last(self) -> int:
        """Number of its last line."""
        return self.first + max(1, self.data.count(b"\n")) - 1

    def records(self) -> Iterator[Record]:
        """Parse them, as if the lines before were there."""
        reader = Reader(io.BytesIO(self.head + self.data), Compression.NONE)
        shift = self.first - 1 - self.head.count(b"\n")
        for record, _, _ in parse_records(self.file, reader, shift):
            yield record


def parse_records(file: DataFile, reader: Reader, shift: int = 0) -> Iterator[tuple[Record, int, int]]:
    """Yield (record, bytes of plain data so far, bytes of the file so far) of every record.

    Args:
        shift: lines of the file that are left out here, behind what it begins with.
    """
    if file.format is not Format.TEXT:
        yield from read_csv(file, reader, shift)
        return
    for record, size, end in read_documents(file, reader):
        yield replace(record, line=record.line + shift), size, end


def in_parts(file: DataFile) -> bool:
    """Return whether the records of a file can be separated without parsing them."""
    return file.format in (Format.CSV, Format.TSV) or (
        file.format is Format.TEXT and file.documents is DocumentUnit.PARAGRAPH
    )


class Rest(Reader):
    """What follows the last part, for a parser that reads in order.

    Attributes:
        lines_before: of the file, less those of the head.
    """

    def __init__(self, head: bytes, first: int, data: bytes, following: Iterator[Piece], position: int) -> None:
        super().__init__(io.BytesIO(), Compression.NONE)
        self.position = position
        self.lines_before = first - 1 - head.count(b"\n")
        self._begin = head + data
        self._following = following

    def blocks(self) -> Iterator[bytes]:
        """Yield the head, then all bytes that are in no part."""
        if self._begin:
            yield self._begin
        for piece in self._following:
            self.position = piece.end
            yield b"x" * (LONGEST_LINE + 1) + b"\n" if piece.data is None else piece.data  # too long again


def parts(file: DataFile, reader: Reader) -> Iterator[RecordsChunk | Rest]:
    """Yield the records in parts of some MiB; then the rest, if records cannot be separated to the end.

    Raises:
        DataError: the header is wrong.
        StreamError: as of `pieces`.
    """
    following = pieces(reader)
    head: bytes | None = b"" if file.format is Format.TEXT else None
    first, data, end = 1, b"", 0
    for piece in following:
        end = piece.end
        if piece.data is None:
            yield Rest(head or b"", first, data, chain([piece], following), end)
            return
        data += piece.data
        if head is None:
            if (head := _head(file, data)) is None:
                yield Rest(b"", first, data, following, end)
                return
            data, first = data[len(head) :], 1 + head.count(b"\n")
        cut = _paragraphs(data) if file.format is Format.TEXT else _rows(file, data)
        if cut is None or (not cut and len(data) > LONGEST_LINE):
            yield Rest(head, first, data, following, end)
            return
        if cut:
            yield RecordsChunk(file, head, first, data[:cut], end)
            first += data.count(b"\n", 0, cut)
            data = data[cut:]
    if data and head is not None:
        yield RecordsChunk(file, head, first, data, end)


def _head(file: DataFile, data: bytes) -> bytes | None:
    """Return the lines before the first record, which its own parser finds; None if there is no record yet."""
    for record, _, _ in read_csv(file, Reader(io.BytesIO(data), Compression.NONE)):
        lines = data.split(b"\n", record.line - 1)[: record.line - 1]
        return b"".join(line + b"\n" for line in lines)
    return None


def _paragraphs(data: bytes) -> int:
    """Return where the last whole paragraph ends; 0 if there is none."""
    start = len(data)
    while start > 0:  # from behind, a few KiB at a time: the last blank line is near the end
        start = max(0, start - (1 << 14))
        found = [match.end() for match in BETWEEN_PARAGRAPHS.finditer(data, start)]
        if found:
            return found[-1]
    return 0


def _rows(file: DataFile, data: bytes) -> int | None:
    """Return where the last whole row ends; 0 if there is none; None where quotes are not used as quotes."""
    whole = data.rfind(b"\n") + 1
    if not file.quotes or b'"' not in data:
        return whole
    lines = data[:whole].split(b"\n")[:-1]
    read = 0

    def feed() -> Iterator[str]:
        nonlocal read
        for line in lines:
            read += 1
            yield line.decode("utf-8", "surrogateescape") + "\n"

    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(feed(), delimiter=file.separator, strict=True)
    done = 0
    try:
        for _ in rows:
            done = read
    except csv.Error as error:
        if "unexpected end of data" not in str(error):
            return None
    return sum(len(line) + 1 for line in lines[:done])

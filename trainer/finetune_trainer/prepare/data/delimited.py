"""Columns between delimiters: CSV and TSV with a header and quotes, and pairs (`input<TAB>output`) with neither."""

import csv
from collections.abc import Iterator
from typing import Literal

from finetune_api.errors import DataError
from finetune_trainer.prepare.data.formats import LONGEST_LINE, Code, DataFile, Fault, Format, Record, Row
from finetune_trainer.prepare.data.jsonl import not_utf8
from finetune_trainer.prepare.data.lines import read_lines, too_long
from finetune_trainer.prepare.data.sniff import AGREE, DELIMITERS, EXCEL
from finetune_trainer.prepare.data.streams import Reader

PAIR = ("input", "output")
SURE_LINES = 8  # within one quote, each of which is a row: more than a text has by chance


class _TooLongError(Exception):
    """The error, through csv.reader, for a line that was not read."""


class _Feed:
    """The lines of a file for csv.reader: an iterator that continues after an error, unlike a generator."""

    def __init__(self, reader: Reader) -> None:
        self._lines = read_lines(reader)
        self._read = 0
        self.shift = 0  # lines of the file that are not given out
        self.size = 0  # bytes of the lines given out
        self.end = 0
        self.record: list[str] = []  # the lines given out since it was emptied

    def __iter__(self) -> Iterator[str]:
        return self

    @property
    def number(self) -> int:
        """Number of the line that was given out last."""
        return self._read + self.shift

    def __next__(self) -> str:
        self._read, raw, self.end = next(self._lines)
        if raw is None:
            raise _TooLongError
        self.size += len(raw)
        # bytes that are not UTF-8 become lone surrogates, so that one bad record does not end the reading
        line = raw.decode("utf-8", "surrogateescape")
        self.record.append(line)
        return line


def read_csv(file: DataFile, reader: Reader, shift: int = 0) -> Iterator[tuple[Record, int, int]]:
    """Yield (record, bytes of plain data so far, bytes of the file so far) of every record.

    Args:
        shift: lines of the file between its header and what follows it here.

    Raises:
        DataError: the header is wrong.
        StreamError: as of `lines`.
    """
    csv.field_size_limit(LONGEST_LINE)
    feed = _Feed(reader)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if file.quotes else csv.QUOTE_NONE
    rows = csv.reader(feed, delimiter=file.separator, quoting=quoting, strict=True)
    header: list[str] | None = None
    seen: list[_Values] = []
    while True:
        line = feed.number + 1
        feed.record.clear()
        try:
            fields = next(rows)
        except StopIteration:
            return
        except _TooLongError:
            for fault in _lost(line, feed.record, "a quote is opened here, and a line within it is too long"):
                yield fault, feed.size, feed.end
            yield too_long(feed.number), feed.size, feed.end
            continue
        except csv.Error as error:
            for fault in _lost(line, feed.record, _said(error)):
                yield fault, feed.size, feed.end
            continue
        if not fields or (header is None and line == 1 and _is_excel_line(feed.record)):
            continue
        if header is None:
            header = _header(file, line, fields)
            feed.shift = shift
            seen = [_Values() for _ in header]
            continue
        if len(feed.record) > 1 and _are_rows(feed.record, file.separator, seen):
            message = (
                f"a quote is opened here and closed in line {feed.number}: all lines between are rows of their own"
            )
            for fault in _lost(line, feed.record, message, Code.ROWS_IN_QUOTES):
                yield fault, feed.size, feed.end
            continue
        record = _csv_row(line, header, fields if file.quotes else [_unquoted(field) for field in fields])
        if isinstance(record, Row):
            for values, field in zip(seen, fields, strict=True):
                values.add(field)
        yield record, feed.size, feed.end


def _is_excel_line(record: list[str]) -> bool:
    return EXCEL.fullmatch("".join(record).encode("utf-8", "surrogateescape")) is not None


def _said(error: csv.Error) -> str:
    if "unexpected end of data" in str(error) or "field larger" in str(error):
        return "a quote is opened here and never closed"
    return f"not valid CSV: {error}"


def _lost(line: int, record: list[str], message: str, code: Code = Code.INVALID_CSV) -> Iterator[Fault]:
    """Yield a fault for each line of an unreadable record: all of them are lost, and all are counted."""
    for number, text in enumerate(record, line):
        if number == line:
            yield Fault(number, code, message)
        elif text.strip():
            yield Fault(number, code, f"the line is inside a quote that is opened in line {line}")


class _Values:
    """The different values of one column, as long as they are few: those of labels."""

    MOST = 64
    ROWS = 20  # before them, few values mean nothing

    def __init__(self) -> None:
        self.rows = 0
        self._values: set[str] | None = set()

    def add(self, value: str) -> None:
        self.rows += 1
        if self._values is not None:
            self._values.add(value)
            if len(self._values) > self.MOST:
                self._values = None

    @property
    def few(self) -> set[str]:
        """None of them where they are many."""
        found = self._values or set()
        return found if self.rows >= self.ROWS and 3 * len(found) <= self.rows else set()


def _are_rows(record: list[str], separator: str, seen: list[_Values]) -> bool:
    """Return whether the lines of one record are rows that a stray quote has joined, not the lines of one text.

    The lines within have a field for every column, and no blank after a delimiter, as prose has. A column of few
    values, such as a label, decides; without one there must be more such lines than a text has by chance.
    """
    width = len(seen)
    if width < 2:
        return False
    parted = [line.rstrip("\r\n").split(separator) for line in record if line.strip()]
    like = [_like_row(parts, width) for parts in parted]
    within = parted[1:-1]
    if not all(like[1:-1]) or not (any if within else all)((like[0], like[-1])):
        return False
    labels = [(place, values.few) for place, values in enumerate(seen) if values.few]
    rows = within or parted[:1]
    matching = sum(any(parts[place].strip('"') in few for place, few in labels) for parts in rows)
    if labels and 2 * matching > len(rows):
        return True
    return len(within) >= (SURE_LINES if labels else 2)


def _like_row(parts: list[str], width: int) -> bool:
    return (
        len(parts) == width
        and all(part[:1] not in (" ", "\t") for part in parts)
        and bool(parts[0].strip('"') and parts[-1].strip('"'))
    )


def _unquoted(field: str) -> str:
    """Return a field of a file without quotes; remove quotes around it, and halve doubled ones within it."""
    inner = field[1:-1]
    if len(field) > 3 and field[0] == field[-1] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return field


def _header(file: DataFile, line: int, fields: list[str]) -> list[str]:
    names = [name.strip() for name in fields]
    escaped = next((char for char in "".join(names) if "\udc80" <= char <= "\udcff"), None)
    if escaped is not None:
        message = f"the header holds {not_utf8(ord(escaped) - 0xDC00)}"
        raise DataError(file.problem("NotUTF8", message, "save the file as UTF-8"))
    if len(names) == 1:
        other = max((mark for mark in DELIMITERS if mark != file.separator), key=names[0].count)
        if other in names[0]:
            raise DataError(
                file.problem(
                    "WrongDelimiter",
                    f"the header is one column, {names[0]!r}; the delimiter seems to be {other!r}",
                    f"set spec.dataset.delimiter to {other!r}",
                )
            )
    # pandas writes its index as a column without name; an unused one is harmless
    names = [name or f"column {place}" for place, name in enumerate(names, start=1)] if any(names) else names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        wrong = f"the column {twice[0]!r} occurs twice" if twice[0] else "no column has a name"
        raise DataError(
            file.problem("InvalidHeader", f"line {line} is not a header: {wrong}", "begin with a line of names")
        )
    return names


def _csv_row(line: int, header: list[str], fields: list[str]) -> Record:
    for name, field in zip(header, fields, strict=False):
        if (bad := _bad_text(line, f"column {name!r}", field)) is not None:
            return bad
    if len(fields) != len(header):
        return Fault(line, Code.RAGGED_ROW, f"there are {len(fields)} fields, but the header has {len(header)}")
    if len(header) > 1 and [field.strip() for field in fields] == header:
        return Fault(line, Code.REPEATED_HEADER, "the line repeats the header")
    return Row(line, dict(zip(header, fields, strict=True)))


def _bad_text(line: int, what: str, field: str) -> Fault | None:
    if "\0" in field:
        return Fault(line, Code.NUL, f"there is a NUL character in {what}")
    if not field.isascii() and (escaped := next((c for c in field if "\udc80" <= c <= "\udcff"), None)) is not None:
        return Fault(line, Code.BAD_UTF8, f"{what} holds the byte {not_utf8(ord(escaped) - 0xDC00)}")
    return None


def parse_pair(file: DataFile, line: int, raw: bytes) -> Record:
    """Parse one line of pairs, without its line break."""
    text = raw.decode("utf-8", "surrogateescape")
    if (bad := _bad_text(line, "the line", text)) is not None:
        return bad
    fields = text.split(file.separator)
    if len(fields) != len(PAIR):
        seen = "there is no" if len(fields) == 1 else f"there are {len(fields) - 1} times"
        return Fault(line, Code.RAGGED_ROW, f"{seen} {file.separator!r} on the line; a pair has it once")
    return Row(line, dict(zip(PAIR, fields, strict=True)))


def looks_like_pairs(start: bytes) -> bool:
    """Return whether text begins with lines of one tab each, with something on both sides; a few may be broken."""
    whole = start.rpartition(b"\n")[0].splitlines()
    found = [line.split(b"\t") for line in whole if line.strip()]
    pairs = sum(len(parts) == 2 and all(part.strip() for part in parts) for parts in found)
    return len(found) > 1 and pairs >= AGREE * len(found)


def delimiter_problem(file: DataFile) -> str | None:
    """Return why the format cannot take the delimiter, if it cannot."""
    if file.delimiter is None or file.format is Format.PAIRS:
        return None
    if file.format not in (Format.CSV, Format.TSV):
        return f"is {file.delimiter!r}, and {file.name} is {file.format}, which has no delimiter"
    if len(file.delimiter) > 1:
        return f"is {file.delimiter!r}; a delimiter of {file.format} is one character (of pairs, any number)"
    return None

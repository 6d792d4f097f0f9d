"""Plain text: one document to a line, to a paragraph (between blank lines) or to a file."""

from collections.abc import Iterator

from finetune_trainer.prepare.data.formats import LONGEST_LINE, Code, DataFile, DocumentUnit, Fault, Record, Row
from finetune_trainer.prepare.data.jsonl import not_utf8
from finetune_trainer.prepare.data.lines import read_lines, too_long
from finetune_trainer.prepare.data.streams import Reader

COLUMN = "text"


def parse_document(line: int, raw: bytes) -> Record:
    """Parse one document; `line` is its first."""
    if b"\0" in raw:
        return Fault(line, Code.NUL, "there is a NUL character in the text")
    try:
        return Row(line, {COLUMN: raw.decode("utf-8")})
    except UnicodeDecodeError as error:
        at = line + raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        return Fault(at, Code.BAD_UTF8, f"byte {byte} of the line is {not_utf8(raw[error.start])}")


def read_documents(file: DataFile, reader: Reader) -> Iterator[tuple[Record, int, int]]:
    """Yield (record, bytes of plain data so far, bytes of the file so far) of every paragraph, or of the whole file.

    Raises:
        StreamError: as of `lines`.
    """
    whole = file.documents is DocumentUnit.FILE
    gathered: list[bytes] = []
    first = size = total = end = 0
    for number, line, end in read_lines(reader):
        if line is None:
            size = LONGEST_LINE + 1
            first = first or number
            gathered.clear()
            continue
        total += len(line)
        if not line.strip() and not whole:
            if first:
                yield _document(first, gathered, size), total, end
            gathered.clear()
            first = size = 0
            continue
        if not first:
            first = number
        size += len(line)
        if size <= LONGEST_LINE:
            gathered.append(line)
        else:
            gathered.clear()
    if first:
        yield _document(first, gathered, size), total, end


def _document(first: int, gathered: list[bytes], size: int) -> Record:
    if size > LONGEST_LINE:
        return too_long(first)
    return parse_document(first, b"".join(gathered).rstrip(b"\r\n"))

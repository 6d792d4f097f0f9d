"""Lines of a file in pieces of a few MiB, each with its first line's number. A line without end costs no memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.prepare.data.formats import LONGEST_LINE, UTF8_BOM, Code, Fault
from finetune_trainer.prepare.data.streams import Reader, StreamError

PIECE = 2 << 20  # bytes: enough that a process is worth asking, little enough to hold a dozen


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines.

    Attributes:
        first: number of the first line, from 1.
        data: the lines with their line breaks; the file's last may have none. None: one line, too long to be read.
        end: bytes of the file on disk that had been read.
    """

    first: int
    data: bytes | None
    end: int


def pieces(reader: Reader, longest: int = LONGEST_LINE) -> Iterator[Piece]:
    """Yield all lines of a file in pieces, without a byte order mark.

    Raises:
        StreamError: the file ends early or is damaged; the whole lines before were yielded.
    """
    pending = bytearray()
    whole = 0  # bytes of it up to the last line break
    line = 1
    skipping = False
    broken: StreamError | None = None
    blocks = _without_mark(reader.blocks())
    while True:
        try:
            block = next(blocks, b"")
        except StreamError as error:
            broken, block = error, b""
        ended = not block
        last = block.rfind(b"\n")
        if skipping and not ended:
            if last < 0:
                continue
            cut = block.find(b"\n") + 1
            block, last = block[cut:], last - cut
            line += 1
            skipping = False
        if last >= 0:
            whole = len(pending) + last + 1
        pending += block
        if whole and (len(pending) >= PIECE or ended):
            data = bytes(pending[:whole])
            del pending[:whole]
            whole = 0
            yield Piece(line, data, reader.position)
            line += data.count(b"\n")
        if len(pending) > longest and not whole:
            pending.clear()
            skipping = True
            yield Piece(line, None, reader.position)
        if ended:
            break
    if broken is not None:  # what follows the last whole line is half a line
        raise broken
    if pending:
        yield Piece(line, bytes(pending), reader.position)


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(UTF8_BOM):
            break
    if start := start.removeprefix(UTF8_BOM):
        yield start
    yield from blocks


def read_lines(reader: Reader) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (number, the line with its line break or None if it is too long, bytes read so far) of every line."""
    for piece in pieces(reader):
        if piece.data is None:
            yield piece.first, None, piece.end
        else:
            for number, line in enumerate(_split(piece.data), piece.first):
                yield number, line, piece.end


def _split(data: bytes) -> list[bytes]:
    # not splitlines(): a lone carriage return is no break in editors, and would shift all numbers after it
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def too_long(line: int) -> Fault:
    """Return the fault of a line, or record, beyond the limit."""
    return Fault(line, Code.LINE_TOO_LONG, f"there are more than {LONGEST_LINE >> 20} MiB before the next line break")

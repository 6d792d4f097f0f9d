"""One JSON array of objects, element by element, through a buffer that holds only a few of them.

One process finds where elements end; they are parsed, and held against our rules, by many.
"""

import codecs
import json
from collections.abc import Iterator

from finetune_api.errors import DataError
from finetune_trainer.prepare.data.formats import LONGEST_LINE, UTF8_BOM, Code, DataFile, Fault, Record
from finetune_trainer.prepare.data.jsonl import DECODER, as_row, explain
from finetune_trainer.prepare.data.lines import too_long
from finetune_trainer.prepare.data.streams import Reader

PLAIN = json.JSONDecoder()  # finds the end of an element, also of one that breaks a rule of ours
BLANKS = " \t\r\n"
CURE = "write the array again with a JSON library, or use JSON lines: there one broken row does not hide the others"


class _Buffer:
    """Text of the file from the first character that is not consumed."""

    def __init__(self, reader: Reader) -> None:
        self._blocks = reader.blocks()
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.text = ""
        self.at = 0
        self.lines = 1  # number of the line on which `text` begins
        self.ended = False

    def grow(self) -> None:
        """Read until there is twice as much: an element is tried again only so often as its length doubles."""
        self.lines += self.text.count("\n", 0, self.at)
        parts = [self.text[self.at :]]
        self.at = 0
        size, wanted = len(parts[0]), max(1 << 20, 2 * len(parts[0]))
        while size < wanted:
            block = next(self._blocks, b"")
            parts.append(self._decode(block, final=not block))
            size += len(parts[-1])
            if not block:
                self.ended = True
                break
        self.text = "".join(parts)

    def peek(self) -> str:
        """Return the next character that is not blank, without consuming it; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in BLANKS:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.grow()

    def where(self, position: int) -> str:
        """Return line and column of a place in `text`."""
        line = self.lines + self.text.count("\n", 0, position)
        return f"line {line} column {position - self.text.rfind(chr(10), 0, position)}"


def read_array(file: DataFile, reader: Reader) -> Iterator[tuple[str, int]]:
    """Yield (text, bytes of the file so far) of every element.

    Raises:
        DataError: the array is broken; what follows cannot be found.
        StreamError: as of `Reader.blocks`.
    """
    buffer = _Buffer(reader)
    if buffer.peek() == UTF8_BOM.decode():
        buffer.at += 1
    if buffer.peek() != "[":
        if not buffer.text:
            return
        message = f"the file does not begin with '[' but with {buffer.text[buffer.at : buffer.at + 20]!r}"
        raise DataError(file.problem("NotAnArray", message, "write an array of objects, or set format to jsonl"))
    buffer.at += 1
    row = 0
    if buffer.peek() == "]":
        return
    while True:
        row += 1
        yield _element(file, buffer, row), reader.position
        mark = buffer.peek()
        buffer.at += 1
        if mark == "]":
            break
        if mark != ",":
            raise _broken(file, buffer, row, mark)
        if buffer.peek() == "]":
            message = f"a comma comes before the closing bracket of the array, at {buffer.where(buffer.at)}"
            raise DataError(file.problem("TrailingComma", message, "remove the comma"))
    if buffer.peek():
        message = f"there is more text after the end of the array, at {buffer.where(buffer.at)}"
        raise DataError(file.problem("InvalidJSON", message, CURE))


def _broken(file: DataFile, buffer: _Buffer, rows: int, mark: str) -> DataError:
    if not mark:
        message = f"the array is not closed: the file ends after {rows} rows"
        return DataError(file.problem("TruncatedFile", message, "copy the whole file again"))
    message = f"there is no comma between row {rows} and what follows, at {buffer.where(buffer.at - 1)}"
    return DataError(file.problem("InvalidJSON", message, CURE))


def _element(file: DataFile, buffer: _Buffer, row: int) -> str:
    if not buffer.peek():
        raise _broken(file, buffer, row - 1, "")
    while True:
        start = buffer.at
        try:
            _, buffer.at = PLAIN.raw_decode(buffer.text, start)
        except json.JSONDecodeError as error:
            if buffer.ended or len(buffer.text) - start > 2 * LONGEST_LINE:
                raise _invalid(file, buffer, row, error) from error
            buffer.grow()
            continue
        except RecursionError as error:
            message = f"row {row}, at {buffer.where(start)}, is nested too deeply"
            raise DataError(file.problem("InvalidJSON", message, CURE)) from error
        except ValueError as error:  # an integer of more digits than Python converts
            if buffer.ended:
                raise DataError(
                    file.problem("InvalidJSON", f"row {row}, at {buffer.where(start)}: {error}", CURE)
                ) from error
            buffer.grow()
            continue
        if buffer.at == len(buffer.text) and not buffer.ended:  # a number may go on
            buffer.at = start
            buffer.grow()
            continue
        return buffer.text[start : buffer.at]


def parse_element(row: int, text: str) -> Record:
    """Parse one element, whose JSON is valid, as a row; rows are numbered from 1."""
    try:
        value = DECODER.decode(text)
    except ValueError as error:  # a rule of ours
        return explain(row, "", error)
    return _checked(row, text, value)


def _checked(row: int, text: str, value: object) -> Record:
    if len(text) > LONGEST_LINE:
        return too_long(row)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return Fault(row, Code.BAD_UTF8, "the row holds bytes that are not UTF-8")
    return as_row(row, value, text)


def _invalid(file: DataFile, buffer: _Buffer, row: int, error: json.JSONDecodeError) -> DataError:
    if (buffer.ended and error.pos >= len(buffer.text.rstrip()) - 1) or error.msg.startswith("Unterminated string"):
        return _broken(file, buffer, row - 1, "")
    python = buffer.text.startswith("{'", buffer.at)
    code = Code.PYTHON_LITERAL if python else Code.INVALID_JSON
    message = f"row {row} is not valid JSON at {buffer.where(error.pos)}: {error.msg}"
    return DataError(file.problem(code, message, CURE))

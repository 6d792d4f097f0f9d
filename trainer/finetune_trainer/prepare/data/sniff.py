"""What text is, by how it begins: JSON lines, an array, or columns between delimiters. Pure: bytes in, an answer out.

A name is a hint only: files are called .txt by a mail program and .csv by a spreadsheet of another country.
"""

import csv
import re
from dataclasses import dataclass

from finetune_trainer.prepare.data.column_names import KNOWN
from finetune_trainer.prepare.data.formats import UTF8_BOM, Format

DELIMITERS = (",", ";", "\t", "|")
ROWS = 200  # looked at
AGREE = 0.9  # of the rows have as many fields as the header: some may be broken
# a key and its colon; the quotes may be Python's; the fault of the line shows it
KEY = re.compile(rb"""\{\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*:""")
ARRAY = re.compile(rb"""\[\s*(?:\{\s*["'}]|"(?:[^"\\]|\\.)*"\s*[,\]])""")
INDENTED = re.compile(rb"\{[ \t\r]*\n\s*[\"}]")
NAME = re.compile(r"[^\W\d][\w.-]*(?: [\w.-]+){0,2}")
EXCEL = re.compile(rb'"?sep=([^\r\n"])"?[ \t]*\r?(?:\n|$)', re.IGNORECASE)  # tells Excel the delimiter; no row


@dataclass(frozen=True)
class FileStart:
    """How a file begins.

    Attributes:
        data: the first plain bytes.
        whole: whether there are no more.
    """

    data: bytes
    whole: bool

    @property
    def text(self) -> bytes:
        """Without the mark of its encoding and Excel's line."""
        body = self.data.removeprefix(UTF8_BOM)
        return body[found.end() :] if (found := EXCEL.match(body)) else body

    @property
    def excel(self) -> str | None:
        """The delimiter that Excel's line names."""
        found = EXCEL.match(self.data.removeprefix(UTF8_BOM))
        return found[1].decode("latin-1") if found else None

    @property
    def lines(self) -> list[str]:
        """Whole lines that are not blank, without line breaks; the only one may be cut."""
        text = self.text.decode("utf-8", "replace")
        if not self.whole and "\n" in text:
            text = text.rpartition("\n")[0]
        return [line.rstrip("\r") for line in text.split("\n") if line.strip()]

    def fields(self, delimiter: str) -> list[list[str]]:
        """Return the first records with the header, read with quotes; leave out one that may be incomplete."""
        lines = self.lines
        try:
            rows = [row for row in csv.reader([f"{line}\n" for line in lines[:ROWS]], delimiter=delimiter) if row]
        except csv.Error:  # such as a NUL
            return []
        cut = not self.whole or len(lines) > ROWS
        return rows[:-1] if cut and len(rows) > 2 else rows


def json_format(start: FileStart) -> Format | None:
    """Return JSON lines or array, if the text is one of them: a document in braces is neither."""
    text = start.text.lstrip()
    if ARRAY.match(text):
        return Format.JSON
    if INDENTED.match(text):
        return Format.JSONL  # its faults show what is wrong
    lines = [line.strip() for line in text.split(b"\n") if line.strip()]
    keyed = sum(KEY.match(line) is not None for line in lines)
    return Format.JSONL if 2 * keyed > len(lines) else None


def table_delimiter(start: FileStart, given: str | None = None) -> str | None:
    """Return the delimiter of text that begins with column names, one of them usual; None for other text."""
    if given is not None and len(given) != 1:
        return None
    for mark in (given,) if given else DELIMITERS:
        header, *rows = start.fields(mark) or [[]]
        names = [name.strip() for name in header]
        named = len(names) > 1 and all(NAME.fullmatch(name) for name in names[1:] + names[:1] if name)
        known = sum(name.lower() in KNOWN for name in names)
        alike = sum(len(row) == len(names) for row in rows)
        if named and rows and (known > 1 or (known and 2 * alike >= len(rows))):  # broken rows become faults
            return mark
    return None


def delimiters(start: FileStart, default: str) -> list[str]:
    """Return the delimiters that fit the beginning of a table: none, one or several.

    Args:
        default: is taken where it parts the header.
    """
    if start.excel:
        return [start.excel]
    parted = {mark: start.fields(mark) for mark in DELIMITERS}
    fitting = [mark for mark, rows in parted.items() if _fits(rows)]
    usual = parted[default]
    if usual and len(usual[0]) > 1 and (default in fitting or not any(_names(parted[mark]) for mark in fitting)):
        return [default]
    return [mark for mark in fitting if _names(parted[mark])] or fitting


def tabs_are_quoted(start: FileStart) -> bool:
    """Return whether fields between tabs are quoted: usually they are not, and a quote is an ordinary character."""
    lines = start.lines[:ROWS]
    if not lines:
        return False
    header = lines[0].split("\t")
    if any(len(name) > 1 and name[0] == name[-1] == '"' for name in header):
        return True
    plain = sum(len(line.split("\t")) == len(header) for line in lines)
    quoted = start.fields("\t")
    return plain < len(lines) and _fits(quoted) and sum(len(row) == len(header) for row in quoted) == len(quoted)


def _fits(rows: list[list[str]]) -> bool:
    if not rows or len(rows[0]) < 2:
        return False
    return sum(len(row) == len(rows[0]) for row in rows) >= AGREE * len(rows)


def _names(rows: list[list[str]]) -> bool:
    return bool(rows) and _known(rows[0])


def _known(names: list[str]) -> bool:
    return any(name.strip().lower() in KNOWN for name in names)

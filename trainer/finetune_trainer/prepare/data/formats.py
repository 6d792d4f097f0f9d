"""What a data file is and what its records are: Row or Fault. A module named after each format reads it.

Line numbers are those an editor shows: a CSV record with line breaks in quotes has the line on which it starts. A
format without lines (Parquet, Arrow, a JSON array) numbers its rows from 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from finetune_api.errors import Problem

UTF8_BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 16 << 20  # bytes: four million tokens, more than any context; beyond it a line break or quote is missing


class Format(StrEnum):
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PAIRS = "pairs"
    TEXT = "text"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def is_text(self) -> bool:
        """Whether an editor shows it: UTF-8, with line numbers or not."""
        return self not in (Format.PARQUET, Format.ARROW)


class DocumentUnit(StrEnum):
    """What one document of a plain text file is."""

    FILE = "file"
    PARAGRAPH = "paragraph"
    LINE = "line"


class Code(StrEnum):
    """What can be wrong with one record."""

    BAD_UTF8 = "BadUTF8"
    NUL = "NulCharacter"
    LINE_TOO_LONG = "LineTooLong"
    INVALID_JSON = "InvalidJSON"
    PYTHON_LITERAL = "PythonLiteral"
    TRAILING_COMMA = "TrailingComma"
    SEVERAL_OBJECTS = "SeveralObjects"
    DUPLICATE_KEY = "DuplicateKey"
    NOT_A_NUMBER = "NotANumber"
    NOT_AN_OBJECT = "NotAnObject"
    INVALID_CSV = "InvalidCSV"
    ROWS_IN_QUOTES = "RowsInQuotes"
    RAGGED_ROW = "RaggedRow"
    REPEATED_HEADER = "RepeatedHeader"
    MISSING_FIELD = "MissingField"
    SEVERAL_POSITIVES = "SeveralPositives"
    MIXED_COLUMNS = "MixedColumns"
    WRONG_TYPE = "WrongType"
    NULL_VALUE = "NullValue"
    EMPTY_TEXT = "EmptyText"
    EMPTY_LABEL = "EmptyLabel"
    LABEL_TYPE = "LabelType"
    MIXED_LABELS = "MixedLabels"
    REPEATED_LABEL = "RepeatedLabel"
    NOT_FINITE = "NotFinite"
    BAD_UNICODE = "BadUnicode"
    NO_MESSAGES = "NoMessages"
    INVALID_MESSAGE = "InvalidMessage"
    NO_SPLIT = "NoSplit"
    OLD_CALLS = "FunctionCalls"
    UNKNOWN_TOOL = "UnknownTool"
    CALL_ARGUMENTS = "CallArguments"
    UNKNOWN_CALL = "UnknownCall"
    UNKNOWN_ROLE = "UnknownRole"
    WRONG_ROLE_ORDER = "WrongRoleOrder"
    NO_ASSISTANT = "NoAssistant"
    SEVERAL_ANSWERS = "SeveralAnswers"
    EMPTY_MESSAGE = "EmptyMessage"
    NOT_TEXT = "NotText"
    INVALID_WEIGHT = "InvalidWeight"
    UNSEEN_LABEL = "UnseenLabel"
    NO_COMMON_PROMPT = "NoCommonPrompt"
    NOTHING_TO_LEARN = "NothingToLearn"
    TEMPLATE_FAILED = "TemplateFailed"
    NOT_WRITTEN = "NotWritten"
    UNEQUAL_LISTS = "UnequalLists"
    INVALID_SPAN = "InvalidSpan"


@dataclass(frozen=True, slots=True)
class Row:
    """One record: column -> value, as the file has it."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One record that breaks a rule."""

    line: int
    code: Code
    message: str


Record = Row | Fault
Records = Iterator[Record]


@dataclass(frozen=True)
class DataFile:
    """A file to read, and how errors name it.

    Attributes:
        path: where it lies on this machine.
        name: what the user calls it: its uri.
        field: the field of the job that led to it.
        delimiter: between columns; None = the format's own.
        documents: of plain text.
        columns: all that is read of a columnar file; None = every column.
        quotes: whether fields between delimiters may be quoted.
    """

    path: Path
    name: str
    field: str
    format: Format
    delimiter: str | None = None
    documents: DocumentUnit = DocumentUnit.LINE
    columns: tuple[str, ...] | None = None
    quotes: bool = True

    @property
    def separator(self) -> str:
        """Between two columns."""
        return self.delimiter or ("," if self.format is Format.CSV else "\t")

    def problem(self, code: str, message: str, cure: str) -> Problem:
        """Return a problem with the file as a whole."""
        return Problem(code=code, field=self.field, message=message, cure=cure, file=self.name)


def json_type(value: object) -> str:
    """Return what JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")

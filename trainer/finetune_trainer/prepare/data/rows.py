"""From a row to an example of a task: which column plays which part, and what a value must be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetune_api.messages import Task
from finetune_trainer.prepare.data import alpaca, conversation
from finetune_trainer.prepare.data.conversation import Wrong
from finetune_trainer.prepare.data.formats import Code, Fault, Record, Row, json_type


class Layout(StrEnum):
    """What an example is made of."""

    LABELLED = "text, label"
    TEXT = "text"
    PAIR = "prompt, completion"
    CHAT = "messages"

    @property
    def parts(self) -> tuple[str, ...]:
        """Canonical column names."""
        return tuple(self.value.split(", "))


LAYOUTS = {
    Task.CLASSIFICATION: (Layout.LABELLED,),
    Task.CAUSAL_LM: (Layout.CHAT, Layout.PAIR, Layout.TEXT),
    Task.SEQ2SEQ: (Layout.PAIR,),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One checked row.

    Attributes:
        line: where its record starts in its file; a row number, from 1, where the format has no lines.
        text: the text, or the prompt of a pair; empty for a conversation.
        label: of a labelled text.
        completion: of a pair.
        messages: of a conversation: `role` and `content`, and whatever else a chat template reads. A message with
            `weight: 0` carries no loss.
        tools: descriptions of tools, for the chat template.
    """

    line: int
    text: str
    label: str = ""
    completion: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Columns:
    """Where the parts of an example stand in a row.

    Attributes:
        layout: what the examples are.
        names: part -> the file's column. The parts are the layout's, or those of Alpaca (`instruction`, ...), or, for
            a conversation, `prompt` and `completion` as lists of messages.
    """

    layout: Layout
    names: Mapping[str, str]

    def example(self, row: Row) -> Example | Fault:
        """The row as an example, or the first rule it breaks."""
        try:
            if "instruction" in self.names:
                return self._alpaca(row)
            return self._conversation(row) if self.layout is Layout.CHAT else self._texts(row)
        except Wrong as wrong:
            return Fault(row.line, wrong.code, wrong.message)

    def _value(self, row: Row, part: str) -> Any:
        column = self.names[part]
        if column in row.values:
            return row.values[column]
        raise self._missing(row, column)

    def _missing(self, row: Row, column: str) -> Wrong:
        if row.values and not row.values.keys() & set(self.names.values()):
            seen = ", ".join(repr(name) for name in list(row.values)[:8])
            return Wrong(Code.MIXED_COLUMNS, f"there is no {column!r}; the row has {seen} instead")
        return Wrong(Code.MISSING_FIELD, f"there is no {column!r}")

    def _optional(self, row: Row, part: str) -> Any:
        return row.values.get(self.names.get(part, part))

    def _texts(self, row: Row) -> Example:
        values: dict[str, str] = {}
        for part in self.layout.parts:
            value = self._value(row, part)
            values[part] = (_label if part == "label" else _text)(self.names[part], value)
        text = values.get("text", values.get("prompt", ""))
        return Example(row.line, text, values.get("label", ""), values.get("completion", ""))

    def _conversation(self, row: Row) -> Example:
        if "messages" in self.names:
            messages = conversation.conversation(self.names["messages"], self._value(row, "messages"))
        else:
            prompt, completion = self._value(row, "prompt"), self._value(row, "completion")
            messages = conversation.prompt_and_completion(prompt, completion, self.names)
        tools = self._optional(row, "tools") if "tools" in self.names else None
        return Example(row.line, "", messages=messages, tools=conversation.tools_of("tools", tools))

    def _alpaca(self, row: Row) -> Example:
        instruction = _text(self.names["instruction"], self._value(row, "instruction"))
        output = _text(self.names["output"], self._value(row, "output"))
        given, system = (self._text_or_nothing(row, part) for part in ("input", "system"))
        history = self._optional(row, "history")
        if self.layout is Layout.CHAT:
            return Example(row.line, "", messages=alpaca.conversation(instruction, given, output, system, history))
        if history or system.strip():
            seen = "history" if history else "system"
            raise Wrong(Code.INVALID_MESSAGE, f"{seen!r} is given, and the model has no chat template to write it")
        return Example(row.line, alpaca.prompt(instruction, given), completion=f"\n{output}")

    def _text_or_nothing(self, row: Row, part: str) -> str:
        value = self._optional(row, part)
        if value is None:
            return ""
        if not isinstance(value, str):
            column = self.names.get(part, part)
            raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a string")
        return _encodable(self.names.get(part, part), value)


def _text(column: str, value: Any) -> str:
    if value is None:
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; it must be a string")
    if not isinstance(value, str):
        raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a string")
    if not value or value.isspace():
        raise Wrong(Code.EMPTY_TEXT, f"{column!r} is empty")
    return _encodable(column, value)


def _label(column: str, value: Any) -> str:
    """A label's name: the text, or a number or boolean as JSON writes it (1.0 is 1: a float column with gaps)."""
    if isinstance(value, str):
        if not value.strip():
            raise Wrong(Code.EMPTY_LABEL, f"{column!r} is empty")
        return _encodable(column, value.strip())  # "spam " is no class of its own
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == value:
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        raise Wrong(Code.MULTI_LABEL, f"{column!r} is a list; several labels of one row are not supported yet")
    if value is None or value != value:  # NaN stands for null in columns of numbers
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; a label is a string, a number or a boolean")
    raise Wrong(Code.LABEL_TYPE, f"{column!r} is {json_type(value)}; a label is a string, a number or a boolean")


def _encodable(column: str, value: str) -> str:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Wrong(Code.BAD_UNICODE, f"{column!r} holds half of a character (\\u{code:04x} alone)") from None
    return value


def examples(records: Iterator[Record], columns: Columns) -> Iterator[Example | Fault]:
    """Every record as an example or a fault."""
    for record in records:
        yield columns.example(record) if isinstance(record, Row) else record

"""The one reader of YAML files: YAML 1.2. It is built from ruamel's events, so that every value has a line.

`2e-4` is a float (PyYAML reads a string), `12:30` a string (PyYAML reads 750), `on`, `yes` and dates are strings. JSON
is read as JSON. Tags, merge keys and cyclic aliases are refused: no job needs them.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from finetune_api.contract import KIND
from finetune_api.errors import Problem, SpecError

Keys = tuple[str | int, ...]

MAX_DEPTH = 50  # the parser takes quadratic time in the depth
MAX_NODES = 100_000  # values in one file; an alias counts each time it is used

_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class LineIndex:
    """The line of each path of a document. A path that is missing has the line of the nearest object above it."""

    at: dict[Keys, int]

    def __call__(self, path: Keys) -> int | None:
        for length in range(len(path), -1, -1):
            if path[:length] in self.at:
                return self.at[path[:length]]
        return None


def load(text: str, source: str) -> tuple[Any, LineIndex]:
    """Return the document in a text as dicts, lists, str, int, float, bool and None, and the lines of its values.

    If there are several documents, the one of the kind FineTuneJob is returned; there must be exactly one such.

    Args:
        text: YAML 1.2 or JSON.
        source: name of the file, for messages.

    Raises:
        SpecError: the text cannot be read, an object has a key twice, or several documents hold no job or several.
    """
    if text.lstrip().startswith("{") and (document := _load_json(text, source)) is not None:
        return document
    documents = list(_documents(text, source))
    if not documents:
        refuse(source, None, "Empty", "holds no document", "write a FineTuneJob into it")
    if len(documents) > 1:
        jobs = [one for one in documents if isinstance(one[0], dict) and one[0].get("kind") == KIND]
        if len(jobs) != 1:
            count = f"holds {len(documents)} documents, {len(jobs)} of them of kind {KIND}; must hold one"
            refuse(source, documents[1][1](()), "SeveralDocuments", count, "put each job into a file of its own")
        documents = jobs
    return documents[0]


def refuse(source: str, line: int | None, code: str, message: str, cure: str) -> NoReturn:
    """Raise SpecError for a file, at a line of it if one is given."""
    lines = () if line is None else (line,)
    raise SpecError(Problem(code=code, field=source, message=message, cure=cure, file=source, lines=lines))


def _load_json(text: str, source: str) -> tuple[Any, LineIndex] | None:
    """Read JSON as JSON, because its escapes are not YAML's; return None where the text is not JSON.

    The lines come from the YAML reader. Where it cannot read the text, every value has line 1.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            refuse(source, None, "DuplicateKey", f"has the key `{twice}` twice in one object", "keep one of them")
        return seen

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except ValueError:
        return None
    except RecursionError:
        refuse(source, None, "TooDeep", "is nested too deeply", "flatten it")
    try:
        ((_, lines),) = _documents(text, source)
    except SpecError:
        lines = LineIndex({(): 1})
    return data, lines


def _documents(text: str, source: str) -> Iterator[tuple[Any, LineIndex]]:
    yaml = YAML(typ="safe", pure=True)
    try:
        yield from _Reader(yaml.parse(io.StringIO(text)), source).documents()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        tab = "\\t" in what or "'\t'" in what
        cure = "indent with spaces" if tab else "correct the line; text with `: ` or ` #` in it needs quotes"
        refuse(source, line, "YamlSyntax", f"is not YAML: {what}", cure)
    except YAMLError as error:
        what = str(error).splitlines()[0]
        refuse(source, None, "YamlSyntax", f"is not YAML: {what}", "remove the characters that are not text")


class _Reader:
    """Builds plain values out of parser events, one document after another."""

    def __init__(self, events: Iterator[Event], source: str) -> None:
        self._events = events
        self._source = source

    def documents(self) -> Iterator[tuple[Any, LineIndex]]:
        """Yield each document with the lines of its values."""
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._lines: dict[Keys, int] = {}
                self._anchors: dict[str, list[Any]] = {}
                self._left = MAX_NODES
                yield self._value(next(self._events), ()), LineIndex(self._lines)

    def _value(self, event: Event, path: Keys) -> Any:
        line = _line_of(event)
        self._lines.setdefault(path, line)
        self._count(1, line)
        if len(path) > MAX_DEPTH:
            refuse(self._source, line, "TooDeep", f"is nested more than {MAX_DEPTH} levels deep", "flatten it")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            refuse(self._source, line, "Tag", f"has the tag {tag}; tags are not read", "leave the tag out")
        value: Any
        match event:
            case AliasEvent():
                return self._anchored(event, line)
            case MappingStartEvent():
                value = self._mapping(path)
            case SequenceStartEvent():
                value = self._sequence(path)
            case ScalarEvent():
                value = _scalar(event.value) if event.style in (None, "") and tag is None else event.value
            case _:
                raise AssertionError(f"ruamel sent {event} where a value begins")
        if event.anchor:
            self._anchors[event.anchor] = [value]
        return value

    def _anchored(self, alias: AliasEvent, line: int) -> Any:
        """Return the value that an alias stands for."""
        held = self._anchors.get(alias.anchor)
        if held is None:
            message = f"has the alias *{alias.anchor}, but its anchor does not end before it"
            refuse(self._source, line, "Alias", message, "write the value out")
        self._count(_size(held[0]), line)
        return held[0]

    def _mapping(self, path: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            line = _line_of(event)
            if not isinstance(event, ScalarEvent) or event.tag not in (None, "!"):
                refuse(self._source, line, "Key", "has a key that is not plain text", "write a name before the colon")
            key = str(event.value)
            if key == "<<" and event.style in (None, ""):
                refuse(self._source, line, "MergeKey", "has the merge key <<, which is not YAML 1.2", "write it out")
            if key in values:
                message = f"has the key `{key}` twice, in line {first_line[key]} and again in line {line}"
                refuse(self._source, line, "DuplicateKey", message, "keep one of them")
            first_line[key] = line
            self._lines[(*path, key)] = line
            values[key] = self._value(next(self._events), (*path, key))
        return values

    def _sequence(self, path: Keys) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _count(self, nodes: int, line: int) -> None:
        self._left -= nodes
        if self._left < 0:
            message = f"holds more than {MAX_NODES} values; an alias counts each time it is used"
            refuse(self._source, line, "TooLarge", message, "write a smaller job")


def _line_of(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_size, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(_size, value))
    return 1


def _scalar(text: str) -> Any:
    """Return the value of a plain scalar by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 4000 else text  # Python refuses longer ones
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    return float(text) if _FLOAT.fullmatch(text) else text

"""The one loader of YAML files: YAML 1.2. Built from ruamel's events, so that every value has a line.

`2e-4` is a float (PyYAML reads a string), `12:30` a string (PyYAML reads 750), `on`, `yes` and dates are
strings. JSON is accepted as it is. Tags, merge keys and cyclic aliases are refused: nothing in a job needs them.
"""

import codecs
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from finetune_api.contract import KIND
from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.parse import parse_job
from finetune_api.v1alpha1.shorthand import expand
from finetune_api.v1alpha1.tree import Path as Keys

MAX_DEPTH = 50  # the parser takes quadratic time in the depth
MAX_BYTES = 4 << 20  # of a job's file; etcd takes 1.5 MiB
MAX_NODES = 100_000  # values in one file, aliases counted as often as they are used

_DATA = frozenset({("spec", "dataset", name) for name in ("train", "eval", "mix")})
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
# Plain words that YAML 1.1 readers (the API server's among them) take for something else than text.
_YAML11 = re.compile(
    r"(?i:y|yes|n|no|on|off|~|null|true|false|<<|=)|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+.]?[0-9].*|[-+]?\..*"
)


@dataclass(frozen=True)
class LineIndex:
    """The line of each path of a document; a path that is not there has the line of what is nearest above it."""

    at: dict[Keys, int]

    def __call__(self, path: Keys) -> int | None:
        for length in range(len(path), -1, -1):
            if path[:length] in self.at:
                return self.at[path[:length]]
        return None


def load(text: str, source: str) -> tuple[Any, LineIndex]:
    """The one document in a text, as plain dicts, lists, str, int, float, bool and None; and the lines of its values.

    Of several documents the one whose kind is FineTuneJob is taken, if there is exactly one.

    Args:
        text: YAML 1.2 or JSON.
        source: name of the file, for messages.

    Raises:
        SpecError: it cannot be read, has a key twice, or has several documents and none or many are jobs.
    """
    if text.lstrip().startswith("{") and (found := _load_json(text, source)) is not None:
        return found
    documents = list(_documents(text, source))
    if not documents:
        _refuse(source, None, "Empty", "holds no document", "write a FineTuneJob into it")
    if len(documents) > 1:
        jobs = [one for one in documents if isinstance(one[0], dict) and one[0].get("kind") == KIND]
        if len(jobs) != 1:
            count = f"holds {len(documents)} documents, {len(jobs)} of them of kind {KIND}; must hold one"
            _refuse(source, documents[1][1](()), "SeveralDocuments", count, "put each job into a file of its own")
        documents = jobs
    return documents[0]


def read_text(path: str | Path) -> str:
    """Return the text of a job's file; `-` is standard input, and a pipe is read to its end.

    Raises:
        SpecError: it cannot be read, is larger than a job can be, or is no UTF-8.
    """
    source = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        _refuse(source, None, "CannotRead", "is a folder; must be a file", "name the file of a FineTuneJob in it")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        _refuse(source, None, "CannotRead", f"cannot be read: {why}", "check the path and its permissions")
    if len(raw) > MAX_BYTES:
        message = f"is larger than {MAX_BYTES >> 20} MiB: it is no job"
        _refuse(source, None, "TooLarge", message, "name the file of a FineTuneJob; its data stands elsewhere")
    for mark, name in ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")):
        if raw.startswith(mark):
            _refuse(source, None, "NotUtf8", f"is {name}", "save the file as UTF-8")
    if b"\0" in raw:
        _refuse(
            source, None, "Binary", "holds NUL bytes: it is no text", "name the file of a FineTuneJob, YAML or JSON"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        seen = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        _refuse(source, line, "NotUtf8", seen, "save the file as UTF-8")


def load_job(path: str | Path) -> FineTuneJob:
    """The job in a file; its problems carry the file and the line.

    Raises:
        SpecError: the file cannot be read, is no YAML, or is no FineTuneJob we can run.
    """
    source = str(path)
    data, lines = load(read_text(path), source)
    return parse_job(expand(data)[0], lines, source)


def located(problems: Iterable[Problem], path: str | Path) -> list[Problem]:
    """Problems that were found after a job had been read, with the line of the field in its file.

    Args:
        path: the job's file. Where it could not be read, the problems say so and carry it already.
    """
    given, source = list(problems), str(path)
    if all(problem.file is not None for problem in given):
        return given
    _, lines = load(read_text(path), source)
    return locate(given, lines, source)


def locate(problems: Iterable[Problem], lines: LineIndex, source: str) -> list[Problem]:
    """Problems that were found after a job had been read, with the line of the field.

    Those of a data file keep the file's own lines; so do the fields that name such files, whose lines would be mistaken
    for them.
    """
    found = []
    for problem in problems:
        keys = tuple(int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", problem.field))
        line = lines(keys) if keys[:1] == ("spec",) and keys[:3] not in _DATA else None
        if problem.file is None and line is not None:
            problem = problem.model_copy(update={"file": source, "lines": (line,)})
        found.append(problem)
    return found


def dump(data: Any) -> str:
    """YAML that both 1.2 and 1.1 readers read as `data`: words such as on and 12:30 are quoted, key order is kept."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.allow_unicode = True
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


# ---------------------------------------------------------------- reading


def _refuse(source: str, line: int | None, code: str, message: str, cure: str) -> NoReturn:
    lines = () if line is None else (line,)
    raise SpecError(Problem(code=code, field=source, message=message, cure=cure, file=source, lines=lines))


def _load_json(text: str, source: str) -> tuple[Any, LineIndex] | None:
    """JSON read as JSON (its escapes are not YAML's), with lines where YAML can read it too; None = no JSON."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            _refuse(source, None, "DuplicateKey", f"has the key `{twice}` twice in one object", "keep one of them")
        return seen

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except ValueError:
        return None
    except RecursionError:
        _refuse(source, None, "TooDeep", "is nested too deeply", "flatten it")
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
        cure = "indent with spaces" if tab else "mend the line; text with `: ` or ` #` in it needs quotes"
        _refuse(source, line, "YamlSyntax", f"is no YAML: {what}", cure)
    except YAMLError as error:
        what = str(error).splitlines()[0]
        _refuse(source, None, "YamlSyntax", f"is no YAML: {what}", "remove characters that are no text")


class _Reader:
    """Builds plain values out of parser events, one document after another."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self._events = events
        self._source = source

    def documents(self) -> Iterator[tuple[Any, LineIndex]]:
        for event in self._events:
            if type(event).__name__ == "DocumentStartEvent":
                self._lines: dict[Keys, int] = {}
                self._anchors: dict[str, list[Any]] = {}
                self._left = MAX_NODES
                first = next(self._events)
                yield self._value(first, ()), LineIndex(self._lines)

    def _value(self, event: Any, path: Keys) -> Any:
        line = event.start_mark.line + 1
        self._lines.setdefault(path, line)
        self._count(1, line)
        if len(path) > MAX_DEPTH:
            _refuse(self._source, line, "TooDeep", f"is nested more than {MAX_DEPTH} levels deep", "flatten it")
        kind = type(event).__name__
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            _refuse(self._source, line, "Tag", f"has the tag {tag}; tags are not read", "leave the tag out")
        if kind == "AliasEvent":
            held = self._anchors.get(event.anchor)
            if held is None:
                message = f"has the alias *{event.anchor}, whose anchor is not complete before it"
                _refuse(self._source, line, "Alias", message, "write the value out")
            self._count(_size(held[0]), line)
            return held[0]
        if kind == "MappingStartEvent":
            value: Any = self._mapping(path)
        elif kind == "SequenceStartEvent":
            value = self._sequence(path)
        else:
            value = _scalar(event.value) if event.style in (None, "") and tag is None else event.value
        if event.anchor:
            self._anchors[event.anchor] = [value]
        return value

    def _mapping(self, path: Keys) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            line = event.start_mark.line + 1
            if type(event).__name__ != "ScalarEvent" or event.tag not in (None, "!"):
                _refuse(self._source, line, "Key", "has a key that is no plain text", "write a name before the colon")
            key = str(event.value)
            if key == "<<" and event.style in (None, ""):
                _refuse(self._source, line, "MergeKey", "has the merge key <<, which is not YAML 1.2", "write it out")
            if key in found:
                message = f"has the key `{key}` twice, in line {first_line[key]} and again in line {line}"
                _refuse(self._source, line, "DuplicateKey", message, "keep one of them")
            first_line[key] = line
            self._lines[(*path, key)] = line
            found[key] = self._value(next(self._events), (*path, key))
        return found

    def _sequence(self, path: Keys) -> list[Any]:
        found: list[Any] = []
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            found.append(self._value(event, (*path, len(found))))
        return found

    def _count(self, nodes: int, line: int) -> None:
        self._left -= nodes
        if self._left < 0:
            message = f"holds more than {MAX_NODES} values, aliases counted as often as they are used"
            _refuse(self._source, line, "TooLarge", message, "write a smaller job")


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_size, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(_size, value))
    return 1


def _scalar(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 4000 else text  # Python refuses longer ones
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    return float(text) if _FLOAT.fullmatch(text) else text


# ---------------------------------------------------------------- writing


class _Representer(SafeRepresenter):
    """Writes strings so that no reader takes them for something else, and never uses anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> ScalarNode:
        if "\n" in data:
            style: str | None = '"' if re.search(r"^\s|[^\S\n]\n|[^\S\n]$|[^\n\x20-\x7e]", data) else "|"
        elif _YAML11.fullmatch(data) or data == "" or re.search(r"[^\x20-\x7e]", data):
            style = '"'
        else:
            style = None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def number(self, data: float) -> ScalarNode:
        text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(data), repr(data))
        if "e" in text and "." not in text:
            text = text.replace("e", ".0e")  # YAML 1.1 wants the point
        return self.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(float, _Representer.number)

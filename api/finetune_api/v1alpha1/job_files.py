"""A job in a file: its text, the job itself, and the lines of problems that are found later."""

import codecs
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from finetune_api.errors import Problem
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.parse import parse_job
from finetune_api.v1alpha1.shorthand import expand
from finetune_api.yaml12 import LineIndex, load
from finetune_api.yaml12.loader import refuse

MAX_BYTES = 4 << 20  # of the file; etcd takes 1.5 MiB
_DATA = frozenset({("spec", "dataset", name) for name in ("train", "eval", "mix")})


def read_text(path: str | Path) -> str:
    """Return the text of a job's file; `-` is standard input. A pipe is read to its end.

    Raises:
        SpecError: the file cannot be read, is larger than a job can be, or is not UTF-8.
    """
    source = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        refuse(source, None, "CannotRead", "is a folder; must be a file", "name the file of a FineTuneJob in it")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        refuse(source, None, "CannotRead", f"cannot be read: {why}", "check the path and its permissions")
    if len(raw) > MAX_BYTES:
        message = f"is larger than {MAX_BYTES >> 20} MiB: it is not a job"
        refuse(source, None, "TooLarge", message, "name the file of a FineTuneJob; data lies in files of its own")
    for mark, name in ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")):
        if raw.startswith(mark):
            refuse(source, None, "NotUTF8", f"is {name}", "save the file as UTF-8")
    if b"\0" in raw:
        refuse(
            source, None, "Binary", "holds NUL bytes: it is not text", "name the file of a FineTuneJob, YAML or JSON"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        seen = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        refuse(source, line, "NotUTF8", seen, "save the file as UTF-8")


def load_job(path: str | Path) -> FineTuneJob:
    """Return the job in a file.

    Raises:
        SpecError: the file cannot be read, is not YAML, or is not a job that can run. The problems carry file and line.
    """
    source = str(path)
    data, lines = load(read_text(path), source)
    return parse_job(expand(data)[0], lines, source)


def located(problems: Iterable[Problem], path: str | Path) -> list[Problem]:
    """Return problems that were found after a job had been read, with the line of the field in its file.

    Args:
        path: the job's file. Where the file could not be read, the problems carry it already.
    """
    given, source = list(problems), str(path)
    if all(problem.file is not None for problem in given):
        return given
    _, lines = load(read_text(path), source)
    return locate(given, lines, source)


def locate(problems: Iterable[Problem], lines: LineIndex, source: str) -> list[Problem]:
    """Return problems that were found after a job had been read, with the line of the field.

    A problem of a data file keeps the lines of the data file. A problem at a field that names data files gets no line,
    because a reader would take it for a line of the data.
    """
    return [_with_line(problem, lines, source) for problem in problems]


def _with_line(problem: Problem, lines: LineIndex, source: str) -> Problem:
    keys = tuple(int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", problem.field))
    line = lines(keys) if keys[:1] == ("spec",) and keys[:3] not in _DATA else None
    if problem.file is not None or line is None:
        return problem
    return problem.model_copy(update={"file": source, "lines": (line,)})

"""A job as it was written in a file or on standard input, with the values that the command line sets in it.

The file is read once, because a pipe cannot be read again to find the line of a problem.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.job_files import locate, read_text
from finetune_api.v1alpha1.overrides import OPTION, Override, path_of, value_at, with_overrides
from finetune_api.v1alpha1.parse import parse_job
from finetune_api.v1alpha1.shorthand import expand
from finetune_api.v1alpha1.tree import Path, dotted
from finetune_api.yaml12 import LineIndex, load


@dataclass(frozen=True)
class JobFile:
    """A job that is not validated yet.

    Attributes:
        source: the file's name, for messages.
        data: with every short form written out, and with the overrides.
        notes: a note for each short form.
        overrides: values that the command line sets.
        before: the values that the file has at the paths of the overrides.
    """

    source: str
    data: Any
    lines: LineIndex
    notes: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    before: tuple[Any, ...] = field(default=())

    @classmethod
    def read(cls, path: str) -> "JobFile":
        """Read a file; `-` is standard input.

        Raises:
            SpecError: the file cannot be read, or is not YAML.
        """
        source = "standard input" if path == "-" else path
        data, lines = load(read_text(path), source)
        expanded, notes = expand(data)
        return cls(source, expanded, lines, tuple(notes))

    def having(self, overrides: Sequence[Override]) -> "JobFile":
        """Return the job with more values set.

        Raises:
            SpecError: a path cannot be followed.
        """
        before = tuple(value_at(self.data, override.path) for override in overrides)
        data, notes = expand(with_overrides(self.data, overrides))
        return replace(
            self,
            data=data,
            notes=(*self.notes, *notes),
            overrides=(*self.overrides, *overrides),
            before=(*self.before, *before),
        )

    def job(self) -> FineTuneJob:
        """Return the job.

        Raises:
            SpecError: all problems, with the lines of the file; a value of the command line has no line.
        """
        try:
            return parse_job(self.data, self.lines, self.source)
        except SpecError as error:
            raise SpecError([self._of_command_line(problem) for problem in error.problems]) from None

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """Add the line of the field to problems that were found later."""
        return [self._of_command_line(problem) for problem in locate(problems, self.lines, self.source)]

    def _of_command_line(self, problem: Problem) -> Problem:
        """Remove file and line from a problem at a value that the command line has set."""
        if problem.file != self.source or not any(
            _is_at_or_below(problem.field, override.path) for override in self.overrides
        ):
            return problem
        return problem.model_copy(update={"file": OPTION, "lines": ()})


def override(text: str) -> Override:
    """Return the value that `path=value` sets, typed as YAML 1.2 types it.

    Raises:
        SpecError: the text has no `=` or no path, or the value is not YAML.
    """
    path, equals, written = text.partition("=")
    if not equals:
        message, cure = f'"{text}" has no `=`', f"write {OPTION} path=value, such as training.learning_rate=1e-4"
        raise SpecError(Problem(code="NoValue", field=OPTION, message=message, cure=cure))
    value = load(written, f"{OPTION} {path}")[0] if written.strip() else None
    return Override(path_of(path.strip()), value)


def _is_at_or_below(field_name: str, path: Path) -> bool:
    place = dotted(path)
    return field_name == place or field_name.startswith((f"{place}.", f"{place}["))

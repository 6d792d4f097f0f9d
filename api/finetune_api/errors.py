"""The error tree. An error names the field, the value seen, the rule and the cure; several travel together as problems.

FineTuneError
├── SpecError            the job file or object breaks a rule: edit it                     (category UserError)
├── DataError            the data set breaks a rule: mend the rows named, or skip them     (category DataError)
├── ModelError           the model cannot be had or used for this task                     (category UserError)
├── StorageError         object storage refused, is unreachable, or holds what it should not
├── RunError             training itself failed; carries a failure category
└── StateError           this run cannot go on from what it finds (other data, another run has the lock)
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune_api.contract import ExitCode


class FailureCategory(StrEnum):
    """Why a run failed; each has its own retry budget."""

    USER_ERROR = "UserError"
    DATA_ERROR = "DataError"
    OUT_OF_MEMORY = "OutOfMemory"
    PREEMPTED = "Preempted"
    NODE_FAULT = "NodeFault"
    HANG = "Hang"
    DIVERGED = "Diverged"
    UNKNOWN = "Unknown"


class Problem(BaseModel):
    """One thing that is wrong.

    Attributes:
        code: stable CamelCase identifier, such as `UnknownField` or `InvalidRow`.
        field: path in the job (`spec.dataset.train`) that leads to it.
        message: one sentence with the value seen and the rule it breaks.
        cure: what to do about it, in the imperative.
        file: the data or job file at fault, if there is one.
        lines: line numbers in `file`, 1-based, ascending (all of them, or the first 20).
        count: how many rows share the problem; at least `len(lines)`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    field: str
    message: str
    cure: str
    file: str | None = None
    lines: tuple[int, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        where = self.field
        if self.lines:
            where += f" line {self.lines[0]}"
        text = f"{where}: {self.message}"
        if len(self.lines) > 1 or self.count > 1:
            shown = ", ".join(str(line) for line in self.lines)
            more = "" if self.count <= len(self.lines) else ", ..."
            text += f" ({self.count} such lines: {shown}{more})"
        return f"{text} [{self.code}] -> {self.cure}"


class FineTuneError(Exception):
    """The root of the tree: one or more problems that stop what was asked for.

    Args:
        problems: what is wrong, weightiest first; at least one.
    """

    category = FailureCategory.UNKNOWN

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        if not self.problems:
            raise ValueError("an error needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        # an exception is sent between processes as its class and `args`, which hold the sentence, not the problems
        return type(self), (list(self.problems),)


class SpecError(FineTuneError):
    """The job itself breaks a rule."""

    category = FailureCategory.USER_ERROR


class DataError(FineTuneError):
    """The data set breaks a rule."""

    category = FailureCategory.DATA_ERROR


class ModelError(FineTuneError):
    """The model cannot be had, or cannot be used for this task."""

    category = FailureCategory.USER_ERROR


class StorageError(FineTuneError):
    """Object storage refused, is unreachable, or holds what it should not."""


class StateError(FineTuneError):
    """This run cannot go on from what it finds."""

    category = FailureCategory.USER_ERROR


class RunError(FineTuneError):
    """Training failed; `category` says in which way."""

    def __init__(self, problems: Problem | Iterable[Problem], category: FailureCategory) -> None:
        super().__init__(problems)
        self.category = category

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self.problems), self.category)


EXIT_CODES = {
    FailureCategory.USER_ERROR: ExitCode.USER_ERROR,
    FailureCategory.DATA_ERROR: ExitCode.DATA_ERROR,
    FailureCategory.OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    FailureCategory.DIVERGED: ExitCode.DIVERGED,
}
VERDICTS = frozenset({*EXIT_CODES.values(), ExitCode.GANG_FAILED})
"""Exit codes after which trying again is of no use."""


def exit_code(error: FineTuneError) -> ExitCode:
    """How a program of ours ends for an error."""
    if isinstance(error, StorageError):
        return ExitCode.STORAGE_ERROR
    return EXIT_CODES.get(error.category, ExitCode.UNKNOWN)


def category_of(code: int | None) -> FailureCategory:
    """What an exit code says; of most it is nothing."""
    return next((category for category, own in EXIT_CODES.items() if own == code), FailureCategory.UNKNOWN)

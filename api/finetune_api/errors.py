"""The error tree. An error holds problems; a problem names the field, the value, the rule and the cure.

FineTuneError
├── SpecError            the job file or object breaks a rule: edit it                     (category UserError)
├── DataError            the data set breaks a rule: correct the rows named, or skip them  (category DataError)
├── ModelError           the model cannot be read or used for this task                    (category UserError)
├── StorageError         object storage refused a request, is unreachable, or holds unexpected content
├── RunError             training failed; carries a failure category
└── StateError           this run cannot continue: its data changed, or another run has the lock
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune_api.contract import ExitCode


class FailureCategory(StrEnum):
    """Why a run failed. HANDLING says what follows from each category."""

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
        field: path in the job, such as `spec.dataset.train`.
        message: one sentence with the value and the rule that it breaks.
        cure: what to do, in the imperative.
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
    """The root of the tree: one or more problems that stop the work.

    Args:
        problems: at least one, the most important first.
    """

    category = FailureCategory.UNKNOWN

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        if not self.problems:
            raise ValueError("an error needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle would pass `args` to the class, which hold the sentence instead of the problems
        return type(self), (list(self.problems),)


class SpecError(FineTuneError):
    """The job itself breaks a rule."""

    category = FailureCategory.USER_ERROR


class DataError(FineTuneError):
    """The data set breaks a rule."""

    category = FailureCategory.DATA_ERROR


class ModelError(FineTuneError):
    """The model cannot be read, or cannot be used for this task."""

    category = FailureCategory.USER_ERROR


class StorageError(FineTuneError):
    """Object storage refused a request, is unreachable, or holds unexpected content."""


class StateError(FineTuneError):
    """This run cannot continue: its data changed, or another run has the lock."""

    category = FailureCategory.USER_ERROR


class RunError(FineTuneError):
    """Training failed for the reason in `category`."""

    def __init__(self, problems: Problem | Iterable[Problem], category: FailureCategory) -> None:
        super().__init__(problems)
        self.category = category

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self.problems), self.category)


class Restart(StrEnum):
    """Whether the gang starts again after a failure."""

    FREE = "free"  # it starts again, and the restart does not count
    COUNTED = "counted"  # it starts again as long as spec.recovery.maxRestarts allows
    NEVER = "never"  # the same failure would come again


@dataclass(frozen=True)
class Handling:
    """What follows from a failure of one category.

    Attributes:
        restart: whether the gang starts again.
        cure: what the user does about a failure of training, in the imperative.
        pod_cure: the same about a pod that ended without a result, of any stage; None = the message says it.
        exit_code: exit code of a process that ends for this reason; None = no code of its own.
    """

    restart: Restart
    cure: str
    pod_cure: str | None = None
    exit_code: ExitCode | None = None


HANDLING: dict[FailureCategory, Handling] = {
    FailureCategory.USER_ERROR: Handling(
        Restart.NEVER,
        cure="correct the job as the message says",
        exit_code=ExitCode.USER_ERROR,
    ),
    FailureCategory.DATA_ERROR: Handling(
        Restart.NEVER,
        cure="correct the data set",
        exit_code=ExitCode.DATA_ERROR,
    ),
    FailureCategory.OUT_OF_MEMORY: Handling(
        Restart.NEVER,
        cure="lower training.per_device_train_batch_size or dataset.maxLength, or use more nodes",
        pod_cure="raise the memory of the stage's resources, or make the job smaller",
        exit_code=ExitCode.OUT_OF_MEMORY,
    ),
    FailureCategory.PREEMPTED: Handling(
        Restart.FREE,
        cure="run the job again; it continues from the last checkpoint",
    ),
    FailureCategory.NODE_FAULT: Handling(
        Restart.COUNTED,
        cure="look at the node, then run the job again; it continues from the last checkpoint",
        pod_cure="look at the node named; a new job with the same data continues where preparation ended",
    ),
    FailureCategory.HANG: Handling(
        Restart.COUNTED,
        cure="look at the log of the rank named, then run the job again; it continues from the last checkpoint",
    ),
    FailureCategory.DIVERGED: Handling(
        Restart.NEVER,
        cure="lower training.learning_rate, add warmup_steps, or look at the rows of that batch",
        exit_code=ExitCode.DIVERGED,
    ),
    FailureCategory.UNKNOWN: Handling(
        Restart.COUNTED,
        cure="read the log of the rank named, below the run's logs/ in storage",
        pod_cure="read the log of the pod named",
    ),
}

EXIT_CODES = {category: one.exit_code for category, one in HANDLING.items() if one.exit_code is not None}
VERDICTS = frozenset({*EXIT_CODES.values(), ExitCode.GANG_FAILED})
"""Exit codes of a failure that another try cannot cure."""
FINAL_EXIT_CODES = VERDICTS | {ExitCode.OK, ExitCode.DRAINED}
"""Exit codes after which a node of a gang is not started again."""


def exit_code(error: FineTuneError) -> ExitCode:
    """Return the exit code of a program that ends with an error."""
    if isinstance(error, StorageError):
        return ExitCode.STORAGE_ERROR
    return EXIT_CODES.get(error.category, ExitCode.UNKNOWN)


def category_of(code: int | None) -> FailureCategory:
    """Return the category that an exit code stands for; UNKNOWN for a code that stands for none."""
    return next((category for category, own in EXIT_CODES.items() if own == code), FailureCategory.UNKNOWN)

"""The records of suites: what a job asks for, what the child process answers, and `suites.json`."""

import hashlib
from collections.abc import Sequence
from math import isfinite

from pydantic import ConfigDict, Field

from finetune_api.gates import SUITE_SIGN
from finetune_api.messages import Message, is_empty
from finetune_api.plan import Plan
from finetune_api.results import SuiteOutcome
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_trainer.judge.judgement_records import GateResult

NOT_NUMBERS = ConfigDict(ser_json_inf_nan="strings")
SUITES = "suites.json"  # below the run, and in each artifact
MOST_VALUES = 12  # of a suite on the object; suites.json has all


class SuiteSettings(Message):
    """What a job asks of one suite, with defaults: tasks of the harness, or a command in a container of an image."""

    name: str
    tasks: tuple[str, ...] = ()
    definitions: str = ""
    limit: int | None = None
    few_shot: int | None = None
    chat_template: bool = False
    timeout_minutes: int = 60
    image: str = Field(default="", exclude_if=is_empty)
    command: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    args: tuple[str, ...] = Field(default=(), exclude_if=is_empty)

    @classmethod
    def of(cls, spec: SuiteSpec) -> "SuiteSettings":
        """Return the settings of a job."""
        values = spec.model_dump(mode="json", exclude_none=True, exclude={"resources"})
        return cls.model_validate(values)

    @property
    def sentence(self) -> str:
        """Which tasks are run, in words."""
        rows = f"at most {self.limit:,} rows of each" if self.limit else "all rows"
        return f"{', '.join(self.tasks)}, {rows}"

    @property
    def digest(self) -> str:
        """The same for the same settings; more time gives no other values."""
        text = self.model_dump_json(exclude={"timeout_minutes"})
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class SuiteQuestion(Message):
    """What the child process is asked: a suite, and files on this machine.

    Attributes:
        base: folder of the base model; empty if the artifact is a whole model.
        definitions: folder with the user's own tasks; empty if there is none.
    """

    plan: Plan
    settings: SuiteSettings
    artifact: str
    base: str = ""
    definitions: str = ""


class SuiteValue(Message):
    """One value of a benchmark.

    Attributes:
        name: `TASK.METRIC`, or `TASK.METRIC.FILTER` where a task filters answers; any name of a container's value.
        error: standard error; None if the benchmark has none.
        rows: of the task; 0 = unknown.
    """

    model_config = NOT_NUMBERS

    name: str
    value: float
    error: float | None = None
    rows: int = 0

    @property
    def sentence(self) -> str:
        """The value in words."""
        error = "" if self.error is None else f" ± {self.error:.2g}"
        return f"{self.name} {self.value:.4g}{error}"


class SuiteAnswer(Message):
    """The answer of a child process or of a container. `harness`: version of lm-evaluation-harness."""

    values: tuple[SuiteValue, ...]
    harness: str = ""


class SuiteResult(Message):
    """A suite of `suites.json`.

    Attributes:
        settings: digest of what was asked.
        problem: why it has no values; empty if it has.
        image: of the container whose values they are; empty for the harness.
        definitions: digest of the user's own tasks that were run; empty without such tasks, or if it is unknown.
        tried_with: digest of the circumstances of a suite without values; it is tried again if they differ.
    """

    name: str
    settings: str
    values: tuple[SuiteValue, ...] = ()
    harness: str = ""
    problem: str = ""
    image: str = Field(default="", exclude_if=is_empty)
    definitions: str = Field(default="", exclude_if=is_empty)
    tried_with: str = Field(default="", exclude_if=is_empty)

    def stands(self, asked: "SuiteSettings", definitions: str, circumstances: str) -> bool:
        """Return whether this is the result of a question, and another try would give the same.

        Args:
            definitions: digest of those that are there now; empty if it is unknown.
            circumstances: of a try now.
        """
        if (self.name, self.settings) != (asked.name, asked.digest):
            return False
        if self.problem:
            return self.tried_with == circumstances
        return not (self.definitions and definitions) or self.definitions == definitions

    @property
    def outcome(self) -> SuiteOutcome:
        """The part of the result that the object shows. JSON has no NaN or infinity: such values are in suites.json."""
        finite = [one for one in self.values if isfinite(one.value)]
        shown = {one.name: one.value for one in finite[:MOST_VALUES]}
        none = "no value is a finite number, see suites.json" if self.values and not shown else ""
        return SuiteOutcome(name=self.name, values=shown, problem=self.problem or none)


class SuiteRecord(Message):
    """`suites.json`.

    Attributes:
        step, generation: of the checkpoint whose artifact was evaluated.
        form: name of the artifact's folder.
        gates: outcomes of the gates of the job.
    """

    step: int
    generation: int
    form: str = ""
    suites: tuple[SuiteResult, ...] = ()
    gates: tuple[GateResult, ...] = Field(default=())

    @property
    def values(self) -> dict[str, float]:
        """Every value by its name in gates: `SUITE/TASK.METRIC`, or `SUITE/NAME` of a container."""
        return {f"{suite.name}{SUITE_SIGN}{one.name}": one.value for suite in self.suites for one in suite.values}

    def answers(self, asked: Sequence[SuiteSettings]) -> bool:
        """Return whether every suite that is asked for has values, and no other suite is there."""
        there = [(one.name, one.settings) for one in self.suites if not one.problem]
        return there == [(one.name, one.digest) for one in asked] and len(there) == len(self.suites)


def digest_of_suites(asked: Sequence[SuiteSettings]) -> str | None:
    """Return the same for the same suites; None for none."""
    return hashlib.sha256(" ".join(one.digest for one in asked).encode()).hexdigest()[:16] if asked else None

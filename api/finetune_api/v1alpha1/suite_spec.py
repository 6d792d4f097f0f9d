"""`spec.evaluation.suites`: benchmarks of lm-evaluation-harness that the exported model runs through."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from finetune_api.gates import SUITE_SIGN
from finetune_api.messages import Task
from finetune_api.v1alpha1.given import Given, part
from finetune_api.v1alpha1.markers import KeepsData, Supported
from finetune_api.v1alpha1.rule import Rule
from finetune_api.v1alpha1.spec_base import BENCHMARK_PATTERN, LABEL_PATTERN, Kubernetes, StoreUri, shown

TASKS_WITH_SUITES = (Task.CAUSAL_LM, Task.SEQ2SEQ, Task.PREFERENCE)
SuiteName = Annotated[str, StringConstraints(pattern=LABEL_PATTERN, max_length=30)]
BenchmarkName = Annotated[str, StringConstraints(pattern=BENCHMARK_PATTERN, max_length=100)]


class SuiteSpec(Kubernetes):
    """Benchmarks of lm-evaluation-harness that the exported model runs through, on the CPUs of the export stage."""

    name: Annotated[SuiteName, Supported(), KeepsData()]
    """Name of the suite, in its values and in gates."""
    tasks: Annotated[list[BenchmarkName], Field(min_length=1, max_length=32), Supported(), KeepsData()]
    """Names of tasks or of groups of tasks of lm-evaluation-harness, such as [arc_easy, hellaswag]. Their data sets
    come from the hub, unless their definitions name files."""
    definitions: Annotated[StoreUri | None, Supported(), KeepsData()] = None
    """Folder with definitions of your own tasks: YAML files of lm-evaluation-harness and their data. The storage is
    reached with the credentials of spec.storage."""
    limit: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, Supported(), KeepsData()] = None
    """Number of rows of each task; omitted = all."""
    few_shot: Annotated[Annotated[int, Field(ge=0, le=100)] | None, Supported(), KeepsData()] = None
    """Number of solved examples before each question; omitted = as the task says."""
    chat_template: Annotated[bool, Supported(), KeepsData()] = False
    """Write the questions in the model's chat template."""
    timeout_minutes: Annotated[int, Field(ge=1, le=10_080), Supported(), KeepsData()] = 60
    """Minutes after which the suite is ended. It has no values then."""


def _suites(spec: Given) -> Iterator[Given]:
    suites: Any = part(spec, "evaluation").get("suites")
    yield from (one for one in (suites if isinstance(suites, list) else ()) if isinstance(one, dict))


def suite_names(spec: Given) -> tuple[str, ...]:
    """Return the names of the suites of a job."""
    return tuple(str(one.get("name")) for one in _suites(spec))


def _named_twice(spec: Given) -> str | None:
    names = suite_names(spec)
    twice = next((name for name in names if names.count(name) > 1), None)
    return f"has two suites with the name {shown(twice)}; each name must be another" if twice else None


def _no_language_model(spec: Given) -> str | None:
    task = spec.get("task")
    if not suite_names(spec) or task not in list(Task) or Task(task) in TASKS_WITH_SUITES:
        return None
    return f"is given, but the task is {task}; lm-evaluation-harness runs {', '.join(TASKS_WITH_SUITES)}"


def unknown_suite(metric: str, spec: Given) -> str | None:
    """Return what is wrong with a gate `SUITE/TASK.METRIC`; None if it names a suite of the job."""
    suite, _, value = metric.partition(SUITE_SIGN)
    known = suite_names(spec)
    if suite not in known:
        return f"has {metric}; the job has {'the suites ' + ', '.join(known) if known else 'no suites'}"
    return None if "." in value.strip(".") else f"has {metric}; a value of a suite is written SUITE/TASK.METRIC"


SUITE_RULES: tuple[Rule, ...] = (
    Rule(
        at=("spec", "evaluation"),
        field="suites",
        code="InvalidValue",
        broken=lambda evaluation: _named_twice({"evaluation": evaluation}),
        cure="give each suite a name of its own",
        cel="!has(self.suites) || self.suites.all(one, self.suites.exists_one(other, other.name == one.name))",
        says="the names of suites must differ",
    ),
    Rule(
        at=("spec",),
        field="evaluation.suites",
        code="NeedsOther",
        broken=_no_language_model,
        cure="leave it out",
        cel=None,
        says="evaluation.suites requires task causal-lm, seq2seq or preference",
    ),
)

"""`spec.evaluation.suites`: benchmarks of lm-evaluation-harness, and containers, that evaluate the exported model."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from finetune_api.gates import SUITE_SIGN
from finetune_api.messages import Task
from finetune_api.v1alpha1.given import Given, has, part
from finetune_api.v1alpha1.markers import ClusterOnly, KeepsData, Supported
from finetune_api.v1alpha1.pod_resources import Resources
from finetune_api.v1alpha1.rule import Rule
from finetune_api.v1alpha1.spec_base import BENCHMARK_PATTERN, LABEL_PATTERN, Kubernetes, StoreUri, Text, shown

OF_CONTAINERS = ("command", "args", "resources")
OF_THE_HARNESS = ("definitions", "limit", "fewShot", "chatTemplate")
TASKS_WITH_SUITES = (Task.CAUSAL_LM, Task.SEQ2SEQ, Task.PREFERENCE)
SuiteName = Annotated[str, StringConstraints(pattern=LABEL_PATTERN, max_length=30)]
BenchmarkName = Annotated[str, StringConstraints(pattern=BENCHMARK_PATTERN, max_length=100)]


class SuiteSpec(Kubernetes):
    """One evaluation of the exported model: tasks of lm-evaluation-harness on the CPUs of the export stage, or a
    command in a container of your own beside it."""

    name: Annotated[SuiteName, Supported(), KeepsData()]
    """Name of the suite, in its values and in gates."""
    tasks: Annotated[
        Annotated[list[BenchmarkName], Field(min_length=1, max_length=32)] | None, Supported(), KeepsData()
    ] = None
    """Names of tasks or of groups of tasks of lm-evaluation-harness, such as [arc_easy, hellaswag]. Their data sets
    come from the hub, unless their definitions name files. Each suite has tasks, or an image."""
    image: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Supported(), KeepsData(), ClusterOnly()
    ] = None
    """Image with a shell and with a program of yours that evaluates the model. A container of it runs beside the
    export, without any key; requires command."""
    command: Annotated[
        Annotated[list[Text], Field(min_length=1, max_length=64)] | None, Supported(), KeepsData(), ClusterOnly()
    ] = None
    """Program of the image and its first arguments, such as [python, /app/evaluate.py]. It finds the model in the
    folder $ARTIFACT, and writes numbers by their names to the file $RESULTS, as a JSON object; requires image."""
    args: Annotated[Annotated[list[Text], Field(max_length=256)] | None, Supported(), KeepsData()] = None
    """Further arguments of the program; requires image."""
    resources: Annotated[Resources | None, ClusterOnly()] = None
    """Resources of the container, such as {limits: {nvidia.com/gpu: 1}}; requires image."""
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


def container_suites(suites: Sequence[SuiteSpec]) -> list[SuiteSpec]:
    """Return the suites that run in a container of their own."""
    return [one for one in suites if one.image is not None]


def _named_twice(spec: Given) -> str | None:
    names = suite_names(spec)
    twice = next((name for name in names if names.count(name) > 1), None)
    return f"has two suites with the name {shown(twice)}; each name must be another" if twice else None


def _of_one_kind(spec: Given) -> str | None:
    for suite in _suites(spec):
        if has(suite, "tasks") == has(suite, "image"):
            seen = "both tasks and image" if has(suite, "tasks") else "neither tasks nor image"
            return f"has {seen} in the suite {shown(suite.get('name'))}; each suite must have exactly one of them"
    return None


def _half_a_container(spec: Given) -> str | None:
    for suite in _suites(spec):
        if has(suite, "image") and not has(suite, "command"):
            return f"has image and no command in the suite {shown(suite.get('name'))}; image requires command"
        lone = next((name for name in OF_CONTAINERS if has(suite, name)), None)
        if lone and not has(suite, "image"):
            return f"has {lone} and no image in the suite {shown(suite.get('name'))}; {lone} requires image"
    return None


def _of_the_harness(spec: Given) -> str | None:
    for suite in _suites(spec):
        theirs = next((name for name in OF_THE_HARNESS if has(suite, name) and suite[name] is not False), None)
        if theirs and has(suite, "image"):
            where = f"{theirs} beside image in the suite {shown(suite.get('name'))}"
            return f"has {where}; {theirs} is a setting of lm-evaluation-harness"
    return None


def _no_language_model(spec: Given) -> str | None:
    task = spec.get("task")
    if task not in list(Task) or Task(task) in TASKS_WITH_SUITES:
        return None
    if not any(has(suite, "tasks") for suite in _suites(spec)):
        return None
    return f"has tasks, but the task is {task}; lm-evaluation-harness runs {', '.join(TASKS_WITH_SUITES)}"


def unknown_suite(metric: str, spec: Given) -> str | None:
    """Return what is wrong with a gate `SUITE/TASK.METRIC`, or `SUITE/NAME` of a container; None if it names a suite of
    the job."""
    suite, _, value = metric.partition(SUITE_SIGN)
    known = suite_names(spec)
    if suite not in known:
        return f"has {metric}; the job has {'the suites ' + ', '.join(known) if known else 'no suites'}"
    if any(has(one, "image") for one in _suites(spec) if one.get("name") == suite):
        return None if value else f"has {metric}; a value of the container is written {suite}/NAME"
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
        at=("spec", "evaluation"),
        field="suites",
        code="ExactlyOne",
        broken=lambda evaluation: _of_one_kind({"evaluation": evaluation}),
        cure="give the suite `tasks` of lm-evaluation-harness, or `image` and `command` of a container of yours",
        cel="!has(self.suites) || self.suites.all(one, has(one.tasks) != has(one.image))",
        says="each suite must have exactly one of tasks and image",
    ),
    Rule(
        at=("spec", "evaluation"),
        field="suites",
        code="NeedsOther",
        broken=lambda evaluation: _half_a_container({"evaluation": evaluation}),
        cure="give the suite both `image` and `command`, or neither of them and no args and resources",
        cel="!has(self.suites) || self.suites.all(one, has(one.image) == has(one.command)"
        " && (has(one.image) || !has(one.args) && !has(one.resources)))",
        says="image of a suite requires command; command, args and resources require image",
    ),
    Rule(
        at=("spec", "evaluation"),
        field="suites",
        code="Conflict",
        broken=lambda evaluation: _of_the_harness({"evaluation": evaluation}),
        cure="remove it, and tell the program of the image by args",
        cel="!has(self.suites) || self.suites.all(one, !has(one.image) || !has(one.definitions) && !has(one.limit)"
        " && !has(one.fewShot) && !(has(one.chatTemplate) && one.chatTemplate))",
        says="definitions, limit, fewShot and chatTemplate of a suite exclude image",
    ),
    Rule(
        at=("spec",),
        field="evaluation.suites",
        code="NeedsOther",
        broken=_no_language_model,
        cure="leave them out, or evaluate the model in a container of yours with image and command",
        cel=None,
        says="tasks of evaluation.suites require task causal-lm, seq2seq or preference",
    ),
)

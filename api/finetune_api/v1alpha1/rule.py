"""One rule that spans several fields: in Python, and in CEL for the API server."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.messages import Task
from finetune_api.v1alpha1.given import Given, has
from finetune_api.v1alpha1.spec_base import shown


@dataclass(frozen=True)
class Rule:
    """A rule about the object at `at`.

    Attributes:
        at: path of the object that the rule is about.
        field: the field at fault, relative to `at`; empty = the object itself.
        code: identifier of the problem.
        broken: returns what is wrong, with the values seen, or None where the rule holds.
        cure: what to do.
        cel: the same rule for the API server; None where CEL cannot read the fields (those without one type), or where
            the rule would be long. The operator refuses such a job a second later.
        says: message of the API server, which cannot name values; the reference shows it too.
    """

    at: tuple[str, ...]
    field: str
    code: str
    broken: Callable[[Given], str | None]
    cure: str
    cel: str | None
    says: str


def requires_task(section: str, task: Task) -> Rule:
    """Return a rule: a section of `spec` is given only for the task that reads it."""

    def broken(spec: Given) -> str | None:
        if not has(spec, section) or spec.get("task") == task:
            return None
        asked = f"task is {shown(spec['task'])}" if has(spec, "task") else "the job names no task"
        return f"is given, but {asked}"

    return Rule(
        at=("spec",),
        field=section,
        code="NeedsOther",
        broken=broken,
        cure=f"set spec.task to {task}, or leave it out",
        cel=f"!has(self.{section}) || (has(self.task) && self.task == '{task}')",
        says=f"{section} requires task {task}",
    )

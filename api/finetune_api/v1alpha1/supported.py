"""Refuses what is not supported yet, and names what has no effect. The fields themselves say so (`markers.py`)."""

from collections.abc import Mapping
from typing import Any

from finetune_api.errors import Problem
from finetune_api.v1alpha1.field_facts import LATER, WITHOUT_EFFECT
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.spec_base import shown
from finetune_api.v1alpha1.tree import dotted, spec_fields


def notes(job: FineTuneJob) -> list[str]:
    """Return a sentence for each field that the job gives and that has no effect."""
    given = _as_written(job)
    return [
        f"{path} has no effect: {reason}"
        for path, reason in WITHOUT_EFFECT.items()
        if _value_at(given, path.split(".")) is not None
    ]


def unsupported(job: FineTuneJob) -> list[Problem]:
    """Return a problem with the code NotSupportedYet for each thing that a job asks for and that is missing."""
    return unsupported_in(_as_written(job))


def unsupported_in(data: Mapping[str, Any]) -> list[Problem]:
    """Return the same for a job as it was written, valid or not."""
    problems = (_problem(path, _value_at(data, path.split("."))) for path in LATER)
    return [problem for problem in problems if problem is not None]


def _as_written(job: FineTuneJob) -> dict[str, Any]:
    return job.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _problem(path: str, value: Any) -> Problem | None:
    later = LATER[path]
    if later.values is not None:
        missing = isinstance(value, str) and value in later.values
    else:
        missing = not _asks_nothing(value) and not any(
            _same(value, fine) for fine in (*later.harmless, _DEFAULTS.get(path))
        )
    if not missing:
        return None
    subject = f"{shown(value)} " if later.values is not None else ""
    return Problem(
        code="NotSupportedYet",
        field=dotted(tuple(path.split("."))),
        message=f"{subject}is not supported yet: {later.reason}",
        cure=later.instead,
    )


def _asks_nothing(value: Any) -> bool:
    """Return whether a value is null, an empty list, or an object of such values only."""
    if isinstance(value, Mapping):
        return all(_asks_nothing(item) for item in value.values())
    return value is None or value == []


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _value_at(data: Any, parts: list[str]) -> Any:
    for part in parts:
        if not isinstance(data, Mapping):
            return None
        data = data.get(part)
    return data


_DEFAULTS = {
    branch.dotted: branch.info.get_default(call_default_factory=True)
    for branch in spec_fields()
    if branch.is_leaf and not branch.info.is_required()
}

"""What an admin allows jobs to use: volume types, service accounts, priority classes. Pure.

The lists apply until a job is accepted. A list that becomes shorter later fails no running job.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.errors import Problem
from finetune_api.v1alpha1 import ConditionType
from finetune_operator.policy.conditions import is_true
from finetune_operator.policy.world import ObservedJob
from finetune_operator.settings import Settings

SECTIONS = ("podTemplate", "prepare", "export")  # sections of the spec with settings of pods


def refuse_forbidden(seen: ObservedJob, settings: Settings) -> ObservedJob:
    """Refuse the job if it is not accepted yet and uses something that is not allowed; else return `seen`."""
    if seen.job is None or is_true(seen.status, ConditionType.ACCEPTED):
        return seen
    forbidden = tuple(problems(seen.job.written, settings))
    return replace(seen, job=None, problems=forbidden) if forbidden else seen


def problems(spec: Mapping[str, Any], settings: Settings) -> Iterator[Problem]:
    """Yield a problem for each forbidden part of a valid spec, with the value and the allowed ones."""
    for field, name in _volume_types(spec):
        yield from _forbidden(field, name, "volume type", settings.allowed_volume_types, "allowedVolumeTypes")
    named = (
        ("serviceAccountName", "service account", settings.allowed_service_accounts, "allowedServiceAccounts"),
        ("priorityClassName", "priority class", settings.allowed_priority_classes, "allowedPriorityClasses"),
    )
    for path, section in _sections(spec):
        for key, what, allowed, value in named:
            if chosen := section.get(key):
                yield from _forbidden(f"{path}.{key}", chosen, what, allowed, value)


def _sections(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "spec", spec
    for name in SECTIONS:
        yield f"spec.{name}", spec.get(name) or {}


def _volume_types(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the field and the type of each volume that a job adds. A projected volume counts as its sources, because
    one of them may be the token of a service account."""
    if (spec.get("model") or {}).get("persistentVolumeClaim"):
        yield "spec.model.persistentVolumeClaim", "persistentVolumeClaim"
    for path, section in _sections(spec):
        for index, volume in enumerate(section.get("volumes") or ()):
            field = f"{path}.volumes[{index}]"
            for kind, source in volume.items():
                if kind == "name":
                    continue
                if kind != "projected":
                    yield f"{field}.{kind}", kind
                    continue
                for place, projected in enumerate((source or {}).get("sources") or ()):
                    for inner in projected:
                        yield f"{field}.projected.sources[{place}].{inner}", inner


def _forbidden(field: str, name: str, what: str, allowed: tuple[str, ...], value: str) -> Iterator[Problem]:
    if allowed and name not in allowed:
        yield Problem(
            code="NotAllowed",
            field=field,
            message=f"the {what} {name!r} is not allowed here; allowed are {', '.join(allowed)}",
            cure=f"use one of these, or ask your administrator to add it to the chart value operator.{value}",
        )

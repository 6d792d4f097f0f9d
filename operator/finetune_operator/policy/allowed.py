"""What an admin lets jobs ask for: volume types, service accounts, priority classes. Asked once, before a job is
accepted: a list that becomes shorter later fails no job that runs. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from finetune_api.errors import Problem
from finetune_api.v1alpha1 import ConditionType
from finetune_operator.policy.conditions import is_true
from finetune_operator.policy.world import Observed
from finetune_operator.settings import Settings

SECTIONS = ("podTemplate", "prepare", "export")  # of the spec, where a job says something about its pods


def refuse_forbidden(seen: Observed, settings: Settings) -> Observed:
    """The same, with the job refused if it is not accepted yet and asks for what is not allowed."""
    if seen.job is None or is_true(seen.status, ConditionType.ACCEPTED):
        return seen
    found = tuple(problems(seen.owner.spec, settings))
    return replace(seen, job=None, problems=found) if found else seen


def problems(spec: Mapping[str, Any], settings: Settings) -> Iterator[Problem]:
    """Everything in a valid spec that is not allowed, each with the value and what is allowed instead."""
    for field, name in _volume_types(spec):
        yield from _forbidden(field, name, "volume type", settings.allowed_volume_types, "allowedVolumeTypes")
    named = (
        ("serviceAccountName", "service account", settings.allowed_service_accounts, "allowedServiceAccounts"),
        ("priorityClassName", "priority class", settings.allowed_priority_classes, "allowedPriorityClasses"),
    )
    for path, section in _sections(spec):
        for key, what, allowed, value in named:
            if asked := section.get(key):
                yield from _forbidden(f"{path}.{key}", asked, what, allowed, value)


def _sections(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "spec", spec
    for name in SECTIONS:
        yield f"spec.{name}", spec.get(name) or {}


def _volume_types(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every volume that a job adds, by its field. A projected volume counts as what it projects: a token of a service
    account is no harmless file."""
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
            cure=f"use one of these, or ask who runs the operator to add it to the chart's operator.{value}",
        )

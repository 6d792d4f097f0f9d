"""Values of a job that the command line sets: `training.learning_rate=1e-4`, `dataset.mix[0].weight=2`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1.base import shown
from finetune_api.v1alpha1.tree import Path, dotted

ROOTS = frozenset({"apiVersion", "kind", "metadata", "spec"})
OPTION = "--set"
_PART = re.compile(r"\[([^\[\]]+)\]|\.?([^.\[\]]+)")


@dataclass(frozen=True)
class Override:
    """One value at a path of the job, whose list indices are numbers."""

    path: Path
    value: Any


def path_of(text: str) -> Path:
    """Return the path that a text names, with `spec.` or without it; keys with dots stand in brackets.

    Raises:
        SpecError: it is no path.
    """
    parts: list[str | int] = []
    at = 0
    while at < len(text) and (found := _PART.match(text, at)):
        inside, name = found.groups()
        parts.append(int(inside) if inside is not None and inside.isdigit() else inside or name)
        at = found.end()
    if at < len(text) or not parts or text.startswith("."):
        raise _no_path(text)
    return tuple(parts) if parts[0] in ROOTS else ("spec", *parts)


def with_overrides(data: Any, overrides: Sequence[Override]) -> Any:
    """Return a job with values set; objects that are missing on the way are made, items of lists must be there.

    Raises:
        SpecError: a path leads through a value that is no object or list, or to an item that is not there.
    """
    for override in overrides:
        data = _with(data, override.path, override.value, override.path)
    return data


def _with(data: Any, path: Path, value: Any, whole: Path) -> Any:
    if not path:
        return value
    key, below = path[0], path[1:]
    here = dotted(whole[: len(whole) - len(path)])
    if isinstance(data, list):
        index = int(key) if str(key).isdigit() else -1
        if not 0 <= index < len(data):
            items = f"0 to {len(data) - 1}" if data else "none, it is empty"
            raise _refused(whole, f"names item {key} of {here}, whose items are {items}", "name one of them")
        return [_with(item, below, value, whole) if at == index else item for at, item in enumerate(data)]
    if isinstance(key, int):
        seen = "not there" if data is None else shown(data)
        raise _refused(whole, f"names item {key} of {here}, which is {seen}", f"set {here} itself")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise _refused(whole, f"leads through {here}, which is {shown(data)}", f"set {here} itself")
    return {**data, str(key): _with(data.get(str(key)), below, value, whole)}


def value_at(data: Any, path: Path) -> Any:
    """Return the value at a path, or None where there is none."""
    for key in path:
        if isinstance(data, list):
            data = data[int(key)] if str(key).isdigit() and int(key) < len(data) else None
        else:
            data = data.get(str(key)) if isinstance(data, dict) else None
    return data


def _no_path(text: str) -> SpecError:
    message = f"{shown(text)} is no path of a field"
    cure = (
        "write names with dots, list items as [0], keys with dots in brackets: resourcesPerNode.limits[nvidia.com/gpu]"
    )
    return SpecError(Problem(code="NoPath", field=OPTION, message=message, cure=cure))


def _refused(path: Path, message: str, cure: str) -> SpecError:
    return SpecError(Problem(code="NoSuchPath", field=f"{OPTION} {dotted(path)}", message=message, cure=cure))

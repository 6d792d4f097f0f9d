"""Values that the command line sets in a job: `training.learning_rate=1e-4`, `dataset.mix[0].weight=2`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1.spec_base import shown
from finetune_api.v1alpha1.tree import Path, dotted

ROOTS = frozenset({"apiVersion", "kind", "metadata", "spec"})
OPTION = "--set"
_PART = re.compile(r"\[([^\[\]]+)\]|\.?([^.\[\]]+)")


@dataclass(frozen=True)
class Override:
    """A value for a path of the job. List indices in the path are numbers."""

    path: Path
    value: Any


def path_of(text: str) -> Path:
    """Return the path that a text names, with or without `spec.`; keys with dots stand in brackets.

    Raises:
        SpecError: the text is not a path.
    """
    parts: list[str | int] = []
    at = 0
    while at < len(text) and (match := _PART.match(text, at)):
        inside, name = match.groups()
        parts.append(int(inside) if inside is not None and inside.isdigit() else inside or name)
        at = match.end()
    if at < len(text) or not parts or text.startswith("."):
        raise _no_path(text)
    return tuple(parts) if parts[0] in ROOTS else ("spec", *parts)


def with_overrides(data: Any, overrides: Sequence[Override]) -> Any:
    """Return a job with values set. Missing objects on the path are created; items of lists must exist.

    Raises:
        SpecError: a path leads through a value that is neither object nor list, or to an item that does not exist.
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
            items = f"has the items 0 to {len(data) - 1}" if data else "is empty"
            raise _refused(whole, f"names item {key} of {here}, which {items}", "name an item that exists")
        return [_with(item, below, value, whole) if at == index else item for at, item in enumerate(data)]
    if isinstance(key, int):
        seen = "missing" if data is None else shown(data)
        raise _refused(whole, f"names item {key} of {here}, which is {seen}", f"set {here} itself")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise _refused(whole, f"leads through {here}, which is {shown(data)}", f"set {here} itself")
    return {**data, str(key): _with(data.get(str(key)), below, value, whole)}


def value_at(data: Any, path: Path) -> Any:
    """Return the value at a path, or None."""
    for key in path:
        if isinstance(data, list):
            data = data[int(key)] if str(key).isdigit() and int(key) < len(data) else None
        else:
            data = data.get(str(key)) if isinstance(data, dict) else None
    return data


def _no_path(text: str) -> SpecError:
    message = f"{shown(text)} is not the path of a field"
    cure = (
        "write names with dots, list items as [0], keys with dots in brackets: resourcesPerNode.limits[nvidia.com/gpu]"
    )
    return SpecError(Problem(code="NoPath", field=OPTION, message=message, cure=cure))


def _refused(path: Path, message: str, cure: str) -> SpecError:
    return SpecError(Problem(code="NoSuchPath", field=f"{OPTION} {dotted(path)}", message=message, cure=cure))

"""Reads what another version of this software has stored. Items that this version cannot read are left out."""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
Path = tuple[str | int, ...]


def read(model: type[Model], data: Any) -> Model | None:
    """Return the value without the parts that this version cannot read; None if a required part of the root is one.

    A field that cannot be read takes its default. If the field is required, the object that holds it is left out too,
    such as a condition of an unknown type or a recovery of an unknown category.
    """
    while True:
        try:
            return model.model_validate_json(json.dumps(data))
        except ValidationError as error:
            unread = {_present(data, one["loc"]) for one in error.errors(include_url=False)}
        if () in unread:
            return None
        data = without(data, unread)


def without(data: Any, paths: Iterable[Path]) -> Any:
    """Return a copy of JSON data without the items at these paths."""
    left = json.loads(json.dumps(data))
    # The last item of a list is deleted first, so that the other items keep their index.
    for path in sorted(set(paths), key=_order, reverse=True):
        holder = left
        for part in path[:-1]:
            holder = holder[part]
        del holder[path[-1]]
    return left


def _present(data: Any, location: Iterable[str | int]) -> Path:
    """Return the part of an error's location that exists in the data.

    The location of a missing field ends at the object that lacks it. Tags that pydantic adds for unions do not exist.
    """
    path: Path = ()
    for part in location:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if not inside:
            break
        data = data[part]
        path = (*path, part)
    return path


def _order(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple((part, "") if isinstance(part, int) else (-1, part) for part in path)

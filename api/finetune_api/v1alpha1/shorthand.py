"""Short forms in a job file: a word for an object with one main field, and a word for a list of one.

The schema of the API server allows only the long form, so a note is made for each short form.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from finetune_api.v1alpha1.spec_base import shown
from finetune_api.v1alpha1.tree import Branch, dotted, spec_fields

Keys = tuple[str, ...]


def expand(data: Any) -> tuple[Any, list[str]]:
    """Return a job with every short form written out, and a note for each.

    `model: Qwen/Qwen3-8B` becomes `{name: ...}` (`{uri: ...}` where it is a URI or a path), `dataset: file://a.csv`
    `{train: ...}`, `method: lora` `{type: lora}`, `storage: s3://b/p` `{uri: ...}`, `dataset.eval: 0.05`
    `{split: 0.05}`; a string where the API has a list of strings becomes a list of one.
    """
    notes: list[str] = []
    for path, change in _CHANGES.items():
        data = _changed(data, path, path, change, notes)
    return data, notes


def _changed(data: Any, path: Keys, whole: Keys, change: Callable[[Any], Any], notes: list[str]) -> Any:
    """Return the data with the short form at a path written out, if there is one. The data itself is not changed."""
    if not isinstance(data, Mapping) or path[0] not in data:
        return data
    old = data[path[0]]
    if len(path) > 1:
        new = _changed(old, path[1:], whole, change, notes)
    else:
        new = change(old)
        if new is not old:
            notes.append(
                f"{dotted(whole)}: {shown(old)} is short for {_written(new)}; a cluster accepts only the long form"
            )
    return data if new is old else {**data, path[0]: new}


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return f"[{', '.join(value)}]"


def _model(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    if "://" in value:
        return {"uri": value}
    if value.startswith(("/", "./", "../")):
        return {"uri": f"file://{value}"}
    return {"name": value}


def _under(name: str) -> Callable[[Any], Any]:
    return lambda value: {name: value} if isinstance(value, str) and value else value


def _share(value: Any) -> Any:
    return {"split": value} if isinstance(value, float) and 0 < value < 1 else value


def _one(value: Any) -> Any:
    return [value] if isinstance(value, str) and value else value


def _lists_of_text() -> Iterator[Branch]:
    return (branch for branch in spec_fields() if branch.is_leaf and _is_list_of_text(branch.info.annotation))


def _is_list_of_text(annotation: Any) -> bool:
    """Return whether a field holds a list of strings or null, and never a string."""
    if get_origin(annotation) is Annotated:
        return _is_list_of_text(get_args(annotation)[0])
    if get_origin(annotation) is list:
        item = get_args(annotation)[0]
        return (get_args(item)[0] if get_origin(item) is Annotated else item) is str
    choices = [choice for choice in get_args(annotation) if choice is not type(None)]
    return len(choices) == 1 and _is_list_of_text(choices[0])


_CHANGES: dict[Keys, Callable[[Any], Any]] = {
    ("spec", "model"): _model,
    ("spec", "dataset"): _under("train"),
    ("spec", "dataset", "eval"): _share,
    ("spec", "method"): _under("type"),
    ("spec", "storage"): _under("uri"),
    **{branch.path: _one for branch in _lists_of_text() if branch.path[-1] != "report_to"},  # the API takes either
}

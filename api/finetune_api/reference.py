"""The reference page of the API: `python -m finetune_api.reference` prints docs/reference/finetunejob.md."""

import sys
from collections.abc import Iterator
from typing import Any

from finetune_api import contract
from finetune_api.crd import COLUMNS, schema
from finetune_api.v1alpha1.field_facts import (
    CLUSTER_ONLY,
    FIXED_BELOW,
    LATER,
    MUTABLE,
    MUTABLE_BELOW,
    SHAPES_DATA,
    WITHOUT_EFFECT,
)
from finetune_api.v1alpha1.foreign import NO_COUNTERPART
from finetune_api.v1alpha1.library_names import LORA_OWNED, TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_api.v1alpha1.rules import RULES
from finetune_api.v1alpha1.spec_base import MAX_NAME_LENGTH


def page() -> str:
    """Return the whole page as Markdown."""
    root = schema()
    sections = (_head(root), _spec(root), _between_fields(), _library_names(), _without_counterpart(), _status(root))
    return "\n".join(line for section in (*sections, _columns()) for line in (*section, "")).rstrip() + "\n"


def _head(root: dict[str, Any]) -> list[str]:
    return [
        "# FineTuneJob",
        "",
        "<!-- Generated from the models by `python -m finetune_api.reference`. Do not edit. -->",
        "",
        f"`apiVersion: {contract.API_VERSION}`, `kind: {contract.KIND}`, short name `{contract.SHORT_NAME}`."
        f" {root['description']}",
        "",
        f"`metadata.name` has at most {MAX_NAME_LENGTH} lower-case letters, digits and dashes:"
        " host names are made from it.",
    ]


def _spec(root: dict[str, Any]) -> list[str]:
    return [
        "## spec",
        "",
        "The plan chooses a value for a field that is left out and has no default, and says why. The column *facts*"
        " holds:",
        "",
        "* *data*: another value prepares the data again;",
        "* *mutable*: the field may change after the job was created, under the condition named;",
        "* *cluster*: the field has no effect where `finetune run` runs the job on one machine;",
        "* *no effect*: the field is accepted and changes nothing;",
        "* *later*: the field, or the values named, are refused with the code `NotSupportedYet` today.",
        "",
        "| field | type | default | rule | facts | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(path, field, required) for path, field, required in _fields(root["properties"]["spec"], "spec")),
    ]


def _between_fields() -> list[str]:
    return [
        "## Rules between fields",
        "",
        "| object | rule | what to do |",
        "| --- | --- | --- |",
        *(f"| `{'.'.join(rule.at)}` | {_cell(rule.says)} | {_cell(rule.cure)} |" for rule in RULES),
    ]


def _library_names() -> list[str]:
    return [
        "## Names of the libraries that other fields decide",
        "",
        "| name | use |",
        "| --- | --- |",
        *(f"| `spec.training.{name}` | `{field}` |" for name, field in sorted(TRAINING_OWNED.items())),
        *(f"| `spec.method.lora.{name}` | `{field}` |" for name, field in sorted(LORA_OWNED.items())),
    ]


def _without_counterpart() -> list[str]:
    names = sorted({**NO_COUNTERPART, **TRAINING_NO_COUNTERPART}.items())
    return [
        "## Names of other trainers that have no counterpart",
        "",
        "They are refused with the code `NoCounterpart` and the reason. Names of other trainers that have a field here"
        " under another name (`lr`, `sequence_len`, `lora_rank` ...) are refused with that field's name.",
        "",
        "| name | why |",
        "| --- | --- |",
        *(f"| `{name}` | {_cell(why)} |" for name, why in names),
    ]


def _status(root: dict[str, Any]) -> list[str]:
    return [
        "## status",
        "",
        "Only the operator writes it.",
        "",
        "| field | type | meaning |",
        "| --- | --- | --- |",
        *(
            f"| `{path}` | {_type(field)} | {_cell(field.get('description', ''))} |"
            for path, field, _ in _fields(root["properties"]["status"], "status")
        ),
    ]


def _columns() -> list[str]:
    return [
        "## Columns of `kubectl get ftj`",
        "",
        "| column | path | shown |",
        "| --- | --- | --- |",
        *(f"| {name} | `{path}` | {'with -o wide' if wide else 'always'} |" for name, _, path, wide in COLUMNS),
    ]


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield every field below a schema: its path, its schema, and whether it is required."""
    for key, field in node.get("properties", {}).items():
        here = f"{path}.{key}"
        yield here, field, key in node.get("required", [])
        yield from _fields(field, here)
        if "properties" in field.get("items", {}):
            yield from _fields(field["items"], f"{here}[]")


def _row(path: str, field: dict[str, Any], required: bool) -> str:
    default = "required" if required else (f"`{_plain(field['default'])}`" if "default" in field else "")
    cells = (f"`{path}`", _type(field), default, _rule(field), _facts(path), _cell(str(field.get("description", ""))))
    return f"| {' | '.join(cells)} |"


def _facts(path: str) -> str:
    """Return what the markers of a field, and of the objects above it, say."""
    names = path.replace("[]", "").split(".")
    keys = [".".join(names[:length]) for length in range(2, len(names) + 1)]
    facts = ["data"] if keys[-1] in SHAPES_DATA else []
    mutable = MUTABLE.get(names[1])
    if mutable is not None and not set(keys) & set(FIXED_BELOW):
        facts.append(f"mutable {mutable.only}".rstrip())
    if set(keys) & set(MUTABLE_BELOW):
        facts.append("mutable")
    if set(keys) & set(CLUSTER_ONLY):
        facts.append("cluster")
    if keys[-1] in WITHOUT_EFFECT:
        facts.append("no effect")
    if later := next((LATER[key] for key in keys if key in LATER), None):
        values = "".join(f" `{value}`" for value in later.values or ())
        facts.append(f"later{values}: {_cell(later.reason)}")
    return "; ".join(facts)


def _type(field: dict[str, Any]) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = field.get("type")
    if kind is None:
        return "see the meaning"
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    return "time" if field.get("format") == "date-time" else str(kind)


def _rule(field: dict[str, Any]) -> str:
    rules = []
    if "enum" in field:
        rules.append(", ".join(f"`{choice}`" for choice in field["enum"]))
    if "minimum" in field:
        rules.append(f"{'>' if field.get('exclusiveMinimum') is True else '>='} {_plain(field['minimum'])}")
    if "maximum" in field:
        rules.append(f"{'<' if field.get('exclusiveMaximum') is True else '<='} {_plain(field['maximum'])}")
    if "pattern" in field and not field.get("x-kubernetes-int-or-string"):
        rules.append(f"`{field['pattern']}`")
    for key, noun in (("maxLength", "characters"), ("maxItems", "entries"), ("maxProperties", "entries")):
        if field.get(key) and "enum" not in field:
            rules.append(f"at most {field[key]} {noun}")
    return _cell("; ".join(rules))


def _plain(value: Any) -> str:
    if value == "":
        return '""'
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(page())

"""The reference page of the API: `python -m finetune_api.reference` prints docs/reference/finetunejob.md."""

import sys
from collections.abc import Iterator
from typing import Any

from finetune_api import contract
from finetune_api.crd import COLUMNS, MUTABLE, schema
from finetune_api.v1alpha1.base import MAX_NAME_LENGTH
from finetune_api.v1alpha1.foreign import NO_COUNTERPART
from finetune_api.v1alpha1.rules import RULES
from finetune_api.v1alpha1.supported import LATER
from finetune_api.v1alpha1.training import LORA_OWNED, TRAINING_NO_COUNTERPART, TRAINING_OWNED


def page() -> str:
    """The whole page as Markdown."""
    root = schema()
    parts = [
        "# FineTuneJob",
        "",
        "<!-- Generated from the models by `python -m finetune_api.reference`. Do not edit. -->",
        "",
        f"`apiVersion: {contract.API_VERSION}`, `kind: {contract.KIND}`, short name `{contract.SHORT_NAME}`."
        f" {root['description']}",
        "",
        f"`metadata.name` has at most {MAX_NAME_LENGTH} lower-case letters, digits and dashes:"
        " host names are made from it.",
        "",
        "## spec",
        "",
        "A field without a default that is left out is planned, and the plan says what was chosen and why."
        " *Later* marks what is refused with the code `NotSupportedYet` today.",
        "",
        "| field | type | default | rule | meaning |",
        "| --- | --- | --- | --- | --- |",
        *(_row(path, field, required) for path, field, required in _fields(root["properties"]["spec"], "spec")),
        "",
        "Once a job is made, only these may change: "
        + ", ".join(f"`{name}`" for name in sorted(MUTABLE))
        + " (`nodes` and `spares` while suspended, `dryRun` from true to false).",
        "",
        "## Rules between fields",
        "",
        "| object | rule | what to do |",
        "| --- | --- | --- |",
        *(f"| `{'.'.join(rule.at)}` | {_cell(rule.says)} | {_cell(rule.cure)} |" for rule in RULES),
        "",
        "## Names of the libraries that other fields decide",
        "",
        "| name | use |",
        "| --- | --- |",
        *(f"| `spec.training.{name}` | `{field}` |" for name, field in sorted(TRAINING_OWNED.items())),
        *(f"| `spec.method.lora.{name}` | `{field}` |" for name, field in sorted(LORA_OWNED.items())),
        "",
        "## Names of other trainers that have no counterpart",
        "",
        "They are refused with the code `NoCounterpart` and the reason. Names of other trainers that have a field here"
        " under another name (`lr`, `sequence_len`, `lora_rank` ...) are refused with that field's name.",
        "",
        "| name | why |",
        "| --- | --- |",
        *(
            f"| `{name}` | {_cell(why)} |"
            for name, why in sorted({**NO_COUNTERPART, **TRAINING_NO_COUNTERPART}.items())
        ),
        "",
        "## status",
        "",
        "Written by the operator only.",
        "",
        "| field | type | meaning |",
        "| --- | --- | --- |",
        *(
            f"| `{path}` | {_type(field)} | {_cell(field.get('description', ''))} |"
            for path, field, _ in _fields(root["properties"]["status"], "status")
        ),
        "",
        "## Columns of `kubectl get ftj`",
        "",
        "| column | path | shown |",
        "| --- | --- | --- |",
        *(f"| {name} | `{path}` | {'with -o wide' if wide else 'always'} |" for name, _, path, wide in COLUMNS),
        "",
    ]
    return "\n".join(parts)


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every field below a schema: its path, its schema, and whether it must be given."""
    for key, field in node.get("properties", {}).items():
        here = f"{path}.{key}"
        yield here, field, key in node.get("required", [])
        yield from _fields(field, here)
        if "properties" in field.get("items", {}):
            yield from _fields(field["items"], f"{here}[]")


def _row(path: str, field: dict[str, Any], required: bool) -> str:
    default = "required" if required else (f"`{_plain(field['default'])}`" if "default" in field else "")
    return f"| `{path}` | {_type(field)} | {default} | {_rule(field)} | {_cell(_meaning(path, field))} |"


def _meaning(path: str, field: dict[str, Any]) -> str:
    text = str(field.get("description", ""))
    later = LATER.get(path)
    if later is None:
        return text
    some = ", ".join(str(value) for value in later.values or ())
    return f"{text} *Later{f' ({some})' if some else ''}: {later.reason}.*"


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

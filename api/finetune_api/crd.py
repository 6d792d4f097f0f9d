"""The models as a CustomResourceDefinition: `python -m finetune_api.crd` prints manifests/base/crd.yaml.

Structural, as the API server demands. Three kinds of field cannot be told in a structural schema and are stored as they
are (x-kubernetes-preserve-unknown-fields): string-or-object (dataset.eval), string-or-list (target_modules) and free
objects (deepspeed.config). The operator checks these with the same models.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api import contract, yaml12
from finetune_api.v1alpha1.base import LABEL_PATTERN, MAX_NAME_LENGTH
from finetune_api.v1alpha1.facts import FIXED_BELOW, LATER, MUTABLE
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.markers import Later
from finetune_api.v1alpha1.rules import RULES
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_api.v1alpha1.tree import children

Schema = dict[str, Any]

COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.percentText", 0),
    ("Step", "string", ".status.progress.stepText", 0),
    ("Loss", "string", ".status.progress.lossText", 0),
    ("ETA", "string", ".status.progress.etaText", 0),
    ("Nodes", "integer", ".spec.nodes", 0),
    ("Restarts", "integer", ".status.restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Model", "string", ".status.plan.model", 1),
    ("Method", "string", ".spec.method.type", 1),
    ("Eval", "string", ".status.progress.evalText", 1),
    ("Tokens/s", "string", ".status.progress.speedText", 1),
    ("Checkpoint", "string", ".status.lastCheckpoint", 1),
    ("Reason", "string", ".status.reason", 1),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{contract.PLURAL}.{contract.GROUP}"},
        "spec": {
            "group": contract.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": contract.KIND,
                "listKind": f"{contract.KIND}List",
                "plural": contract.PLURAL,
                "singular": contract.SINGULAR,
                "shortNames": [contract.SHORT_NAME],
                "categories": ["all", "finetune"],
            },
            "versions": [
                {
                    "name": contract.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, **({"priority": wide} if wide else {})}
                        for name, kind, path, wide in COLUMNS
                    ],
                }
            ],
        },
    }


def schema() -> Schema:
    """The structural schema of the object."""
    raw = FineTuneJob.model_json_schema(by_alias=True)
    root = _structural(raw, raw.get("$defs", {}))
    properties = root["properties"]
    properties["apiVersion"] = {"type": "string", "description": "API group and version.", "maxLength": 64}
    properties["kind"] = {"type": "string", "description": "Kind of the object.", "maxLength": 64}
    properties["metadata"] = {"type": "object"}  # the API server allows no more than name and generateName to be ruled
    root["required"] = ["spec"]
    root["x-kubernetes-validations"] = [_name_rule()]
    conditions = properties["status"]["properties"]["conditions"]
    conditions["x-kubernetes-list-type"] = "map"
    conditions["x-kubernetes-list-map-keys"] = ["type"]
    for rule in RULES:
        if rule.cel is not None:
            _at(root, rule.at).setdefault("x-kubernetes-validations", []).append(
                {"rule": rule.cel, "message": rule.says, "reason": "FieldValueInvalid"}
            )
    for path, later in LATER.items():
        root_field, *below = path.split(".")[1:]
        if root_field in MUTABLE and below and path not in FIXED_BELOW:
            _at(root, ("spec", root_field)).setdefault("x-kubernetes-validations", []).append(_later_rule(below, later))
    properties["spec"]["x-kubernetes-validations"] += list(_transition_rules())
    return root


def _name_rule() -> dict[str, str]:
    words = f"metadata.name must have at most {MAX_NAME_LENGTH} characters, lower-case letters, digits and dashes only"
    return {
        "rule": f"size(self.metadata.name) <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{LABEL_PATTERN}')",
        "message": f"{words}: host names and labels are made from it",
    }


def _later_rule(below: list[str], later: Later) -> dict[str, str]:
    """Refuse what is not supported yet where it may be changed: a running job must never be given such a value."""
    [field] = below
    values = "" if later.values is None else f" && self.{field} in {list(later.values)}"
    what = field if later.values is None else f"{field}: {', '.join(later.values)}"
    return {
        "rule": f"!(has(self.{field}){values})",
        "message": f"{what} is not supported yet: {later.reason}; {later.instead}",
        "reason": "FieldValueInvalid",
    }


def _transition_rules() -> Iterator[dict[str, str]]:
    for key in children(FineTuneJobSpec):
        if key not in MUTABLE:
            same = f"has(self.{key}) == has(oldSelf.{key}) && (!has(self.{key}) || self.{key} == oldSelf.{key})"
            yield {"rule": same, "message": f"spec.{key} cannot be changed: make a new FineTuneJob"}
    for path in FIXED_BELOW:
        _, key, below = path.split(".")
        new, old = (f"has({one}.{key}) && has({one}.{key}.{below})" for one in ("self", "oldSelf"))
        same = f"({new}) == ({old}) && (!({new}) || self.{key}.{below} == oldSelf.{key}.{below})"
        yield {"rule": same, "message": f"{path} cannot be changed: make a new FineTuneJob"}
    for key, mutable in MUTABLE.items():
        if mutable.rule:
            yield {"rule": mutable.rule.format(field=key), "message": mutable.refusal.format(field=key)}


def _at(root: Schema, path: tuple[str, ...]) -> Schema:
    for part in path:
        root = root["properties"][part]
    return root


# ---------------------------------------------------------------- JSON schema of pydantic -> structural schema

_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
)


def _structural(raw: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    """One schema with references resolved, null left out, and only what a structural schema may hold."""
    if "$ref" in raw:
        target = defs[raw["$ref"].rsplit("/", 1)[-1]]
        raw = {**target, **{key: value for key, value in raw.items() if key != "$ref"}}
    for union in ("anyOf", "oneOf"):
        if union in raw:
            branches = [branch for branch in raw[union] if branch.get("type") != "null"]
            assert len(branches) == 1, f"a union needs a schema of its own: {raw}"
            inner = _structural(branches[0], defs)
            raw = {**{key: value for key, value in raw.items() if key != union}, **{"$inner": inner}}
    found: Schema = dict(raw.get("$inner", {}))
    found.update({key: raw[key] for key in _KEPT if key in raw})
    if "const" in raw:
        found["enum"] = [raw["const"]]
    for bound, name in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in raw:
            found[name], found[bound] = raw[bound], True
    if "properties" in raw:
        found["properties"] = {key: _structural(value, defs) for key, value in raw["properties"].items()}
    if "items" in raw:
        found["items"] = _structural(raw["items"], defs)
    if isinstance(raw.get("additionalProperties"), Mapping):
        found["additionalProperties"] = _structural(raw["additionalProperties"], defs)
    if raw.get("default") is not None:
        found["default"] = raw["default"]
    return _bounded(found)


def _bounded(found: Schema) -> Schema:
    kind = found.get("type")
    if kind == "string" and "maxLength" not in found:
        longest = max((len(choice) for choice in found["enum"]), default=0) if "enum" in found else 64
        found["maxLength"] = longest
    if kind == "integer":
        found.setdefault("format", "int64")
    if found.get("format") == "date-time":
        found.pop("maxLength", None)
    return found


def main() -> None:
    """Print the CRD."""
    sys.stdout.write(text())


def text() -> str:
    """The CRD as YAML, with the line that says how to make it anew."""
    return "# Generated from the models by `python -m finetune_api.crd`. Do not edit.\n" + yaml12.dump(crd())


if __name__ == "__main__":
    main()

"""The models as a CustomResourceDefinition: `python -m finetune_api.crd` prints manifests/base/crd.yaml.

The schema is structural, as the API server requires. A structural schema cannot express three kinds of field, which are
stored unchecked (x-kubernetes-preserve-unknown-fields): string-or-object (dataset.eval), string-or-list
(target_modules) and free objects (deepspeed.config). The operator checks them with the same models.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api import contract, yaml12
from finetune_api.v1alpha1.field_facts import FIXED_BELOW, LATER, MUTABLE, MUTABLE_BELOW
from finetune_api.v1alpha1.job import FineTuneJob
from finetune_api.v1alpha1.markers import Later
from finetune_api.v1alpha1.rules import RULES
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_api.v1alpha1.spec_base import LABEL_PATTERN, MAX_NAME_LENGTH
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
    ("Approved", "string", '.status.conditions[?(@.type=="Approved")].status', 1),
    ("Reason", "string", ".status.reason", 1),
)


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition as plain data."""
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
    """Return the structural schema of the object."""
    raw = FineTuneJob.model_json_schema(by_alias=True)
    root = _structural(raw, raw.get("$defs", {}))
    properties = root["properties"]
    properties["apiVersion"] = {"type": "string", "description": "API group and version.", "maxLength": 64}
    properties["kind"] = {"type": "string", "description": "Kind of the object.", "maxLength": 64}
    properties["metadata"] = {"type": "object"}  # the API server allows rules for name and generateName only
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
    """Return the rule that no unsupported value can be set where the field may change while the job runs."""
    [field] = below
    values = "" if later.values is None else f" && self.{field} in {list(later.values)}"
    what = field if later.values is None else f"{field}: {', '.join(later.values)}"
    return {
        "rule": f"!(has(self.{field}){values})",
        "message": f"{what} is not supported yet: {later.reason}; {later.instead}",
        "reason": "FieldValueInvalid",
    }


def _transition_rules() -> Iterator[dict[str, str]]:
    partly = {*MUTABLE, *(path.split(".")[1] for path in MUTABLE_BELOW)}
    for key in children(FineTuneJobSpec):
        if key not in partly:
            same = f"has(self.{key}) == has(oldSelf.{key}) && (!has(self.{key}) || self.{key} == oldSelf.{key})"
            yield {"rule": same, "message": f"spec.{key} cannot be changed: make a new FineTuneJob"}
    for path in (*FIXED_BELOW, *_fixed_beside()):
        _, key, below = path.split(".")
        new, old = (f"has({one}.{key}) && has({one}.{key}.{below})" for one in ("self", "oldSelf"))
        same = f"({new}) == ({old}) && (!({new}) || self.{key}.{below} == oldSelf.{key}.{below})"
        yield {"rule": same, "message": f"{path} cannot be changed: make a new FineTuneJob"}
    for key, mutable in MUTABLE.items():
        if mutable.rule:
            yield {"rule": mutable.rule.format(field=key), "message": mutable.refusal.format(field=key)}


def _fixed_beside() -> Iterator[str]:
    """Yield the paths of the fields that stand beside a field of MUTABLE_BELOW and may not change."""
    for changing in MUTABLE_BELOW:
        _, top, below = changing.split(".")
        model = children(FineTuneJobSpec)[top].child
        assert model is not None
        yield from (f"spec.{top}.{key}" for key in children(model) if key != below)


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
    """Return a schema with references resolved, without null, and with only what a structural schema may hold."""
    if "$ref" in raw:
        target = defs[raw["$ref"].rsplit("/", 1)[-1]]
        raw = {**target, **{key: value for key, value in raw.items() if key != "$ref"}}
    for union in ("anyOf", "oneOf"):
        if union in raw:
            branches = [branch for branch in raw[union] if branch.get("type") != "null"]
            assert len(branches) == 1, f"a union needs a schema of its own: {raw}"
            inner = _structural(branches[0], defs)
            raw = {**{key: value for key, value in raw.items() if key != union}, **{"$inner": inner}}
    kept: Schema = dict(raw.get("$inner", {}))
    kept.update({key: raw[key] for key in _KEPT if key in raw})
    if "const" in raw:
        kept["enum"] = [raw["const"]]
    for bound, name in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in raw:
            kept[name], kept[bound] = raw[bound], True
    if "properties" in raw:
        kept["properties"] = {key: _structural(value, defs) for key, value in raw["properties"].items()}
    if "items" in raw:
        kept["items"] = _structural(raw["items"], defs)
    if isinstance(raw.get("additionalProperties"), Mapping):
        kept["additionalProperties"] = _structural(raw["additionalProperties"], defs)
    if raw.get("default") is not None:
        kept["default"] = raw["default"]
    return _bounded(kept)


def _bounded(kept: Schema) -> Schema:
    kind = kept.get("type")
    if kind == "string" and "maxLength" not in kept:
        longest = max((len(choice) for choice in kept["enum"]), default=0) if "enum" in kept else 64
        kept["maxLength"] = longest
    if kind == "integer":
        kept.setdefault("format", "int64")
    if kept.get("format") == "date-time":
        kept.pop("maxLength", None)
    return kept


def main() -> None:
    """Print the CRD."""
    sys.stdout.write(text())


def text() -> str:
    """Return the CRD as YAML, with a comment on how to generate it."""
    return "# Generated from the models by `python -m finetune_api.crd`. Do not edit.\n" + yaml12.dump(crd())


if __name__ == "__main__":
    main()

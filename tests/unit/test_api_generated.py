"""What is made from the models is what is committed, and has the bounds that the API server asks for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml as yaml11

from finetune_api import crd, reference, yaml12
from finetune_api.v1alpha1.field_facts import LATER, MUTABLE
from finetune_api.v1alpha1.rules import RULES
from finetune_api.v1alpha1.tree import spec_fields

ROOT = Path(__file__).parents[2]


def _nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for key, child in node.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from _nodes(node[key], f"{path}[]")


NODES = list(_nodes(crd.schema()))


def test_the_committed_crd_is_the_models() -> None:
    committed = (ROOT / "manifests/base/crd.yaml").read_text()
    assert committed == crd.text(), "run: python -m finetune_api.crd > manifests/base/crd.yaml"


def test_the_committed_reference_is_the_models() -> None:
    committed = (ROOT / "docs/reference/finetunejob.md").read_text()
    assert committed == reference.page(), "run: python -m finetune_api.reference > docs/reference/finetunejob.md"


def test_the_committed_crd_reads_the_same_in_yaml_11_and_12() -> None:
    text = (ROOT / "manifests/base/crd.yaml").read_text()
    assert yaml11.safe_load(text) == yaml12.load(text, "crd.yaml")[0] == crd.crd()


def test_every_string_list_and_map_is_bounded() -> None:
    loose = []
    for path, node in NODES:
        kind = node.get("type")
        bounds = {"string": "maxLength", "array": "maxItems"}
        if kind in bounds and bounds[kind] not in node and node.get("format") != "date-time":
            loose.append(path)
        if "additionalProperties" in node and "maxProperties" not in node:
            loose.append(path)
    assert loose == []


def test_every_field_has_a_type_and_a_description() -> None:
    untyped = {
        path.removeprefix(".")
        for path, node in NODES
        if "type" not in node and not node.get("x-kubernetes-int-or-string")
    }
    assert untyped == {
        "spec.dataset.eval",
        "spec.method.lora.target_modules",
        "spec.method.lora.exclude_modules",
        "spec.method.lora.init_lora_weights",
        "spec.training.class_weights",
        "spec.training.optim_target_modules",
        "spec.training.report_to",
    }
    plain = {path.removeprefix(".") for path, node in NODES if "description" not in node and not path.endswith("[]")}
    assert plain <= {"metadata"}


def test_the_schema_has_every_field_of_the_models() -> None:
    in_schema = {path.removeprefix(".").replace("[]", "") for path, _ in NODES}
    assert {branch.dotted for branch in spec_fields()} <= in_schema


def test_every_rule_that_cel_can_say_is_in_the_crd_with_a_message() -> None:
    said = {one["message"] for _, node in NODES for one in node.get("x-kubernetes-validations", [])}
    assert {rule.says for rule in RULES if rule.cel is not None} <= said


def test_no_value_that_is_not_supported_yet_can_be_patched_into_a_running_job() -> None:
    """The API server refuses it; nobody else can without failing the job."""
    validations = {path: [one["rule"] for one in node.get("x-kubernetes-validations", [])] for path, node in NODES}
    for path in LATER:
        _, field, *below = path.split(".")
        if field in MUTABLE and below:
            said = validations[f".spec.{field}"] + validations[".spec"]
            assert any(f"self.{below[0]}" in rule or f"self.{field}.{below[0]}" in rule for rule in said), path

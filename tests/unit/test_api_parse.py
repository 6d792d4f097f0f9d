"""A job is refused with every problem at once, each with its field, the value seen, the rule and the cure."""

import copy
import json
from typing import Any, get_args

import pytest
from pydantic_core.core_schema import ErrorType

from finetune_api.errors import Problem, SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.quantity import PATTERN as QUANTITY_PATTERN
from finetune_api.v1alpha1 import MAX_NAME_LENGTH, EvalSplit, FineTuneJob, FineTuneJobSpec, parse_job, reread_job
from finetune_api.v1alpha1.patterns import meaning
from finetune_api.v1alpha1.tree import spec_fields

MINIMAL: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "support-bot"},
    "spec": {
        "model": {"uri": "file://models/base"},
        "dataset": {"train": "file://data/train.csv"},
        "method": {"type": "lora"},
        "storage": {"uri": "file://build/store"},
    },
}


def job(**changes: Any) -> dict[str, Any]:
    """The minimal job with values set at paths, written with two underscores for a dot; `...` takes one out."""
    made = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = made
        for part in parents:
            at = at.setdefault(part, {})
        if value is ...:
            del at[last]
        else:
            at[last] = value
    return made


def problems_of(data: Any) -> list[Problem]:
    with pytest.raises(SpecError) as refused:
        parse_job(data)
    return list(refused.value.problems)


def test_the_minimal_job_has_defaults_only_where_nothing_is_to_be_planned() -> None:
    parsed = parse_job(MINIMAL)
    assert parsed.metadata.namespace == "default"
    assert (parsed.spec.nodes, parsed.spec.spares, parsed.spec.processes_per_node) == (1, 0, None)
    assert (parsed.spec.dataset.on_invalid, parsed.spec.dataset.eval) == ("Fail", None)
    assert parsed.spec.training.given() == {}
    assert parsed.spec.task is None


def test_values_arrive_under_their_python_names() -> None:
    parsed = parse_job(
        job(
            spec__task="classification",
            spec__dataset__eval={"split": 0.1},
            spec__dataset__maxLength=96,
            spec__method__lora={"r": 16, "target_modules": ["query", "value"], "lora_dropout": 0},
            spec__training={"learning_rate": 2e-4, "warmup_steps": 0.1, "eval_steps": 50, "bf16": None},
            spec__resourcesPerNode={"limits": {"cpu": 2, "memory": "4Gi"}},
        )
    ).spec
    assert parsed.task is Task.CLASSIFICATION
    assert parsed.dataset.eval == EvalSplit(split=0.1)
    assert parsed.dataset.max_length == 96
    assert parsed.method.type is MethodType.LORA
    assert parsed.method.lora is not None
    assert parsed.method.lora.given() == {"r": 16, "target_modules": ["query", "value"], "lora_dropout": 0}
    assert parsed.training.given() == {"learning_rate": 2e-4, "warmup_steps": 0.1, "eval_steps": 50}
    assert isinstance(parsed.training.eval_steps, int)
    assert parsed.resources_per_node.limits == {"cpu": 2, "memory": "4Gi"}


def test_an_object_as_the_api_server_returns_it_is_read() -> None:
    stored = job(
        metadata={
            "name": "support-bot",
            "namespace": "team-a",
            "uid": "6a1f",
            "resourceVersion": "12",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl"}],
        },
        spec__suspend=False,
        spec__dryRun=False,
        spec__spares=0,
        status={"phase": "Running", "fieldOfANewerOperator": 1},
    )
    parsed = parse_job(stored)
    assert (parsed.metadata.namespace, parsed.metadata.uid, parsed.status) == ("team-a", "6a1f", None)


def test_a_job_survives_being_written_and_read() -> None:
    first = parse_job(job(spec__dataset__eval={"split": 0.1}, spec__method__lora={"r": 4}, spec__nodes=2))
    written = json.loads(first.model_dump_json(by_alias=True, exclude_none=True))
    assert parse_job(written).spec == FineTuneJob.model_validate_json(json.dumps(written)).spec
    assert parse_job(written).spec.dataset == first.spec.dataset


@pytest.mark.parametrize(
    "sizes",
    [
        {"global_batch_size": 32, "per_device_train_batch_size": 8},
        {"global_batch_size": 32, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ],
)
def test_a_batch_that_divides_is_accepted(sizes: dict[str, int]) -> None:
    parse_job(job(spec__training=sizes, spec__nodes=2, spec__processesPerNode=2))


def test_all_problems_come_at_once() -> None:
    broken = job(
        spec__epochs=3,
        spec__model={},
        spec__training={"learning_rate": 0, "output_dir": "x", "num_train_epoch": 1},
        spec__dataset__train=7,
        spec__queueName="gpus",
    )
    assert {one.field for one in problems_of(broken)} == {
        "spec.epochs",
        "spec.model",
        "spec.training.learning_rate",
        "spec.training.output_dir",
        "spec.training.num_train_epoch",
        "spec.dataset.train",
        "spec.queueName",
    }


def test_problems_stand_in_the_order_of_the_file() -> None:
    at = {("spec", "nodes"): 9, ("spec", "model", "uri"): 4, ("spec", "queueName"): 7}
    with pytest.raises(SpecError) as refused:
        parse_job(job(spec__nodes=0, spec__model__uri="x", spec__queueName="gpus"), at.get, "job.yaml")
    assert [(one.file, one.lines) for one in refused.value.problems] == [
        ("job.yaml", (4,)),
        ("job.yaml", (7,)),
        ("job.yaml", (9,)),
    ]


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_what_is_no_object_is_refused(data: Any) -> None:
    assert problems_of(data)[0].code == "WrongType"


JUNK: list[Any] = [None, True, -1, 0, 1.5, 10**30, "", "x" * 5000, "\ud800", [], [[]], {}, {"a": 1}, float("nan")]


RAW = ("Input should", "pydantic", "Extra inputs", "Field required", "valid integer", "[type=")


def _said_about(data: Any) -> str:
    try:
        parse_job(data)
    except SpecError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("junk", JUNK, ids=lambda value: repr(value)[:20])
def test_no_raw_message_leaks_whatever_stands_in_a_field(junk: Any) -> None:
    leaks = []
    for branch in spec_fields():
        broken = job()
        at = broken["spec"]
        for part in branch.path[1:-1]:
            if not isinstance(at.get(part), dict):
                at[part] = {}
            at = at[part]
        at[branch.path[-1]] = junk
        said = _said_about(broken)
        leaks += [f"{branch.dotted}: {said}" for words in RAW if words in said]
    assert leaks == []


def _patterns(node: Any) -> set[str]:
    """Every `pattern` in a JSON schema."""
    if isinstance(node, list):
        return set().union(*map(_patterns, node))
    if not isinstance(node, dict):
        return set()
    here = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
    return here.union(*map(_patterns, node.values()))


def test_every_pattern_that_a_user_can_break_has_words() -> None:
    found = _patterns(FineTuneJobSpec.model_json_schema()) - {QUANTITY_PATTERN}  # quantities say their own sentence
    assert len(found) > 4
    assert all(len(meaning(pattern)) == 2 for pattern in found)


def test_the_longest_name_leaves_room_for_host_names() -> None:
    host = f"{'a' * MAX_NAME_LENGTH}-train-9999-9999"
    assert len(host) == 63


def test_the_translator_knows_pydantics_error_types() -> None:
    from finetune_api.v1alpha1 import parse

    known = {*parse._WRONG_TYPE, *parse._BOUNDS}
    assert known <= set(get_args(ErrorType)), "a renamed error type would fall through to the vague sentence"


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ({"news": {"deep": 1}}, True),  # of a newer version
        ({"recovery": {"hangTimeoutSeconds": 60, "patience": 1}}, True),  # not supported here, and unknown
        ({"checkpoint": {"everySteps": 5, "everyMinutes": 5}}, True),  # a rule that came later
        ({"nodes": 1_000_000}, False),
        ({"recovery": {"onDivergence": "Pray"}}, False),
    ],
)
def test_a_job_that_was_accepted_is_read_again_by_another_version(change: dict[str, Any], read: bool) -> None:
    data = job(**{f"spec__{name}": value for name, value in change.items()})
    with pytest.raises(SpecError):
        parse_job(data)
    assert (reread_job(data) is not None) == read

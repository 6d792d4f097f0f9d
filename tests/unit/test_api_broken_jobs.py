"""Jobs that break one rule each: the problem names field, value, rule and cure."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit.test_api_parse import job, problems_of


@dataclass(frozen=True)
class Case:
    about: str
    field: str
    code: str
    says: str
    cure: str = ""
    set: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.about


CASES = [
    Case(
        "misspelt",
        "spec.trainin",
        "UnknownField",
        "not a field of spec",
        "did you mean `training`?",
        {"spec__trainin": {}},
    ),
    Case(
        "snake for camel",
        "spec.dataset.max_length",
        "UnknownField",
        "not a field of spec.dataset",
        "did you mean `maxLength`?",
        {"spec__dataset__max_length": 5},
    ),
    Case(
        "a common name",
        "spec.epochs",
        "UnknownField",
        "`epochs` is not a field of spec",
        "did you mean spec.training.num_train_epochs?",
        {"spec__epochs": 3},
    ),
    Case(
        "lr",
        "spec.training.lr",
        "UnknownField",
        "`lr` is not a field",
        "did you mean spec.training.learning_rate?",
        {"spec__training": {"lr": 1}},
    ),
    Case(
        "batch_size",
        "spec.training.batch_size",
        "UnknownField",
        "`batch_size` is not a field",
        "did you mean spec.training.global_batch_size?",
        {"spec__training": {"batch_size": 1}},
    ),
    Case(
        "right name, wrong place",
        "spec.learning_rate",
        "UnknownField",
        "not a field of spec",
        "did you mean spec.training.learning_rate?",
        {"spec__learning_rate": 1},
    ),
    Case(
        "nothing like it",
        "spec.storage.zzzz",
        "UnknownField",
        "not a field of spec.storage",
        "the fields here are uri, endpoint",
        {"spec__storage__zzzz": 1},
    ),
    Case(
        "owned",
        "spec.training.output_dir",
        "OwnedElsewhere",
        "is decided by spec.storage.uri",
        "use spec.storage.uri",
        {"spec__training": {"output_dir": "x"}},
    ),
    Case(
        "owned by saving",
        "spec.training.save_steps",
        "OwnedElsewhere",
        "is decided by spec.checkpoint.everySteps",
        "",
        {"spec__training": {"save_steps": 5}},
    ),
    Case(
        "gone in transformers 5",
        "spec.training.warmup_ratio",
        "OwnedElsewhere",
        "is decided by spec.training.warmup_steps",
        "",
        {"spec__training": {"warmup_ratio": 0.1}},
    ),
    Case(
        "owned PEFT name",
        "spec.method.lora.task_type",
        "OwnedElsewhere",
        "is decided by spec.task",
        "",
        {"spec__method__lora": {"task_type": "SEQ_CLS"}},
    ),
    Case(
        "PEFT name of later",
        "spec.method.lora.loftq_config",
        "NotSupportedYet",
        "is not supported yet",
        "leave it out",
        {"spec__method__lora": {"loftq_config": {}}},
    ),
    Case(
        "missing",
        "spec.storage",
        "MissingField",
        "is missing; it is required",
        "write `storage:`",
        {"spec__storage": ...},
    ),
    Case(
        "wrong API version",
        "apiVersion",
        "InvalidValue",
        'is "finetune.dev/v1"; must be finetune.dev/v1alpha1',
        "",
        {"apiVersion": "finetune.dev/v1"},
    ),
    Case(
        "a number in quotes",
        "spec.training.learning_rate",
        "WrongType",
        'is "2e-4"; must be a number',
        "without quotes",
        {"spec__training": {"learning_rate": "2e-4"}},
    ),
    Case(
        "too small",
        "spec.training.learning_rate",
        "OutOfRange",
        "is 0; must be greater than 0",
        "",
        {"spec__training": {"learning_rate": 0}},
    ),
    Case(
        "not finite",
        "spec.training.learning_rate",
        "WrongType",
        "must be a finite number",
        "",
        {"spec__training": {"learning_rate": float("inf")}},
    ),
    Case("true for a number", "spec.nodes", "WrongType", "is true; must be a whole number", "", {"spec__nodes": True}),
    Case("half a node", "spec.nodes", "WrongType", "is 1.5; must be a whole number", "", {"spec__nodes": 1.5}),
    Case("a list for an object", "spec.model", "WrongType", "is a list; must be an object", "", {"spec__model": []}),
    Case("yes for true", "spec.suspend", "WrongType", 'is "yes"; must be true or false', "", {"spec__suspend": "yes"}),
    Case(
        "an unknown choice",
        "spec.method.type",
        "InvalidValue",
        'is "lorra"; must be one of lora, qlora, full',
        "did you mean `lora`?",
        {"spec__method__type": "lorra"},
    ),
    Case(
        "another scheme",
        "spec.dataset.train",
        "InvalidValue",
        'is "ftp://x"; must be a URI that starts with s3://',
        "",
        {"spec__dataset__train": "ftp://x"},
    ),
    Case(
        "a label for each word",
        "spec.task",
        "InvalidValue",
        'is "ner"; must be one of',
        "write token-classification",
        {"spec__task": "ner"},
    ),
    Case(
        "preferences by the name of a loss",
        "spec.task",
        "InvalidValue",
        'is "kto"; must be one of',
        "write preference, and spec.preference.loss_type: kto",
        {"spec__task": "kto"},
    ),
    Case(
        "a task by the hub's name",
        "spec.task",
        "InvalidValue",
        'is "text-generation"; must be one of',
        "write causal-lm",
        {"spec__task": "text-generation"},
    ),
    Case(
        "eval is a number", "spec.dataset.eval", "WrongType", "is 5; must be a URI or", "", {"spec__dataset__eval": 5}
    ),
    Case(
        "eval split of 2",
        "spec.dataset.eval.split",
        "OutOfRange",
        "is 2; must be less than 1",
        "",
        {"spec__dataset__eval": {"split": 2}},
    ),
    Case(
        "no quantity",
        "spec.resourcesPerNode.limits[nvidia.com/gpu]",
        "InvalidQuantity",
        'is "two"',
        "",
        {"spec__resourcesPerNode": {"limits": {"nvidia.com/gpu": "two"}}},
    ),
    Case(
        "a negative quantity",
        "spec.resourcesPerNode.limits.cpu",
        "InvalidQuantity",
        "is -1",
        "",
        {"spec__resourcesPerNode": {"limits": {"cpu": -1}}},
    ),
    Case(
        "a ratio above 1",
        "spec.training.eval_steps",
        "OutOfRange",
        "is 1.5; must be a whole number of steps",
        "",
        {"spec__training": {"eval_steps": 1.5}},
    ),
    Case(
        "a long name", "metadata.name", "TooLong", "at most 47 characters", "shorten it", {"metadata__name": "a" * 48}
    ),
    Case(
        "an upper-case name", "metadata.name", "InvalidValue", 'is "A"; must be lower-case', "", {"metadata__name": "A"}
    ),
    Case("no model", "spec.model", "ExactlyOne", "has none of them", "", {"spec__model": {}}),
    Case("two models", "spec.model", "ExactlyOne", "has name and uri", "", {"spec__model__name": "a/b"}),
    Case(
        "revision of a folder",
        "spec.model.revision",
        "NeedsOther",
        'is "main"; requires name',
        "",
        {"spec__model__revision": "main"},
    ),
    Case("no training data", "spec.dataset", "ExactlyOne", "has neither train nor mix", "", {"spec__dataset": {}}),
    Case(
        "training data twice",
        "spec.dataset",
        "ExactlyOne",
        "has both train and mix",
        "`mix` (several sources, each with a weight)",
        {"spec__dataset": {"train": "file://a", "mix": [{"uri": "file://b"}]}},
    ),
    Case("a mix of nothing", "spec.dataset.mix", "TooShort", "must not be empty", "", {"spec__dataset": {"mix": []}}),
    Case(
        "a weight of nothing",
        "spec.dataset.mix[0].weight",
        "OutOfRange",
        "is 0; must be greater than 0",
        "",
        {"spec__dataset": {"mix": [{"uri": "file://b", "weight": 0}]}},
    ),
    Case(
        "a long delimiter of CSV",
        "spec.dataset.delimiter",
        "Conflict",
        'is "||", but format is csv; its delimiter must be one character',
        "",
        {"spec__dataset": {"train": "file://a", "format": "csv", "delimiter": "||"}},
    ),
    Case(
        "a delimiter of JSON lines",
        "spec.dataset.delimiter",
        "Conflict",
        "only csv, tsv and pairs have a delimiter",
        "",
        {"spec__dataset": {"train": "file://a", "format": "jsonl", "delimiter": ";"}},
    ),
    Case(
        "documents of CSV",
        "spec.dataset.documents",
        "Conflict",
        "only the format text has documents",
        "",
        {"spec__dataset": {"train": "file://a", "format": "csv", "documents": "line"}},
    ),
    Case(
        "adapter settings for full",
        "spec.method.lora",
        "Conflict",
        "type is full",
        "set spec.method.type to lora",
        {"spec__method": {"type": "full", "lora": {}}},
    ),
    Case(
        "two precisions",
        "spec.training.fp16",
        "Conflict",
        "and bf16 is true",
        "",
        {"spec__training": {"fp16": True, "bf16": True}},
    ),
    Case(
        "one thing, two answers",
        "spec.training.gradient_checkpointing",
        "Conflict",
        "two names of one setting",
        "",
        {"spec__training": {"gradient_checkpointing": True, "activation_checkpointing": False}},
    ),
    Case(
        "batch that does not divide",
        "spec.training.global_batch_size",
        "NotDivisible",
        "is 10, and per_device_train_batch_size 4 = 4; must be a multiple",
        "",
        {"spec__training": {"global_batch_size": 10, "per_device_train_batch_size": 4}},
    ),
    Case(
        "batch that is not the product",
        "spec.training.global_batch_size",
        "NotDivisible",
        "must be their product",
        "",
        {
            "spec__training": {
                "global_batch_size": 64,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
            },
            "spec__nodes": 2,
            "spec__processesPerNode": 2,
        },
    ),
    Case(
        "prefetch without workers",
        "spec.training.dataloader_prefetch_factor",
        "NeedsOther",
        "requires dataloader_num_workers",
        "",
        {"spec__training": {"dataloader_prefetch_factor": 2}},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_job_names_field_value_rule_and_cure(case: Case) -> None:
    problems = problems_of(job(**case.set))
    found = [one for one in problems if one.field == case.field]
    assert [one.code for one in found] == [case.code], problems
    assert case.says in found[0].message
    assert case.cure in found[0].cure
    assert found[0].cure

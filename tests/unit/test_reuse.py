"""The fingerprint of prepared data: the same for the same job in every version, another where the data would differ."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune_api.messages import Task
from finetune_api.v1alpha1 import FineTuneJob, parse_job
from finetune_api.v1alpha1 import field_facts as facts
from finetune_api.v1alpha1.field_facts import SHAPES_DATA
from finetune_api.v1alpha1.markers import ShapesData
from finetune_api.v1alpha1.tree import spec_fields
from finetune_trainer.prepare import reuse
from finetune_trainer.prepare.job_inputs import Inputs
from finetune_trainer.prepare.models import BaseModel
from finetune_trainer.prepare.plan.planner import length_limit
from finetune_trainer.prepare.tokens import tokenize
from tests.unit.test_api_parse import job

EVERYTHING = {
    "spec__problemType": "regression",
    "spec__task": "classification",
    "spec__model": {"name": "org/model", "newTokens": ["<|tool|>"]},
    "spec__dataset": {
        "mix": [{"uri": "s3://b/a.tsv", "weight": 0.5}],
        "eval": {"split": 0.1},
        "format": "tsv",
        "delimiter": "|",
        "columns": {"text": "body"},
        "maxLength": 96,
        "packing": False,
        "lossOn": "all",
        "onInvalid": "Skip",
        "maxInvalidPercent": 5,
    },
    "spec__training": {"seed": 7},
}
TEXT = {
    "spec__dataset": {
        "train": "s3://b/a.txt",
        "documents": "paragraph",
        "format": "text",
        "chatTemplate": "chatml",
        "packing": True,
    }
}
SMALL: dict[str, Any] = {"spec__dataset": {"train": "s3://b/a.jsonl"}}


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of the code makes new fingerprints on purpose: here it is the one of the hashes below."""
    monkeypatch.setattr(reuse, "READING", 2)
    monkeypatch.setattr(tokenize, "VERSION", 4)


def _key(changes: dict[str, Any], task: Task = Task.CAUSAL_LM, template: str | None = None) -> str:
    return _key_of(parse_job(job(**changes)), task, template)


def _inputs(task: Task, sources: str, template: str | None, limit: int) -> Inputs:
    setting, fingerprint = SimpleNamespace(limit=limit, prompts=("", "")), SimpleNamespace(fingerprint=sources)
    return cast(Inputs, SimpleNamespace(task=task, sources=fingerprint, template=template, setting=setting))


def _base(commit: str) -> BaseModel:
    return cast(BaseModel, SimpleNamespace(facts=SimpleNamespace(commit=commit)))


def _key_of(parsed: FineTuneJob, task: Task = Task.CAUSAL_LM, template: str | None = None) -> str:
    return reuse.index_key(parsed, _inputs(task, "files", template, length_limit(parsed, task, 2048)), _base("c0ffee"))


def test_data_that_an_older_version_prepared_is_found_again() -> None:
    """Hashes that the first version made: a bucket holds data under them."""
    keys = (_key(SMALL), _key(EVERYTHING, Task.CLASSIFICATION), _key(TEXT, template="{{ messages }}"))
    assert keys == (
        "datasets/index/c31b2333b3d349792ff12b1370b44a9fe34a5166043ac831dcc2b3bd698cd4e9.json",
        "datasets/index/d7ddf4938aa7fddc1525c059ec9890c61bb1757adca8d56e71422b007b14c7db.json",
        "datasets/index/949b270838718fc15bef79ae088a8bb5f3e3d141b43ad748aa72b5ce45335b6b.json",
    )


def _changed(parsed: FineTuneJob, path: tuple[str, ...]) -> FineTuneJob:
    """The job with a value at a path that no job has."""
    if len(path) == 1:
        [name] = [name for name, info in type(parsed).model_fields.items() if (info.alias or name) == path[0]]
        return parsed.model_copy(update={name: "another"})
    [name] = [name for name, info in type(parsed).model_fields.items() if (info.alias or name) == path[0]]
    below = getattr(parsed, name)
    return parsed.model_copy(update={name: _changed(below, path[1:])})


def _reachable(parsed: Any, path: tuple[str, ...]) -> bool:
    for key in path[:-1]:
        names = [name for name, info in type(parsed).model_fields.items() if (info.alias or name) == key]
        parsed = getattr(parsed, names[0])
        if not hasattr(type(parsed), "model_fields"):
            return False
    return True


WHOLE = parse_job(job(**EVERYTHING))
LEAVES = [branch for branch in spec_fields() if branch.is_leaf and _reachable(WHOLE, branch.path)]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("path", [one.path for one in LEAVES if one.dotted not in SHAPES_DATA], ids=".".join)
def test_a_field_that_keeps_the_data_is_not_in_the_fingerprint(path: tuple[str, ...]) -> None:
    assert _key_of(_changed(WHOLE, path)) == _key_of(WHOLE)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    "path",
    [one.path for one in LEAVES if one.dotted in SHAPES_DATA and not SHAPES_DATA[one.dotted].through],
    ids=".".join,
)
def test_a_field_that_shapes_the_data_is_in_the_fingerprint(path: tuple[str, ...]) -> None:
    assert _key_of(_changed(WHOLE, path)) != _key_of(WHOLE)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec__dataset": {"train": "s3://b/a.jsonl", "maxLength": 64}},
        {"spec__dataset": {"train": "s3://b/a.jsonl", "packing": True}},
        {"spec__dataset": {"train": "s3://b/a.jsonl", "lossOn": "all"}},
        {"spec__dataset": {"train": "s3://b/a.jsonl", "chatTemplate": "chatml"}},
        {"spec__dataset": {"train": "s3://b/a.jsonl", "onInvalid": "Skip"}},
        {"spec__dataset": {"train": "s3://b/a.jsonl", "eval": {"split": 0.2}}},
        {"spec__task": "preference", "spec__preference": {"loss_type": "kto"}},
    ],
    ids=str,
)
def test_a_field_that_shapes_the_data_through_another_value_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert _key(changes) != _key(SMALL)


def test_every_value_that_prepare_derives_stands_in_the_fingerprint() -> None:
    """A field that shapes the data "through" a value that the fingerprint lacks would let stale data be reused."""
    derived = reuse._derived(WHOLE, _inputs(Task.CAUSAL_LM, "", None, 0), _base(""))
    assert {shapes.through for shapes in SHAPES_DATA.values() if shapes.through} == derived.keys()


def test_a_new_field_enters_the_fingerprint_only_where_a_job_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a new field: one that exists, which the fingerprint takes under its path."""
    shapes = {**facts.SHAPES_DATA, "spec.gpuType": ShapesData(), "spec.dataset.mix.weight": ShapesData()}
    monkeypatch.setattr(reuse, "SHAPES_DATA", shapes)
    assert _key(SMALL) == "datasets/index/c31b2333b3d349792ff12b1370b44a9fe34a5166043ac831dcc2b3bd698cd4e9.json"
    assert _key({**SMALL, "spec__gpuType": "H100"}) != _key(SMALL)
    weighted = {"spec__dataset": {"mix": [{"uri": "s3://b/a.tsv"}, {"uri": "s3://b/b.tsv", "weight": 2.0}]}}
    plain = {"spec__dataset": {"mix": [{"uri": "s3://b/a.tsv"}, {"uri": "s3://b/b.tsv"}]}}
    assert _key(weighted) != _key(plain)

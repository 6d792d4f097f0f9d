"""No field of the API is silently ignored: each works today or is refused as not supported yet (test_api_facts)."""

import json
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.v1alpha1 import FineTuneJob, parse_job, unsupported
from finetune_api.v1alpha1.field_facts import LATER
from finetune_api.v1alpha1.supported import unsupported_in
from finetune_api.v1alpha1.tree import spec_fields
from finetune_api.yaml12 import dump, load

FIELDS = spec_fields()


def _given(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


@pytest.mark.parametrize("path", sorted(LATER))
def test_what_is_not_there_yet_is_refused_with_a_cure(path: str) -> None:
    later = LATER[path]
    value: Any = later.values[0] if later.values else {"any": "value"}
    problems = [one for one in unsupported_in(_given(path, value)) if one.field == path]
    assert [one.code for one in problems] == ["NotSupportedYet"]
    assert "is not supported yet" in problems[0].message
    assert problems[0].cure


@pytest.mark.parametrize("path", sorted(LATER))
def test_asking_for_what_happens_anyway_is_accepted(path: str) -> None:
    branch = next(one for one in FIELDS if one.dotted == path)
    default = branch.info.get_default(call_default_factory=True) if not branch.info.is_required() else None
    fine = [*LATER[path].harmless, None, {}, *([default] if isinstance(default, (bool, int)) else [])]
    for value in fine:
        assert unsupported_in(_given(path, value)) == []


def test_a_later_field_below_a_later_object_is_found() -> None:
    assert [one.field for one in unsupported_in({"spec": {"resumeFrom": {"uri": "s3://b/p"}}})] == ["spec.resumeFrom"]


def test_a_parsed_job_is_looked_at_too() -> None:
    text = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: {uri: file://m, trustRemoteCode: true}
  dataset: {train: hf://squad, eval: {split: 0.1}}
  method: {type: qlora}
  recovery: {onOutOfMemory: ShrinkBatch, maxRestarts: 3}
  storage: {uri: file://s}
"""
    job = FineTuneJob.model_validate_json(json.dumps(load(text, "t")[0]))
    assert {one.field for one in unsupported(job)} == {
        "spec.model.trustRemoteCode",
        "spec.recovery.onOutOfMemory",
    }


def test_everything_that_works_today_passes_together() -> None:
    text = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a, namespace: team, labels: {a: b}}
spec:
  task: classification
  model: {name: org/model, revision: main}
  dataset:
    train: s3://data/train.csv
    eval: s3://data/eval.csv
    format: csv
    columns: {text: body, label: category}
    maxLength: 96
    lossOn: all
    onInvalid: Skip
    maxInvalidPercent: 5
  method:
    type: lora
    lora: {r: 8, lora_alpha: 16, lora_dropout: 0.1, target_modules: all-linear, modules_to_save: [pooler],
           use_rslora: true, bias: none}
  training: {learning_rate: 2e-4, num_train_epochs: 2, eval_steps: 10, seed: 1, optim: adamw_torch}
  deepspeed: {stage: 2}
  nodes: 2
  processesPerNode: 1
  resourcesPerNode: {limits: {cpu: 1, memory: 2Gi}, requests: {cpu: 500m}}
  image: localhost/trainer:1
  storage:
    uri: s3://b/p
    endpoint: http://127.0.0.1:7070
    region: x
    credentialsSecretRef: {name: a}
    caSecretRef: {name: b}
  checkpoint: {everySteps: 10, keepLast: 2}
  recovery: {maxRestarts: 3, onOutOfMemory: Fail, onDivergence: Fail}
"""
    data, _ = load(text, "t")
    assert parse_job(data).spec.checkpoint.every_steps == 10
    assert load(dump(data), "again")[0] == data


@pytest.mark.parametrize(
    "dataset",
    [
        "{mix: [{uri: s3://b/a/*.jsonl}, {uri: hf://datasets/a/b@v1/c.parquet, weight: 0.5}]}",
        "{train: https://x.example/a.txt, documents: paragraph}",
        "{train: file:///a, format: pairs, delimiter: ' => '}",
        "{train: file:///a, format: tsv, delimiter: '|', eval: hf://datasets/a/b/test.csv}",
        "{train: s3://a/b, format: arrow}",
    ],
)
def test_data_from_everywhere_in_every_form_is_taken(dataset: str) -> None:
    text = f"""
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: a}}
spec: {{model: {{uri: s3://b/m}}, dataset: {dataset}, method: {{type: lora}}, storage: {{uri: s3://b/p}}}}
"""
    assert parse_job(load(text, "t")[0]).metadata.name == "a"


def test_the_refusal_reaches_the_reader_of_a_job() -> None:
    with pytest.raises(SpecError, match=r"spec.budget.maxGPUHours: is not supported yet: budgets are not enforced"):
        parse_job({"spec": {"budget": {"maxGPUHours": 1}}})

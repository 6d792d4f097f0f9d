"""The CRD in a real API server: what it accepts, fills in, refuses and shows."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.v1alpha1 import MAX_NAME_LENGTH
from tests.cluster.control_plane import Answer, Api

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"
STRICT = "?fieldValidation=Strict"


def minimal(name: str = "minimal") -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "Qwen/Qwen2.5-7B-Instruct"},
            "dataset": {"train": "s3://data/support/train.jsonl", "eval": {"split": 0.05}},
            "method": {"type": "lora"},
            "nodes": 2,
            "resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}},
            "storage": {"uri": "s3://models/team-a", "credentialsSecretRef": {"name": "s3-creds"}},
        },
    }


def changed(job: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value at a dotted path set, or taken out where the value is `...`."""
    job = copy.deepcopy(job)
    *parents, last = path.split("/")
    at = job
    for part in parents:
        at = at.setdefault(part, {})
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return job


def create(api: Api, job: dict[str, Any]) -> Answer:
    return api.call("POST", JOBS + STRICT + "&dryRun=All", job)


@pytest.fixture
def stored(api: Api, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A job of its own for the test, as the server stored it."""
    name = request.node.name.split("[")[0].replace("_", "-")[-MAX_NAME_LENGTH:].strip("-")
    api.call("DELETE", f"{JOBS}/{name}")
    answer = api.call("POST", JOBS + STRICT, minimal(name))
    assert answer.status == 201, answer.message
    return answer.body


def replace(api: Api, job: dict[str, Any]) -> Answer:
    """Writes a job over the newest stored one."""
    path = f"{JOBS}/{job['metadata']['name']}"
    version = api.call("GET", path).body["metadata"]["resourceVersion"]
    return api.call("PUT", path + STRICT, changed(job, "metadata/resourceVersion", version))


def test_the_crd_is_established_under_its_names(api: Api) -> None:
    served = api.call("GET", "/apis/finetune.dev/v1alpha1").body["resources"]
    by_name = {one["name"]: one for one in served}
    assert by_name["finetunejobs"]["shortNames"] == ["ftj"]
    assert by_name["finetunejobs/status"]["kind"] == "FineTuneJob"


def test_the_minimal_job_is_accepted_and_gets_its_defaults(stored: dict[str, Any]) -> None:
    spec = stored["spec"]
    assert (spec["suspend"], spec["dryRun"], spec["spares"]) == (False, False, 0)
    assert spec["model"]["trustRemoteCode"] is False
    assert (spec["dataset"]["onInvalid"], spec["dataset"]["maxInvalidPercent"]) == ("Fail", 1)
    assert spec["dataset"]["eval"] == {"split": 0.05}
    assert "training" not in spec, "what is omitted is planned, not filled in"


@pytest.mark.parametrize(
    "dataset",
    [
        {"mix": [{"uri": "s3://b/a/*.jsonl"}, {"uri": "hf://datasets/a/b/c.parquet", "weight": 0.5}]},
        {"train": "https://x.example/a.txt", "format": "pairs", "delimiter": " => "},
        {"train": "file:///a", "format": "tsv", "delimiter": "|"},
        {"train": "file:///a", "documents": "paragraph"},
    ],
)
def test_data_of_many_kinds_is_accepted(api: Api, dataset: dict[str, Any]) -> None:
    answer = create(api, changed(minimal(), "spec/dataset", dataset))
    assert answer.status == 201, answer.message


def test_a_learning_rate_in_yaml_is_stored_as_a_number(api: Api) -> None:
    text = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: from-yaml}
spec:
  model: {uri: s3://models/base}
  dataset: {train: s3://data/train.jsonl, eval: s3://data/eval.jsonl}
  method: {type: lora, lora: {r: 8, target_modules: [q_proj, v_proj]}}
  training: {learning_rate: 2e-4}
  storage: {uri: s3://models/team-a}
"""
    apply = "application/apply-patch+yaml"
    answer = api.call("PATCH", f"{JOBS}/from-yaml?fieldManager=test", text, Content_Type=apply)
    assert answer.status == 201, answer.message
    assert answer.body["spec"]["training"]["learning_rate"] == 0.0002
    assert answer.body["spec"]["dataset"]["eval"] == "s3://data/eval.jsonl"


@dataclass(frozen=True)
class Refusal:
    about: str
    says: str
    set: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.about


TRAIN = {"train": "s3://data/train.csv"}
CSV = {"format": "csv"}
REFUSALS = [
    Refusal("no model source", "must have exactly one of name, uri and persistentVolumeClaim", {"spec/model": {}}),
    Refusal("two model sources", "must have exactly one of name, uri", {"spec/model/uri": "s3://models/base"}),
    Refusal(
        "revision without name",
        "revision requires name",
        {"spec/model": {"uri": "s3://models/base", "revision": "main"}},
    ),
    Refusal(
        "token without name",
        "tokenSecretRef requires name",
        {"spec/model": {"uri": "s3://m/base", "tokenSecretRef": {"name": "a", "key": "b"}}},
    ),
    Refusal(
        "adapter settings for full",
        "lora is given, but type is full",
        {"spec/method": {"type": "full", "lora": {"r": 8}}},
    ),
    Refusal(
        "delimiter of jsonl",
        "delimiter requires format pairs, or format csv or tsv",
        {"spec/dataset/format": "jsonl", "spec/dataset/delimiter": ";"},
    ),
    Refusal(
        "a long delimiter of csv",
        "delimiter requires format pairs, or format csv or tsv and one character",
        {"spec/dataset/format": "csv", "spec/dataset/delimiter": "||"},
    ),
    Refusal(
        "documents of csv", "documents requires format text", {"spec/dataset": {**TRAIN, **CSV, "documents": "line"}}
    ),
    Refusal("no training data", "must have exactly one of train and mix", {"spec/dataset": {}}),
    Refusal("training data twice", "must have exactly one of train", {"spec/dataset/mix": [{"uri": "s3://b/x"}]}),
    Refusal("both precisions", "fp16 and bf16 are both true", {"spec/training": {"fp16": True, "bf16": True}}),
    Refusal(
        "two answers to one question",
        "gradient_checkpointing and activation_checkpointing are two names of one setting",
        {"spec/training": {"gradient_checkpointing": True, "activation_checkpointing": False}},
    ),
    Refusal(
        "prefetch without workers",
        "dataloader_prefetch_factor requires",
        {"spec/training": {"dataloader_prefetch_factor": 2}},
    ),
    Refusal(
        "pattern without layers",
        "layers_pattern requires",
        {"spec/method": {"type": "lora", "lora": {"layers_pattern": "layers"}}},
    ),
    Refusal("config and stage", "config is used without changes", {"spec/deepspeed": {"config": {"a": 1}, "stage": 2}}),
    Refusal(
        "medium and class",
        "medium and storageClassName exclude each other",
        {"spec/scratch": {"medium": "Memory", "storageClassName": "fast"}},
    ),
    Refusal(
        "global batch that does not divide",
        "training.global_batch_size must be a multiple of",
        {"spec/training": {"global_batch_size": 10, "per_device_train_batch_size": 4}},
    ),
    Refusal(
        "global batch against the world",
        "training.global_batch_size must be a multiple of",
        {"spec/training": {"global_batch_size": 12}, "spec/processesPerNode": 8},
    ),
    Refusal("a name too long", "metadata.name must have at most 47 characters", {"metadata/name": "a" * 48}),
    Refusal("a name with a dot", "metadata.name must have at most 47 characters", {"metadata/name": "a.b"}),
    Refusal("learning rate 0", "should be greater than 0", {"spec/training": {"learning_rate": 0}}),
    Refusal("a number in quotes", "must be of type number", {"spec/training": {"learning_rate": "2e-4"}}),
    Refusal("an unknown method", 'supported values: "lora", "qlora", "full"', {"spec/method/type": "prefix"}),
    Refusal("another scheme", "should match '^((s3|hf|file)://", {"spec/dataset/train": "ftp://data/train.csv"}),
    Refusal("another scheme for eval", "should match '^((s3|hf|file)://", {"spec/dataset/eval": "ftp://x"}),
    Refusal("eval without split", "spec.dataset.eval.split: Required value", {"spec/dataset/eval": {"part": 0.1}}),
    Refusal("eval split of 2", "should be less than 1", {"spec/dataset/eval": {"split": 2}}),
    Refusal("eval as a list", "must have at most 0 items", {"spec/dataset/eval": ["s3://a/b"]}),
    Refusal(
        "a warm-up as long as the run",
        "warmup_steps must be less than max_steps",
        {"spec/training": {"warmup_steps": 100, "max_steps": 100}},
    ),
    Refusal(
        "parameters offloaded that are not sharded",
        "offload.parameters requires stage 3",
        {"spec/deepspeed": {"stage": 2, "offload": {"parameters": "cpu"}}},
    ),
    Refusal("no nodes", "should be greater than or equal to 1", {"spec/nodes": 0}),
    Refusal("no quantity", "should match", {"spec/resourcesPerNode": {"limits": {"memory": "64 GB"}}}),
    Refusal("no storage", "spec.storage: Required value", {"spec/storage": ...}),
    Refusal("an unknown field", 'unknown field "spec.trainin"', {"spec/trainin": {}}),
    Refusal("an unknown argument", 'unknown field "spec.training.lr"', {"spec/training": {"lr": 0.1}}),
    Refusal("an owned argument", 'unknown field "spec.training.output_dir"', {"spec/training": {"output_dir": "x"}}),
]


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_a_broken_job_is_refused_with_a_sentence(api: Api, case: Refusal) -> None:
    job = minimal()
    for path, value in case.set.items():
        job = changed(job, path, value)
    answer = create(api, job)
    assert answer.status in (400, 422)
    assert case.says in answer.message


@pytest.mark.parametrize(
    "path",
    ["spec/training", "spec/method/lora", "spec/deepspeed", "spec/checkpoint", "spec/scratch", "spec/podTemplate"],
)
def test_an_empty_object_is_accepted_wherever_all_of_it_is_optional(api: Api, path: str) -> None:
    answer = create(api, changed(minimal(), path, {}))
    assert answer.status == 201, answer.message


IMMUTABLE = [
    ("spec/model/name", "other/model", "spec.model cannot be changed"),
    ("spec/dataset/train", "s3://data/other.jsonl", "spec.dataset cannot be changed"),
    ("spec/dataset/eval", "s3://data/eval.jsonl", "spec.dataset cannot be changed"),
    ("spec/dataset/eval", {"split": 0.1}, "spec.dataset cannot be changed"),
    ("spec/method/lora", {"target_modules": "all-linear"}, "spec.method cannot be changed"),
    ("spec/training", {"learning_rate": 0.1}, "spec.training cannot be changed"),
    ("spec/storage/uri", "s3://models/team-b", "spec.storage cannot be changed"),
    ("spec/evaluation", {"generate": 7}, "spec.evaluation.generate cannot be changed"),
    ("spec/queueName", "team-b", "spec.queueName cannot be changed"),
    ("spec/resourcesPerNode", ..., "spec.resourcesPerNode cannot be changed"),
    ("spec/dryRun", True, "spec.dryRun can be changed from true to false only"),
    ("spec/nodes", 3, "spec.nodes can be changed only while the job is suspended"),
    ("spec/spares", 1, "spec.spares can be changed only while the job is suspended"),
]


@pytest.mark.parametrize(("path", "value", "says"), IMMUTABLE, ids=lambda part: str(part)[:40])
def test_what_makes_the_job_cannot_be_changed(
    api: Api, stored: dict[str, Any], path: str, value: Any, says: str
) -> None:
    answer = replace(api, changed(stored, path, value))
    assert answer.status == 422
    assert says in answer.message


def test_policies_can_be_changed_at_any_time(api: Api, stored: dict[str, Any]) -> None:
    for path, value in (
        ("spec/recovery", {"maxRestarts": 3}),
        ("spec/budget", {"gpuHourPrice": "2.50"}),
        ("spec/export", {"attempt": 2, "resources": {"requests": {"memory": "64Gi"}}, "tolerations": []}),
        ("spec/export", {"attempt": 2, "forms": ["adapter", "merged"], "dtype": "bfloat16"}),
        ("spec/evaluation/suites", [{"name": "own", "tasks": ["arc_easy"], "limit": 5}]),
        ("spec/ttlSecondsAfterFinished", 600),
        ("spec/suspend", True),
    ):
        answer = replace(api, changed(stored, path, value))
        assert answer.status == 200, (path, answer.message)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("spec/budget", {"maxGPUHours": 10}, "maxGPUHours is not supported yet: budgets are not enforced"),
        ("spec/recovery", {"hangTimeoutSeconds": 60}, "hangTimeoutSeconds is not supported yet"),
        ("spec/recovery", {"onOutOfMemory": "ShrinkBatch"}, "onOutOfMemory: ShrinkBatch is not supported yet"),
        ("spec/recovery", {"onDivergence": "RollBack"}, "onDivergence: RollBack is not supported yet"),
        ("spec/export", {"priorityClassName": "high"}, "spec.export.priorityClassName cannot be changed"),
    ],
)
def test_a_policy_that_is_not_supported_is_refused_when_it_is_patched(
    api: Api, stored: dict[str, Any], path: str, value: Any, says: str
) -> None:
    answer = replace(api, changed(stored, path, value))
    assert answer.status == 422
    assert says in answer.message


def test_nodes_can_be_changed_while_suspended(api: Api, stored: dict[str, Any]) -> None:
    suspended = replace(api, changed(stored, "spec/suspend", True))
    assert suspended.status == 200, suspended.message
    resumed = replace(api, changed(changed(suspended.body, "spec/nodes", 4), "spec/suspend", False))
    assert resumed.status == 200, resumed.message
    assert resumed.body["spec"]["nodes"] == 4


STATUS = {
    "phase": "Running",
    "restarts": 2,
    "lastCheckpoint": "step-00000400",
    "reason": "Training",
    "observedGeneration": 1,
    "plan": {"model": "Qwen2.5-7B-Instruct"},
    "progress": {
        "step": 420,
        "loss": 1.234,
        "percentText": "42%",
        "stepText": "420/1000",
        "lossText": "1.234",
        "etaText": "2h10m",
        "evalText": "eval_loss 1.301",
        "speedText": "12.4k",
    },
    "conditions": [
        {
            "type": "Running",
            "status": "True",
            "reason": "Training",
            "message": "all nodes train",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


def apply_status(api: Api, job: dict[str, Any], status: dict[str, Any]) -> Answer:
    """The status as the operator writes it: whole, by server-side apply."""
    identity = {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": {"name": job["metadata"]["name"]}}
    return api.call(
        "PATCH",
        f"{JOBS}/{job['metadata']['name']}/status?fieldManager=finetune-operator&force=true",
        {**identity, "status": status},
        Content_Type="application/apply-patch+yaml",
    )


def test_the_status_is_applied_and_the_spec_stays(api: Api, stored: dict[str, Any]) -> None:
    answer = apply_status(api, stored, STATUS)
    assert answer.status == 200, answer.message
    assert answer.body["status"] == {**STATUS, "checkpointCount": 0}
    assert answer.body["spec"] == stored["spec"]
    assert answer.body["metadata"]["generation"] == stored["metadata"]["generation"]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"phase": "Working"}, "status.phase: Unsupported value"),
        ({"conditions": [*STATUS["conditions"], *STATUS["conditions"]]}, "duplicate"),
        ({"checkpoints": [{"step": step, "uri": "s3://x"} for step in range(11)]}, "must have at most 10 items"),
    ],
    ids=["an unknown phase", "a condition twice", "too many checkpoints"],
)
def test_a_wrong_status_is_refused(api: Api, stored: dict[str, Any], status: dict[str, Any], says: str) -> None:
    answer = apply_status(api, stored, status)
    assert answer.status >= 400
    assert says in answer.message


def test_the_printer_columns_show_the_run(api: Api, stored: dict[str, Any]) -> None:
    [running] = STATUS["conditions"]
    refused = {**running, "type": "Approved", "status": "False", "reason": "GatesFailed"}
    suites = [{"name": "own", "values": {"arc_easy.acc": 0.5}}]
    answer = apply_status(api, stored, {**STATUS, "conditions": [running, refused], "suites": suites})
    assert answer.status == 200, answer.message
    table = api.call(
        "GET",
        f"{JOBS}/{stored['metadata']['name']}",
        Accept="application/json;as=Table;v=v1;g=meta.k8s.io",
    ).body
    names = [column["name"] for column in table["columnDefinitions"]]
    wide = [column["name"] for column in table["columnDefinitions"] if column.get("priority")]
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert names[:9] == ["Name", "Phase", "Progress", "Step", "Loss", "ETA", "Nodes", "Restarts", "Age"]
    assert wide == ["Model", "Method", "Eval", "Tokens/s", "Checkpoint", "Approved", "Reason"]
    del cells["Name"], cells["Age"]
    assert cells == {
        "Phase": "Running",
        "Progress": "42%",
        "Step": "420/1000",
        "Loss": "1.234",
        "ETA": "2h10m",
        "Nodes": 2,
        "Restarts": 2,
        "Model": "Qwen2.5-7B-Instruct",
        "Method": "lora",
        "Eval": "eval_loss 1.301",
        "Tokens/s": "12.4k",
        "Checkpoint": "step-00000400",
        "Approved": "False",
        "Reason": "Training",
    }

"""One running job, and every field that may be changed with every kind of value: each patch takes effect or is refused
with a sentence, and none hurts the job."""

import json
from typing import Any

import pytest

from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator.policy.conditions import is_true
from tests.cluster.installation import Inputs
from tests.cluster.jobs import JobHandle, job
from tests.cluster.local.cluster import Cluster, ClusterError

MORE = {"requests": {"cpu": "300m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}}
TAINT = [{"key": "spot", "operator": "Exists"}]

TAKEN: list[dict[str, Any]] = [
    {"suspend": False},
    {"dryRun": False},
    {"recovery": {"maxRestarts": 0}},
    {"recovery": {"maxRestarts": 100_000, "onOutOfMemory": "Fail", "onDivergence": "Fail"}},
    {"recovery": {"maxRestarts": None, "onOutOfMemory": None, "onDivergence": None}},
    {"recovery": None},
    {"budget": {"gpuHourPrice": "2.50"}},
    {"budget": {"gpuHourPrice": "0"}},
    {"budget": None},
    {"export": {"resources": MORE}},
    {"export": {"nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": TAINT}},
    {"export": {"nodeSelector": None, "tolerations": []}},
    {"export": {"attempt": 1}},
    {"export": {"merge": True}},
    {"export": {"merge": None, "forms": ["adapter", "merged"], "dtype": "bfloat16"}},
    {"export": {"forms": [], "dtype": None}},
    {"ttlSecondsAfterFinished": 0},
    {"ttlSecondsAfterFinished": 2_147_483_647},
    {"ttlSecondsAfterFinished": None},
    {"export": {"attempt": 2}},
]
LATER = "is not supported yet"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"suspend": "yes"}, "spec.suspend"),
    ({"dryRun": True}, "dryRun"),
    ({"recovery": {"maxRestarts": -1}}, "spec.recovery.maxRestarts"),
    ({"recovery": {"maxRestarts": 100_001}}, "spec.recovery.maxRestarts"),
    ({"recovery": {"hangTimeoutSeconds": 60}}, LATER),
    ({"recovery": {"onOutOfMemory": "ShrinkBatch"}}, LATER),
    ({"recovery": {"onOutOfMemory": "Pray"}}, "spec.recovery.onOutOfMemory"),
    ({"recovery": {"onDivergence": "RollBack"}}, LATER),
    ({"budget": {"maxGPUHours": 10}}, LATER),
    ({"budget": {"gpuHourPrice": "dear"}}, "spec.budget.gpuHourPrice"),
    ({"budget": {"gpuHourPrice": 2.5}}, "spec.budget.gpuHourPrice"),
    ({"export": {"forms": ["onnx"]}}, "spec.export.forms"),
    ({"export": {"forms": ["merged"], "merge": True}}, "forms excludes merge"),
    ({"export": {"dtype": "int3"}}, "spec.export.dtype"),
    ({"export": {"serveTest": {"agreement": 2}}}, "spec.export.serveTest.agreement"),
    ({"export": {"priorityClassName": "high"}}, "priorityClassName"),
    ({"export": {"attempt": 0}}, "spec.export.attempt"),
    ({"export": {"resources": {"limits": {"memory": "much"}}}}, "spec.export.resources.limits.memory"),
    ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished"),
    ({"nodes": 2}, "spec.nodes"),
    ({"spares": 1}, "spec.spares"),
    ({"task": "classification"}, "spec.task cannot be changed"),
]


def refusal(handle: JobHandle, spec: dict[str, Any]) -> str:
    """The server's sentence to a patch."""
    with pytest.raises(ClusterError) as refused:
        handle.kubectl("patch", "ftj", handle.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")
    return str(refused.value)


def looked_at(handle: JobHandle) -> None:
    """Until the operator has seen the spec as it is, and finds nothing wrong with it."""
    wanted = handle.object["metadata"]["generation"]
    status = handle.wait("a look", lambda status: status if status.observed_generation == wanted else None, 60)
    assert not is_true(status, ConditionType.DEGRADED), handle.story()


def test_every_patch_of_a_running_job_takes_effect_or_is_refused(cluster: Cluster, team: str, inputs: Inputs) -> None:
    endless = {"max_steps": 100_000, "global_batch_size": 4, "learning_rate": 0.001}
    handle = job(cluster, team, "patched", model=inputs.llama, train=inputs.texts, nodes=1, training=endless)
    handle.apply().wait_step(10)
    [pod] = handle.training_pods().values()
    for spec in TAKEN:
        handle.patch(**spec)
        looked_at(handle)
    for spec, sentence in REFUSED:
        assert sentence in refusal(handle, spec), spec
    status = handle.status
    assert (status.phase, status.attempt, status.restarts) == (Phase.RUNNING, 1, 0)
    assert [one["metadata"]["uid"] for one in handle.training_pods().values()] == [pod["metadata"]["uid"]]
    assert handle.object["spec"]["export"]["attempt"] == 2

    # suspended: other numbers of pods may be asked for, and what is not supported of them is told and begins nothing
    handle.patch(suspend=True)
    handle.wait("Suspended", lambda status: status.reason == "Suspended")
    handle.patch(nodes=2, spares=1, suspend=False)
    told = handle.wait("the sentence", lambda status: status if status.reason == "NotSupportedYet" else None, 60)
    assert told.phase is Phase.SUSPENDED
    assert "spec.nodes is 2, but the run was planned for 1" in " ".join(one.message for one in told.conditions)
    handle.patch(suspend=True)
    handle.patch(nodes=1, suspend=False)
    status = handle.wait_phase(Phase.RUNNING)
    assert status.attempt == 2
    assert len(handle.training_pods()) == 2, "with a spare now"

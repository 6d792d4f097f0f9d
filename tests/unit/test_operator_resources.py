"""The objects the operator makes: the semantics of the Jobs, restricted pods, and what a job may add to them."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.contract import JOB_ANNOTATION
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.machines import NodeGpu
from finetune_operator.objects.resources import export_job, prepare_job, token, token_secret, train_job
from tests.unit.operator_worlds import SETTINGS, UID, world

Object = dict[str, Any]


def made(**spec: Any) -> AcceptedJob:
    seen = world(spec_=spec)
    assert seen.job
    return seen.job


def train(attempt: int = 1, **spec: Any) -> Object:
    return train_job(made(**spec), SETTINGS, attempt, grace_seconds=75, scratch_bytes=2 << 30)


def pod_spec(job: Object) -> Object:
    spec: Object = job["spec"]["template"]["spec"]
    return spec


def container(job: Object) -> Object:
    [found] = pod_spec(job)["containers"]
    return dict(found)


def env(job: Object) -> dict[str, Any]:
    variables = container(job)["env"]
    assert len({one["name"] for one in variables}) == len(variables), "no name twice"
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in variables}


def test_the_train_job_never_gives_up_on_an_index_by_itself() -> None:
    spec = train(spares=1)["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (3, 3, "Indexed")
    assert spec["backoffLimitPerIndex"] == 2**31 - 1
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
    assert rules[0]["onExitCodes"]["values"] == [64, 65, 77, 78, 79]
    assert rules[1]["onExitCodes"]["values"] == [143]
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert "backoffLimit" not in spec
    assert "suspend" not in spec


def test_children_belong_to_the_job_and_carry_its_labels() -> None:
    for child in (train(3), prepare_job(made(), SETTINGS), export_job(made(), SETTINGS)):
        [reference] = child["metadata"]["ownerReferences"]
        assert (reference["kind"], reference["uid"], reference["controller"]) == ("FineTuneJob", UID, True)
        labels = child["metadata"]["labels"]
        assert labels.items() <= child["spec"]["template"]["metadata"]["labels"].items()
        assert labels["finetune.dev/job-uid"] == UID
    assert train(3)["metadata"]["name"] == "a-train-3"
    assert train(3)["metadata"]["labels"]["finetune.dev/attempt"] == "3"


def test_the_job_travels_with_the_pod_as_the_user_wrote_it() -> None:
    written = json.loads(
        train(training={"learning_rate": 2e-4})["spec"]["template"]["metadata"]["annotations"][JOB_ANNOTATION]
    )
    assert written["metadata"] == {"name": "a", "namespace": "team", "uid": UID}
    assert written["spec"]["training"] == {"learning_rate": 2e-4}


@pytest.mark.parametrize("stage", ["prepare", "train", "export"])
def test_every_pod_is_restricted_and_holds_no_token(stage: str) -> None:
    job = train() if stage == "train" else {"prepare": prepare_job, "export": export_job}[stage](made(), SETTINGS)
    spec = pod_spec(job)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container(job)["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {one["mountPath"] for one in container(job)["volumeMounts"]}
    assert {"/scratch", "/tmp", "/dev/shm", "/etc/finetune"} <= mounts
    assert {one["name"] for one in container(job)["volumeMounts"]} <= {one["name"] for one in spec["volumes"]}
    assert container(job)["command"] == ["python", "-m", f"finetune_trainer.{'agent' if stage == 'train' else stage}"]


def test_only_training_pods_get_the_gangs_token() -> None:
    secret = token_secret(made().owner, SETTINGS)
    name = secret["metadata"]["name"]
    assert env(train())["FINETUNE_TOKEN"] == {"secretKeyRef": {"name": name, "key": "token"}}
    rotated = replace(SETTINGS, token_key=b"another key, that is new")
    assert token_secret(made().owner, rotated)["metadata"]["name"] != name, "the next attempt gets another Secret"
    assert "FINETUNE_TOKEN" not in env(prepare_job(made(), SETTINGS))
    assert secret["immutable"] is True
    assert token(b"one key", UID) != token(b"another", UID) != token(b"another", "uid")


def test_storage_comes_by_environment_and_secret() -> None:
    storage = {
        "uri": "s3://b/p",
        "endpoint": "https://s3.example.org",
        "region": "eu-1",
        "credentialsSecretRef": {"name": "keys"},
        "caSecretRef": {"name": "ca"},
    }
    job = train(storage=storage)
    found = env(job)
    assert (found["AWS_ENDPOINT_URL_S3"], found["AWS_REGION"]) == ("https://s3.example.org", "eu-1")
    assert found["AWS_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "keys", "key": "AWS_ACCESS_KEY_ID"}}
    assert found["AWS_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True
    assert found["AWS_CA_BUNDLE"] == "/etc/finetune-ca/ca.crt"
    assert "finetune-ca" in {one["name"] for one in pod_spec(job)["volumes"]}
    assert "AWS_ACCESS_KEY_ID" not in env(train(storage={"uri": "s3://b/p"})), "web identity brings its own"


DATA_STORAGE = {
    "endpoint": "https://data.example.org",
    "region": "eu-2",
    "credentialsSecretRef": {"name": "readers"},
    "caSecretRef": {"name": "data-ca"},
}


def test_the_datas_own_storage_is_known_to_prepare_alone() -> None:
    job = {"dataset": {"train": "s3://d/x.jsonl", "storage": DATA_STORAGE}}
    prepare = prepare_job(made(**job), SETTINGS)
    found = env(prepare)
    assert (found["FINETUNE_DATA_ENDPOINT"], found["FINETUNE_DATA_REGION"]) == ("https://data.example.org", "eu-2")
    assert found["FINETUNE_DATA_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "readers", "key": "AWS_ACCESS_KEY_ID"}}
    assert found["FINETUNE_DATA_SECRET_ACCESS_KEY"]["secretKeyRef"]["key"] == "AWS_SECRET_ACCESS_KEY"
    assert found["FINETUNE_DATA_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True
    assert found["FINETUNE_DATA_CA_BUNDLE"] == "/etc/finetune-data-ca/ca.crt"
    assert "/etc/finetune-data-ca" in {one["mountPath"] for one in container(prepare)["volumeMounts"]}
    assert found["AWS_ACCESS_KEY_ID"]["secretKeyRef"]["name"] == "s3", "results go to the job's own storage"
    for other in (train(**job), export_job(made(**job), SETTINGS)):
        assert "readers" not in json.dumps(container(other))
        assert "data-ca" not in json.dumps(pod_spec(other)["volumes"])


def test_the_key_that_signs_reaches_the_export_pod_alone() -> None:
    job = made(export={"signing": {"keySecretRef": {"name": "model-key", "key": "k.pem"}}})
    pod = export_job(job, SETTINGS)["spec"]["template"]["spec"]
    [volume] = [one for one in pod["volumes"] if "secret" in one]
    assert volume["secret"]["secretName"] == "model-key"
    assert volume["secret"]["items"] == [{"key": "k.pem", "path": "key.pem"}]
    [inner] = pod["containers"]
    assert {"name": "FINETUNE_SIGNING_KEY", "value": "/etc/finetune-signing/key.pem"} in inner["env"]
    assert volume["name"] in [one["name"] for one in inner["volumeMounts"] if one.get("readOnly")]
    signing = {"signing": {"keySecretRef": {"name": "model-key", "key": "k.pem"}}}
    for other in (prepare_job(job, SETTINGS), train(export=signing)):
        assert "finetune-signing" not in json.dumps(pod_spec(other))


def test_the_keys_of_pushes_reach_the_export_pod_alone() -> None:
    pushes = [
        {"hub": {"repo": "team/a", "tokenSecretRef": {"name": "hub-writer", "key": "token"}}},
        {"oci": {"reference": "r.example/team/a:v1", "pushSecretRef": {"name": "reg-login"}}},
        {"oci": {"reference": "r.example/team/b:v1", "caSecretRef": {"name": "reg-ca"}}},
        {"storage": {"uri": "s3://other/a", "credentialsSecretRef": {"name": "other-keys"}}},
    ]
    pod = pod_spec(export_job(made(export={"push": pushes}), SETTINGS))
    [inner] = pod["containers"]
    found = {one["name"]: one.get("value") or one["valueFrom"] for one in inner["env"] if "PUSH" in one["name"]}
    assert found["FINETUNE_PUSH_0_TOKEN"] == {"secretKeyRef": {"name": "hub-writer", "key": "token"}}
    assert found["FINETUNE_PUSH_1_DOCKER_CONFIG"] == "/etc/finetune-push-1-login/config.json"
    assert found["FINETUNE_PUSH_2_CA_BUNDLE"] == "/etc/finetune-push-2-ca/ca.crt"
    keys = {"secretKeyRef": {"name": "other-keys", "key": "AWS_ACCESS_KEY_ID"}}
    assert found["FINETUNE_PUSH_3_AWS_ACCESS_KEY_ID"] == keys
    mounted = {one["name"]: one["mountPath"] for one in inner["volumeMounts"]}
    secrets = {one["name"]: one["secret"] for one in pod["volumes"] if "secret" in one}
    assert mounted["finetune-push-1-login"] == "/etc/finetune-push-1-login"
    login = {"secretName": "reg-login", "items": [{"key": ".dockerconfigjson", "path": "config.json"}]}
    assert secrets["finetune-push-1-login"] == login
    assert secrets["finetune-push-2-ca"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    for other in (prepare_job(made(export={"push": pushes}), SETTINGS), train(export={"push": pushes})):
        assert not re.search("PUSH|finetune-push", json.dumps(pod_spec(other)))
    mirrored = replace(SETTINGS, hub_endpoint="https://hub.intern")
    assert env(export_job(made(export={"push": pushes}), mirrored))["HF_ENDPOINT"] == "https://hub.intern"
    assert "HF_ENDPOINT" not in env(export_job(made(export={"push": pushes[1:]}), mirrored))


def test_a_container_that_serves_runs_beside_the_export_without_any_key() -> None:
    test = {"serveTest": {"prompts": ["Hello"], "image": "vllm:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}}
    signing = {"signing": {"keySecretRef": {"name": "model-key", "key": "k.pem"}}}
    pod = pod_spec(export_job(made(export=test | signing), SETTINGS))
    [server], [inner] = pod["initContainers"], pod["containers"]
    assert (server["image"], server["restartPolicy"]) == ("vllm:1", "Always")  # it ends with the export
    assert server["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert [one["name"] for one in server["env"]] == ["HOME", "USER"]
    assert not any("valueFrom" in one for one in server["env"])
    assert "envFrom" not in server
    mounted = {one["name"]: one for one in server["volumeMounts"]}
    assert set(mounted) == {"finetune-serve", "finetune-scratch", "finetune-serve-tmp", "finetune-shm"}
    assert mounted["finetune-scratch"]["readOnly"]
    assert set(mounted) <= {one["name"] for one in pod["volumes"]}
    assert server["securityContext"] == inner["securityContext"]
    assert {"name": "FINETUNE_SERVE_FOLDER", "value": "/serve"} in inner["env"]
    assert {"name": "finetune-serve", "mountPath": "/serve"} in inner["volumeMounts"]
    assert "finetune-signing" in {one["name"] for one in inner["volumeMounts"]}
    assert "runtimeClassName" not in pod
    runtime = {"runtimeClassName": "nvidia"}
    assert pod_spec(export_job(made(export=test, podTemplate=runtime), SETTINGS))["runtimeClassName"] == "nvidia"
    for other in (
        export_job(made(export={"serveTest": {"prompts": ["Hello"]}}, podTemplate=runtime), SETTINGS),
        prepare_job(made(export=test, podTemplate=runtime), SETTINGS),
    ):
        assert "runtimeClassName" not in pod_spec(other)
        assert "initContainers" not in pod_spec(other)
        assert "finetune-serve" not in json.dumps(pod_spec(other)["volumes"])


def suite(name: str, **changes: Any) -> Object:
    return {"name": name, "image": f"team/{name}:1", "command": ["evaluate"], **changes}


def test_each_suite_with_an_image_has_a_container_beside_the_export_without_any_key() -> None:
    suites = [suite("a", resources={"limits": {"nvidia.com/gpu": 1}}), {"name": "b", "tasks": ["arc"]}, suite("c-d")]
    signing = {"signing": {"keySecretRef": {"name": "model-key", "key": "k.pem"}}}
    theirs = {"env": [{"name": "OTHER_KEY", "value": "x"}], "envFrom": [{"secretRef": {"name": "keys"}}]}
    pod = pod_spec(export_job(made(evaluation={"suites": suites}, export=signing, podTemplate=theirs), SETTINGS))
    first, second = pod["initContainers"]
    [inner] = pod["containers"]
    assert [(one["name"], one["image"]) for one in (first, second)] == [
        ("suite-a", "team/a:1"),
        ("suite-c-d", "team/c-d:1"),
    ]
    volumes = {one["name"] for one in pod["volumes"]}
    for one in (first, second):
        assert one["restartPolicy"] == "Always"  # it ends with the export
        assert [variable["name"] for variable in one["env"]] == ["HOME", "USER"]
        assert "valueFrom" not in json.dumps(one)
        assert "envFrom" not in one
        own = f"finetune-{one['name']}"
        mounted = {mount["name"]: mount for mount in one["volumeMounts"]}
        assert set(mounted) == {own, f"{own}-tmp", "finetune-scratch", "finetune-shm"}
        assert [name for name, mount in mounted.items() if mount.get("readOnly")] == ["finetune-scratch"]
        assert set(mounted) <= volumes
        assert one["securityContext"] == inner["securityContext"]
        folder = f"/suites/{one['name'].removeprefix('suite-')}"
        assert f"cd {folder}\n" in one["command"][2]
        assert mounted[own] in inner["volumeMounts"]
        assert mounted[own]["mountPath"] == folder
    assert first["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert second["resources"] == {}
    assert {"name": "FINETUNE_SUITES_FOLDER", "value": "/suites"} in inner["env"]


def test_a_server_and_suites_have_containers_of_their_own_and_other_stages_none() -> None:
    test = {"serveTest": {"prompts": ["Hello"], "image": "vllm:1"}}
    evaluation = {"suites": [suite("server", resources={"requests": {"amd.com/gpu": 1}})]}
    runtime = {"runtimeClassName": "rocm"}
    both = made(export=test, evaluation=evaluation, podTemplate=runtime)
    pod = pod_spec(export_job(both, SETTINGS))
    assert [one["name"] for one in pod["initContainers"]] == ["server", "suite-server"]
    names = [one["name"] for one in pod["volumes"]]
    assert len(names) == len(set(names))
    paths = [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]]
    assert len(paths) == len(set(paths))
    assert pod["runtimeClassName"] == "rocm"
    harness = made(evaluation={"suites": [{"name": "b", "tasks": ["arc"]}]}, podTemplate=runtime)
    for other in (export_job(harness, SETTINGS), prepare_job(both, SETTINGS)):
        assert "initContainers" not in pod_spec(other)
        assert "runtimeClassName" not in pod_spec(other)
        assert "FINETUNE_SUITES_FOLDER" not in env(other)


def test_the_hubs_token_is_known_to_prepare_alone() -> None:
    job = {"model": {"name": "org/gated", "tokenSecretRef": {"name": "hub", "key": "token"}}}
    found = env(prepare_job(made(**job), SETTINGS))
    assert found["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    for other in (train(**job), export_job(made(**job), SETTINGS)):
        assert "HF_TOKEN" not in env(other)


def test_a_mirror_of_the_hub_is_the_admins_unless_the_job_names_one() -> None:
    mirrored = replace(SETTINGS, hub_endpoint="https://hub.intern")
    assert "HF_ENDPOINT" not in env(prepare_job(made(), SETTINGS))
    assert env(prepare_job(made(), mirrored))["HF_ENDPOINT"] == "https://hub.intern"
    own = {"podTemplate": {"env": [{"name": "HF_ENDPOINT", "value": "https://mine"}]}}
    assert env(prepare_job(made(**own), mirrored))["HF_ENDPOINT"] == "https://mine"


def test_a_model_on_a_claim_is_mounted_read_only_in_prepare_alone() -> None:
    job = {"model": {"persistentVolumeClaim": {"claimName": "models", "path": "llama"}}}
    prepare = prepare_job(made(**job), SETTINGS)
    claim = {"name": "finetune-model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}
    assert claim in pod_spec(prepare)["volumes"]
    mount = {"name": "finetune-model", "mountPath": "/volumes/model", "readOnly": True}
    assert mount in container(prepare)["volumeMounts"]
    assert env(prepare)["FINETUNE_MODEL_VOLUME"] == "/volumes/model"
    for other in (train(**job), export_job(made(**job), SETTINGS)):
        assert claim not in pod_spec(other)["volumes"]


def test_prepare_is_told_of_the_gpus_that_training_may_get() -> None:
    found = env(prepare_job(made(), SETTINGS, NodeGpu("NVIDIA-H100-80GB-HBM3", 81559)))
    assert (found["FINETUNE_GPU_PRODUCT"], found["FINETUNE_GPU_MEMORY_MIB"]) == ("NVIDIA-H100-80GB-HBM3", "81559")
    assert "FINETUNE_GPU_MEMORY_MIB" not in env(prepare_job(made(), SETTINGS, NodeGpu("nvidia-l4")))
    assert "FINETUNE_GPU_PRODUCT" not in env(prepare_job(made(), SETTINGS))


@pytest.mark.parametrize(
    ("resources", "processes"),
    [
        (None, "2"),
        ({"limits": {"cpu": 6}}, "6"),
        ({"requests": {"cpu": "250m"}}, "1"),
        ({"requests": {"cpu": 2}, "limits": {"cpu": "7500m"}}, "8"),
        ({"limits": {"memory": "1Gi"}}, None),
    ],
)
def test_prepare_works_with_as_many_processes_as_it_has_cpus(resources: Object | None, processes: str | None) -> None:
    asked = {"prepare": {"resources": resources}} if resources else {}
    assert env(prepare_job(made(**asked), SETTINGS)).get("FINETUNE_PROCESSES") == processes


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        ({}, None, "0"),
        ({"limits": {"cpu": 8}}, None, "8"),
        ({"limits": {"cpu": "8", "nvidia.com/gpu": 4}}, None, "2"),
        ({"requests": {"cpu": "1500m"}}, None, "1"),
        ({"limits": {"cpu": 8}}, 2, "4"),
    ],
)
def test_workers_share_the_cpus_of_their_pod(resources: Object, processes: int | None, threads: str) -> None:
    more = {"processesPerNode": processes} if processes else {}
    assert env(train(resourcesPerNode=resources, **more))["FINETUNE_THREADS"] == threads


@pytest.mark.parametrize(
    ("scratch", "volume", "requested"),
    [
        (None, {"emptyDir": {}}, str(2 << 30)),
        ({"size": "5Gi"}, {"emptyDir": {"sizeLimit": "5Gi"}}, str(5 << 30)),
        ({"size": "5Gi", "medium": "Memory"}, {"emptyDir": {"medium": "Memory", "sizeLimit": "5Gi"}}, None),
    ],
)
def test_scratch_is_sized_by_the_user_or_the_plan(
    scratch: Object | None, volume: Object, requested: str | None
) -> None:
    job = train(**({"scratch": scratch} if scratch else {}))
    [found] = [one for one in pod_spec(job)["volumes"] if one["name"] == "finetune-scratch"]
    assert found == {"name": "finetune-scratch", **volume}
    assert container(job)["resources"].get("requests", {}).get("ephemeral-storage") == requested


def test_scratch_of_a_storage_class_is_a_claim_of_the_pod() -> None:
    job = train(scratch={"storageClassName": "fast"})
    [found] = [one for one in pod_spec(job)["volumes"] if one["name"] == "finetune-scratch"]
    claim = found["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", str(2 << 30))


ADDED: Object = {
    "labels": {"team": "nlp", "finetune.dev/job-uid": "mine"},
    "annotations": {"note": "x"},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "FINETUNE_TOKEN", "value": "stolen"}],
    "imagePullSecrets": [{"name": "pull"}],
    "runtimeClassName": "nvidia",
    "serviceAccountName": "trainer",
}


def test_a_pod_template_is_merged_and_never_takes_ours_away() -> None:
    job = train(podTemplate=ADDED)
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels["finetune.dev/job-uid"]) == ("nlp", UID)
    spec = pod_spec(job)
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert {one["key"] for one in spec["tolerations"]} == {
        "gpu",
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    assert (spec["runtimeClassName"], spec["serviceAccountName"]) == ("nvidia", "trainer")
    assert env(job)["NCCL_DEBUG"] == "INFO"
    assert env(job)["FINETUNE_TOKEN"] != "stolen"
    assert "/data" in {one["mountPath"] for one in container(job)["volumeMounts"]}


def test_cpu_stages_see_the_volumes_and_pass_the_taints_but_do_not_need_the_gpu_nodes() -> None:
    job = prepare_job(made(podTemplate=ADDED), SETTINGS)
    spec = pod_spec(job)
    assert "nodeSelector" not in spec
    assert "runtimeClassName" not in spec
    assert spec["tolerations"] == ADDED["tolerations"], "where every node is tainted, no job could start"
    assert job["spec"]["template"]["metadata"]["labels"]["team"] == "nlp"
    assert job["spec"]["template"]["metadata"]["annotations"]["note"] == "x"
    assert "data" in {one["name"] for one in spec["volumes"]}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


def test_pods_rather_stand_on_different_nodes_unless_the_user_says_otherwise() -> None:
    [term] = pod_spec(train())["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    own = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    assert pod_spec(train(podTemplate={"affinity": own}))["affinity"] == own


@pytest.mark.parametrize("stage", ["prepare", "export"])
def test_a_cpu_stage_has_a_place_of_its_own(stage: str) -> None:
    own = {
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "cpu", "operator": "Exists"}],
        "priorityClassName": "low",
    }
    build = {"prepare": prepare_job, "export": export_job}[stage]
    spec = pod_spec(build(made(podTemplate=ADDED, priorityClassName="high", **{stage: own}), SETTINGS))
    assert {name: spec[name] for name in own} == own
    assert pod_spec(build(made(priorityClassName="high"), SETTINGS))["priorityClassName"] == "high"
    none = {stage: {"tolerations": []}}
    assert "tolerations" not in pod_spec(build(made(podTemplate=ADDED, **none), SETTINGS))


@pytest.mark.parametrize(("user", "ids"), [(1000, [1000] * 3), (70123, [70123] * 3), (None, [None] * 3)])
def test_a_pods_user_is_the_admins_or_the_platforms(user: int | None, ids: list[int | None]) -> None:
    security = pod_spec(prepare_job(made(), replace(SETTINGS, run_as_user=user)))["securityContext"]
    assert [security.get(name) for name in ("runAsUser", "runAsGroup", "fsGroup")] == ids
    assert security["runAsNonRoot"] is True


def test_an_export_is_tried_for_ever_and_each_has_a_name_of_its_own() -> None:
    assert export_job(made(), SETTINGS)["spec"]["backoffLimit"] == 2**31 - 1
    assert prepare_job(made(), SETTINGS)["spec"]["backoffLimit"] == 3
    first, second = (export_job(made(), SETTINGS, attempt)["metadata"] for attempt in (1, 2))
    assert (first["name"], second["name"]) == ("a-export", "a-export-2")
    assert "finetune.dev/attempt" not in first["labels"]
    assert second["labels"]["finetune.dev/attempt"] == "2"


def test_stage_resources_and_priority() -> None:
    assert container(export_job(made(), SETTINGS))["resources"] == {"requests": {"cpu": "1", "memory": "4Gi"}}
    assert container(prepare_job(made(), SETTINGS))["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi"},
        "limits": {"memory": "8Gi"},
    }
    asked = {"prepare": {"resources": {"limits": {"memory": "1Gi"}}}}
    assert container(prepare_job(made(**asked), SETTINGS))["resources"] == {"limits": {"memory": "1Gi"}}
    assert pod_spec(train(priorityClassName="high"))["priorityClassName"] == "high"
    assert pod_spec(train())["terminationGracePeriodSeconds"] == 75

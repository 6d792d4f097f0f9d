"""The parts of our pods: restricted pod security, no Kubernetes token, scratch and shared memory, the storage's
credentials as environment, and what a job adds by `podTemplate`. Pure."""

from collections.abc import Sequence
from typing import Any

from finetune_api.contract import CONTAINER, CREDENTIALS, JOB_ANNOTATION, Env, Label, PodPath
from finetune_api.messages import Stage
from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.pod_template import Toleration
from finetune_api.v1alpha1.spec import Resources, StageSpec
from finetune_operator.objects.machines import gpu_resources
from finetune_operator.settings import Settings

Object = dict[str, Any]

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"


def container(
    job: FineTuneJob,
    settings: Settings,
    *,
    command: list[str],
    env: Sequence[Object],
    resources: Object,
    mounts: Sequence[Object] = (),
) -> Object:
    """The one container of a pod; `mounts` are of volumes that its template adds."""
    added = job.spec.pod_template
    ours = [*env, *_storage_env(job)]
    names = {variable["name"] for variable in ours}
    theirs = [_without_nulls(one.model_dump(by_alias=True, mode="json")) for one in added.env] if added else []
    mounted = [
        *mounts,
        {"name": "finetune-job", "mountPath": PodPath.JOB.value.rpartition("/")[0], "readOnly": True},
        {"name": "finetune-scratch", "mountPath": PodPath.SCRATCH.value},
        {"name": "finetune-tmp", "mountPath": PodPath.TMP.value},
        {"name": "finetune-shm", "mountPath": PodPath.SHM.value},
    ]
    if job.spec.storage.ca_secret_ref:
        mounted.append({"name": "finetune-ca", "mountPath": PodPath.CA.value.rpartition("/")[0], "readOnly": True})
    if added:
        mounted += [_without_nulls(one.model_dump(by_alias=True, mode="json")) for one in added.volume_mounts]
    made: Object = {
        "name": CONTAINER,
        "image": job.spec.image or settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "env": [*(variable for variable in theirs if variable["name"] not in names), *ours],
        "resources": resources,
        "volumeMounts": mounted,
        "terminationMessagePath": PodPath.TERMINATION_LOG.value,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if added and added.env_from:
        made["envFrom"] = list(added.env_from)
    return made


def template(
    stage: Stage,
    job: FineTuneJob,
    settings: Settings,
    container: Object,
    *,
    grace_seconds: int,
    scratch_bytes: int | None,
    volumes: Sequence[Object] = (),
) -> Object:
    """A pod template around a container, with `volumes` of its own.

    CPU stages do not go where `podTemplate` sends the training pods.
    """
    added = job.spec.pod_template
    mountable: list[Object] = [
        *volumes,
        {
            "name": "finetune-job",
            "downwardAPI": {
                "items": [
                    {
                        "path": PodPath.JOB.value.rpartition("/")[2],
                        "fieldRef": {"fieldPath": f"metadata.annotations['{JOB_ANNOTATION}']"},
                    }
                ]
            },
        },
        _scratch(job, stage, scratch_bytes),
        {"name": "finetune-tmp", "emptyDir": {}},
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory"}},
    ]
    if reference := job.spec.storage.ca_secret_ref:
        items = [{"key": "ca.crt", "path": PodPath.CA.value.rpartition("/")[2]}]
        mountable.append({"name": "finetune-ca", "secret": {"secretName": reference.name, "items": items}})
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": _security(settings.run_as_user),
        "containers": [container],
        "volumes": mountable,
    }
    if added:
        mountable += list(added.volumes)
        if added.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": one.name} for one in added.image_pull_secrets]
        if added.service_account_name:
            spec["serviceAccountName"] = added.service_account_name
        if stage is Stage.TRAIN:
            if added.node_selector:
                spec["nodeSelector"] = dict(added.node_selector)
            if added.topology_spread_constraints:
                spec["topologySpreadConstraints"] = list(added.topology_spread_constraints)
            if added.runtime_class_name:
                spec["runtimeClassName"] = added.runtime_class_name
            if added.scheduler_name:
                spec["schedulerName"] = added.scheduler_name
    return {"spec": spec}


def affinity(job: FineTuneJob, uid: str) -> Object:
    """The user's affinity, or: rather one pod per node, because two on one are lost together."""
    added = job.spec.pod_template
    if added and added.affinity:
        return dict(added.affinity)
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {Label.UID.value: uid, Label.STAGE.value: Stage.TRAIN.value}},
    }
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def tolerations(job: FineTuneJob, seconds: int) -> list[Object]:
    """The user's tolerations, and how long to stay on a node that is not ready (Kubernetes' own default: 5 minutes)."""
    added = job.spec.pod_template
    theirs = _tolerations(added.tolerations if added else [])
    keys = {one.get("key") for one in theirs}
    ours = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key in (NOT_READY, UNREACHABLE)
        if key not in keys
    ]
    return theirs + ours


def placement(job: FineTuneJob, asked: StageSpec | None) -> Object:
    """Where the pod of a CPU stage may run: not where podTemplate sends the training pods, but past the same taints."""
    added = job.spec.pod_template
    own = asked.tolerations if asked else None
    tolerated = own if own is not None else (added.tolerations if added else [])
    found = {
        "nodeSelector": dict(asked.node_selector) if asked else {},
        "tolerations": _tolerations(tolerated),
        "priorityClassName": (asked.priority_class_name if asked else None) or job.spec.priority_class_name,
    }
    return {name: value for name, value in found.items() if value}


def requirements(resources: Resources) -> Object:
    """Resources in Kubernetes' form; empty parts left out."""
    found = {"limits": _quantities(resources.limits), "requests": _quantities(resources.requests)}
    return {name: value for name, value in found.items() if value}


def threads(job: FineTuneJob) -> int:
    """Intra-op threads of each worker, from the CPUs the pod is given; 0 = the agent looks at its cores."""
    resources = job.spec.resources_per_node
    cpu = resources.limits.get("cpu") or resources.requests.get("cpu")
    if cpu is None:
        return 0
    return max(1, int(parse_quantity(cpu)) // (job.spec.processes_per_node or gpus(job) or 1))


def gpus(job: FineTuneJob) -> int:
    """Accelerators of one training pod."""
    return sum(gpu_resources(job).values())


def from_field(name: str, path: str) -> Object:
    """An environment variable with a field of the pod."""
    return {"name": str(name), "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_secret(name: str, secret: str, key: str, optional: bool = False) -> Object:
    """An environment variable with a key of a Secret."""
    reference: Object = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": str(name), "valueFrom": {"secretKeyRef": reference}}


def _security(user: int | None) -> Object:
    """Restricted pod security. Without a user the platform assigns one, as OpenShift does, or the image names it."""
    ids = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        "runAsNonRoot": True,
        **ids,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _tolerations(given: Sequence[Toleration]) -> list[Object]:
    return [_without_nulls(one.model_dump(by_alias=True, mode="json")) for one in given]


def _storage_env(job: FineTuneJob) -> list[Object]:
    storage = job.spec.storage
    plain = {
        Env.STORAGE_ENDPOINT: storage.endpoint,
        Env.STORAGE_REGION: storage.region,
        Env.STORAGE_CA: PodPath.CA.value if storage.ca_secret_ref else None,
    }
    found: list[Object] = [{"name": name.value, "value": value} for name, value in plain.items() if value]
    if reference := storage.credentials_secret_ref:
        found += [from_secret(one.name, reference.name, one.name, one.optional) for one in CREDENTIALS]
    return found


def _scratch(job: FineTuneJob, stage: Stage, scratch_bytes: int | None) -> Object:
    asked = job.spec.scratch
    if asked is None or stage is not Stage.TRAIN:
        return {"name": "finetune-scratch", "emptyDir": {}}
    if asked.storage_class_name:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": asked.storage_class_name,
            "resources": {"requests": {"storage": str(asked.size or scratch_bytes)}},
        }
        return {"name": "finetune-scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    folder: Object = {}
    if asked.medium == "Memory":
        folder["medium"] = "Memory"
    if asked.size:
        folder["sizeLimit"] = str(asked.size)
    return {"name": "finetune-scratch", "emptyDir": folder}


def _quantities(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _without_nulls(value: Object) -> Object:
    return {name: one for name, one in value.items() if one is not None}

"""The parts of our pods: restricted pod security, no Kubernetes token, scratch and shared memory, the credentials of
storage as environment variables, and the additions of `podTemplate`. Pure."""

from collections.abc import Sequence
from typing import Any

from finetune_api.contract import CONTAINER, JOB_ANNOTATION, Label, PodPath
from finetune_api.messages import Stage
from finetune_api.v1alpha1 import Resources
from finetune_api.v1alpha1.pod_template import Toleration
from finetune_operator.objects.environment import storage_access
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Object
from finetune_operator.settings import Settings

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
SCRATCH = "finetune-scratch"


def container(
    job: AcceptedJob,
    settings: Settings,
    *,
    command: list[str],
    env: Sequence[Object],
    resources: Object,
    mounts: Sequence[Object] = (),
) -> Object:
    """Build the trainer container of a pod.

    Args:
        env: variables of this stage; the variables of storage are added.
        mounts: of volumes that the pod has in addition to those of every pod.
    """
    added = job.spec.pod_template
    ours = [*env, *storage_access(job)]
    names = {variable["name"] for variable in ours}
    theirs = [_dump(one) for one in added.env] if added else []
    mounted = [
        *mounts,
        {"name": "finetune-job", "mountPath": _folder(PodPath.JOB), "readOnly": True},
        {"name": SCRATCH, "mountPath": PodPath.SCRATCH.value},
        {"name": "finetune-tmp", "mountPath": PodPath.TMP.value},
        {"name": "finetune-shm", "mountPath": PodPath.SHM.value},
    ]
    if job.spec.storage.ca_secret_ref:
        mounted.append(ca_mount("finetune-ca", PodPath.CA))
    if added:
        mounted += [_dump(one) for one in added.volume_mounts]
    built: Object = {
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
        built["envFrom"] = list(added.env_from)
    return built


def pod_spec(
    job: AcceptedJob,
    settings: Settings,
    container: Object,
    *,
    grace_seconds: int,
    placement: Object,
    scratch: Object,
    volumes: Sequence[Object] = (),
) -> Object:
    """Build the spec of a pod around its container.

    Args:
        grace_seconds: time that the pod gets to save and upload when it is asked to stop.
        placement: fields that decide where the pod runs.
        scratch: the volume for node-local files.
        volumes: that the pod has in addition to those of every pod.
    """
    added = job.spec.pod_template
    path = {"path": _file(PodPath.JOB), "fieldRef": {"fieldPath": f"metadata.annotations['{JOB_ANNOTATION}']"}}
    mountable: list[Object] = [
        *volumes,
        {"name": "finetune-job", "downwardAPI": {"items": [path]}},
        scratch,
        {"name": "finetune-tmp", "emptyDir": {}},
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory"}},
    ]
    if reference := job.spec.storage.ca_secret_ref:
        mountable.append(ca_volume("finetune-ca", reference.name, PodPath.CA))
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": _security(settings.run_as_user),
        "containers": [container],
        "volumes": mountable,
        **placement,
    }
    if added:
        mountable += list(added.volumes)
        if added.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": one.name} for one in added.image_pull_secrets]
        if added.service_account_name:
            spec["serviceAccountName"] = added.service_account_name
    return spec


def training_placement(job: AcceptedJob, settings: Settings) -> Object:
    """Return the fields that decide where the training pods run."""
    added = job.spec.pod_template
    placement = {
        "affinity": _affinity(job),
        "tolerations": _node_tolerations(job, settings.node_toleration_seconds),
        "priorityClassName": job.spec.priority_class_name,
        "nodeSelector": dict(added.node_selector) if added else {},
        "topologySpreadConstraints": list(added.topology_spread_constraints) if added else [],
        "runtimeClassName": added.runtime_class_name if added else None,
        "schedulerName": added.scheduler_name if added else None,
    }
    required = {"affinity", "tolerations"}
    return {name: value for name, value in placement.items() if value or name in required}


def stage_placement(job: AcceptedJob, stage: Stage) -> Object:
    """Return the fields that decide where the pod of a CPU stage runs.

    The pod tolerates the same taints as the training pods, but it does not need their nodes. It needs their runtime
    if a container beside the export asks for a device.
    """
    added = job.spec.pod_template
    wanted = job.spec.prepare if stage is Stage.PREPARE else job.spec.export
    own = wanted.tolerations if wanted else None
    tolerated = own if own is not None else (added.tolerations if added else [])
    placement = {
        "nodeSelector": dict(wanted.node_selector) if wanted else {},
        "tolerations": [_dump(one) for one in tolerated],
        "priorityClassName": (wanted.priority_class_name if wanted else None) or job.spec.priority_class_name,
        "runtimeClassName": added.runtime_class_name if added and stage is Stage.EXPORT and _devices_of(job) else None,
    }
    return {name: value for name, value in placement.items() if value}


def _devices_of(job: AcceptedJob) -> list[str]:
    """Return the devices that the containers beside the export ask for; names with a domain are those of devices."""
    test = job.spec.export.serve_test
    asked = [test.resources if test else None, *(one.resources for one in job.spec.evaluation.suites)]
    return [name for one in asked if one for name in {**one.requests, **one.limits} if "/" in name]


def small_scratch() -> Object:
    """Return the scratch volume of a CPU stage."""
    return {"name": SCRATCH, "emptyDir": {}}


def training_scratch(job: AcceptedJob, size_bytes: int) -> Object:
    """Return the scratch volume of a training pod.

    Args:
        size_bytes: of a claim without `spec.scratch.size`.
    """
    wanted = job.spec.scratch
    if wanted is None:
        return small_scratch()
    if wanted.storage_class_name:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": wanted.storage_class_name,
            "resources": {"requests": {"storage": str(wanted.size or size_bytes)}},
        }
        return {"name": SCRATCH, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    folder: Object = {}
    if wanted.medium == "Memory":
        folder["medium"] = "Memory"
    if wanted.size:
        folder["sizeLimit"] = str(wanted.size)
    return {"name": SCRATCH, "emptyDir": folder}


def requirements(resources: Resources) -> Object:
    """Return resources in Kubernetes' form, without empty parts."""
    parts = {"limits": _quantities(resources.limits), "requests": _quantities(resources.requests)}
    return {name: value for name, value in parts.items() if value}


def ca_volume(name: str, secret: str, path: PodPath) -> Object:
    """Return a volume with the key `ca.crt` of a Secret as a file."""
    return {"name": name, "secret": {"secretName": secret, "items": [{"key": "ca.crt", "path": _file(path)}]}}


def ca_mount(name: str, path: PodPath) -> Object:
    """Return the mount of a volume of `ca_volume`."""
    return {"name": name, "mountPath": _folder(path), "readOnly": True}


def _affinity(job: AcceptedJob) -> Object:
    """Return the user's affinity, or prefer one pod per node: two pods on one node are lost together."""
    added = job.spec.pod_template
    if added and added.affinity:
        return dict(added.affinity)
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {Label.UID.value: job.owner.uid, Label.STAGE.value: Stage.TRAIN.value}},
    }
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def _node_tolerations(job: AcceptedJob, seconds: int) -> list[Object]:
    """Return the user's tolerations, and the seconds to stay on a node that is not ready (Kubernetes' default: 300)."""
    added = job.spec.pod_template
    theirs: list[Toleration] = added.tolerations if added else []
    keys = {one.key for one in theirs}
    ours = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key in (NOT_READY, UNREACHABLE)
        if key not in keys
    ]
    return [*map(_dump, theirs), *ours]


def _security(user: int | None) -> Object:
    """Return restricted pod security. Without a user the platform (OpenShift) or the image sets one."""
    ids = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        "runAsNonRoot": True,
        **ids,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _folder(path: PodPath) -> str:
    return path.value.rpartition("/")[0]


def _file(path: PodPath) -> str:
    return path.value.rpartition("/")[2]


def _quantities(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _dump(part: Any) -> Object:
    """Return a part of the pod template as JSON, without fields that are not set."""
    return {name: one for name, one in part.model_dump(by_alias=True, mode="json").items() if one is not None}

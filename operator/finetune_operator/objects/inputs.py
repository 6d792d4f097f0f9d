"""The additions that only one pod gets. Prepare: access to the data and to the hub, a model on a volume claim, and the
GPUs that training can count on. Export: the key that signs, the keys of the pushes, a server for tests, and containers
of suites. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from finetune_api.contract import CREDENTIALS, Env, PodPath, PushVariable, push_folder, push_variable
from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1.push_spec import PushSpec
from finetune_operator.objects.environment import data_access, from_secret, literal, variable
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Object
from finetune_operator.objects.machines import NodeGpu
from finetune_operator.objects.pods import ca_mount, ca_volume
from finetune_operator.objects.serving import OrderedContainer, evaluating_containers, serving_container
from finetune_operator.settings import Settings

FILES = {PushVariable.DOCKER_CONFIG: "config.json", PushVariable.CA: "ca.crt"}
HUB_TOKEN, HUB_ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"  # names of the hub's library


@dataclass(frozen=True)
class PodInputs:
    """The additions to a pod: environment variables, volumes and their mounts, and containers beside the stage's."""

    env: tuple[Object, ...] = ()
    volumes: tuple[Object, ...] = ()
    mounts: tuple[Object, ...] = ()
    sidecars: tuple[Object, ...] = ()


def prepare_inputs(job: AcceptedJob, settings: Settings, resources: Object, gpu: NodeGpu | None) -> PodInputs:
    """Return the additions to the prepare pod of a job.

    Args:
        resources: of the container.
        gpu: that training can count on; None if unknown.
    """
    env = [*data_access(job), *_hub_access(job, settings), *_gpu_facts(gpu)]
    if processes := _processes(resources):
        env.append(variable(Env.PROCESSES, str(processes)))
    volumes: list[Object] = []
    mounts: list[Object] = []
    data = job.spec.dataset.storage
    if data and data.ca_secret_ref:
        volumes.append(ca_volume("finetune-data-ca", data.ca_secret_ref.name, PodPath.DATA_CA))
        mounts.append(ca_mount("finetune-data-ca", PodPath.DATA_CA))
    if claim := job.spec.model.persistent_volume_claim:
        source = {"claimName": claim.claim_name, "readOnly": True}
        volumes.append({"name": "finetune-model", "persistentVolumeClaim": source})
        mounts.append({"name": "finetune-model", "mountPath": PodPath.MODEL_VOLUME.value, "readOnly": True})
        env.append(variable(Env.MODEL_VOLUME, PodPath.MODEL_VOLUME.value))
    return PodInputs(tuple(env), tuple(volumes), tuple(mounts))


def export_inputs(job: AcceptedJob, settings: Settings, unserved: str = "") -> PodInputs:
    """Return the additions to the export pod of a job: the key that signs artifacts, those of the pushes, the container
    that serves artifacts for a test, and those of suites.

    Args:
        unserved: why there is no container that serves although the user asks for one; empty otherwise.
    """
    parts = [
        _signing_inputs(job),
        PodInputs((literal(Env.SERVE_OBSTACLE, unserved),)) if unserved else _serving_inputs(job, settings),
        _evaluating_inputs(job, settings),
        *(_push_inputs(index, push) for index, push in enumerate(job.spec.export.push)),
    ]
    if any(push.hub for push in job.spec.export.push):
        parts.append(PodInputs(tuple(_hub_mirror(job, settings))))
    return PodInputs(
        tuple(one for part in parts for one in part.env),
        tuple(one for part in parts for one in part.volumes),
        tuple(one for part in parts for one in part.mounts),
        tuple(one for part in parts for one in part.sidecars),
    )


def _serving_inputs(job: AcceptedJob, settings: Settings) -> PodInputs:
    serving = serving_container(job)
    if serving is None:
        return PodInputs()
    return _beside([serving], variable(Env.SERVE_FOLDER, PodPath.SERVE.value), settings)


def _evaluating_inputs(job: AcceptedJob, settings: Settings) -> PodInputs:
    evaluating = evaluating_containers(job)
    if not evaluating:
        return PodInputs()
    return _beside(evaluating, variable(Env.SUITES_FOLDER, PodPath.SUITES.value), settings)


def _beside(containers: Sequence[OrderedContainer], told: Object, settings: Settings) -> PodInputs:
    """Return what containers beside the export need. `told`: the variable that tells the export of them."""
    return PodInputs(
        (told,),
        tuple(volume for one in containers for volume in one.volumes),
        tuple(one.mount for one in containers),
        tuple(one.manifest(settings) for one in containers),
    )


def _signing_inputs(job: AcceptedJob) -> PodInputs:
    if job.spec.export.signing is None:
        return PodInputs()
    key, path = job.spec.export.signing.key_secret_ref, PodPath.SIGNING_KEY
    mount = ca_mount("finetune-signing", path)
    items = [{"key": key.key, "path": path.value.rpartition("/")[2]}]
    volume = {"name": "finetune-signing", "secret": {"secretName": key.name, "items": items, "defaultMode": 0o440}}
    return PodInputs((variable(Env.SIGNING_KEY, path.value),), (volume,), (mount,))


def _push_inputs(index: int, push: PushSpec) -> PodInputs:
    """Return the keys for one place, under the names of its item."""
    env: list[Object] = []
    volumes: list[Object] = []
    mounts: list[Object] = []

    def file(secret: str, key: str, name: str, told: PushVariable) -> None:
        """Mount a key of a Secret as a file, and tell its path."""
        volume, folder = f"finetune-push-{index}-{name}", push_folder(index, name)
        source = {"secretName": secret, "items": [{"key": key, "path": FILES[told]}]}
        volumes.append({"name": volume, "secret": source})
        mounts.append({"name": volume, "mountPath": folder, "readOnly": True})
        env.append(variable(push_variable(index, told), f"{folder}/{FILES[told]}"))

    if push.hub and (token := push.hub.token_secret_ref):
        env.append(from_secret(push_variable(index, PushVariable.TOKEN), token.name, token.key))
    if push.oci and (login := push.oci.push_secret_ref):
        file(login.name, ".dockerconfigjson", "login", PushVariable.DOCKER_CONFIG)
    if push.storage and (keys := push.storage.credentials_secret_ref):
        env += [from_secret(push_variable(index, one.name), keys.name, one.name, one.optional) for one in CREDENTIALS]
    place = push.oci or push.storage
    if place and place.ca_secret_ref:
        file(place.ca_secret_ref.name, "ca.crt", "ca", PushVariable.CA)
    return PodInputs(tuple(env), tuple(volumes), tuple(mounts))


def _hub_access(job: AcceptedJob, settings: Settings) -> list[Object]:
    """Return the token of the hub, and its mirror."""
    env: list[Object] = []
    if token := job.spec.model.token_secret_ref:
        env.append(from_secret(HUB_TOKEN, token.name, token.key))
    return [*env, *_hub_mirror(job, settings)]


def _hub_mirror(job: AcceptedJob, settings: Settings) -> list[Object]:
    """Return the admin's mirror of the hub, unless the job names another one."""
    theirs = {one.name for one in job.spec.pod_template.env} if job.spec.pod_template else set()
    if settings.hub_endpoint and HUB_ENDPOINT not in theirs:
        return [variable(HUB_ENDPOINT, settings.hub_endpoint)]
    return []


def _gpu_facts(gpu: NodeGpu | None) -> list[Object]:
    if gpu is None:
        return []
    facts = {Env.GPU_PRODUCT: gpu.product, Env.GPU_MEMORY_MIB: gpu.memory_mib}
    return [variable(name, str(value)) for name, value in facts.items() if value]


def _processes(resources: Object) -> int:
    """Return the number of processes that the pod has CPUs for, because it may use only a part of the node's cores.
    0 means unknown."""
    cpu = {**resources.get("requests", {}), **resources.get("limits", {})}.get("cpu")
    return max(1, ceil(parse_quantity(cpu))) if cpu is not None else 0

"""What the prepare pod alone is given: the data's own storage and keys, the hub's token, a model on a claim, and the
GPUs that training may count on. No other pod sees any of it. Pure."""

from dataclasses import dataclass
from math import ceil
from typing import Any

from finetune_api.contract import CREDENTIALS, Env, PodPath
from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.objects.machines import Gpu
from finetune_operator.objects.pods import from_secret
from finetune_operator.settings import Settings

Object = dict[str, Any]

HUB_TOKEN, HUB_ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"  # the hub library's own names


@dataclass(frozen=True)
class Inputs:
    """Additions to the prepare pod: environment, volumes and where they are mounted."""

    env: tuple[Object, ...] = ()
    volumes: tuple[Object, ...] = ()
    mounts: tuple[Object, ...] = ()


def inputs(job: FineTuneJob, settings: Settings, resources: Object, gpu: Gpu | None) -> Inputs:
    """What a job's prepare pod is given.

    Args:
        resources: of its container.
        gpu: what training may count on, if anything is known.
    """
    env = [*_data_env(job), *_hub_env(job, settings), *_gpu_env(gpu)]
    if processes := _processes(resources):
        env.append({"name": Env.PROCESSES.value, "value": str(processes)})
    volumes: list[Object] = []
    mounts: list[Object] = []
    own = job.spec.dataset.storage
    if own and own.ca_secret_ref:
        folder, _, name = PodPath.DATA_CA.value.rpartition("/")
        items = [{"key": "ca.crt", "path": name}]
        volumes.append({"name": "finetune-data-ca", "secret": {"secretName": own.ca_secret_ref.name, "items": items}})
        mounts.append({"name": "finetune-data-ca", "mountPath": folder, "readOnly": True})
    if claim := job.spec.model.persistent_volume_claim:
        source = {"claimName": claim.claim_name, "readOnly": True}
        volumes.append({"name": "finetune-model", "persistentVolumeClaim": source})
        mounts.append({"name": "finetune-model", "mountPath": PodPath.MODEL_VOLUME.value, "readOnly": True})
        env.append({"name": Env.MODEL_VOLUME.value, "value": PodPath.MODEL_VOLUME.value})
    return Inputs(tuple(env), tuple(volumes), tuple(mounts))


def _data_env(job: FineTuneJob) -> list[Object]:
    own = job.spec.dataset.storage
    if own is None:
        return []
    plain = {
        Env.DATA_ENDPOINT: own.endpoint,
        Env.DATA_REGION: own.region,
        Env.DATA_CA: PodPath.DATA_CA.value if own.ca_secret_ref else None,
    }
    found: list[Object] = [{"name": name.value, "value": value} for name, value in plain.items() if value]
    if reference := own.credentials_secret_ref:
        found += [from_secret(one.data_variable, reference.name, one.name, one.optional) for one in CREDENTIALS]
    return found


def _hub_env(job: FineTuneJob, settings: Settings) -> list[Object]:
    """The token, and the admin's mirror of the hub unless the job names its own."""
    found: list[Object] = []
    if token := job.spec.model.token_secret_ref:
        found.append(from_secret(HUB_TOKEN, token.name, token.key))
    theirs = {one.name for one in job.spec.pod_template.env} if job.spec.pod_template else set()
    if settings.hub_endpoint and HUB_ENDPOINT not in theirs:
        found.append({"name": HUB_ENDPOINT, "value": settings.hub_endpoint})
    return found


def _gpu_env(gpu: Gpu | None) -> list[Object]:
    if gpu is None:
        return []
    told = {Env.GPU_PRODUCT: gpu.product, Env.GPU_MEMORY_MIB: gpu.memory_mib}
    return [{"name": name.value, "value": str(value)} for name, value in told.items() if value]


def _processes(resources: Object) -> int:
    """How many processes the pod has CPUs for: a node's cores are not all its own. 0 = not known."""
    cpu = {**resources.get("requests", {}), **resources.get("limits", {})}.get("cpu")
    return max(1, ceil(parse_quantity(cpu))) if cpu is not None else 0

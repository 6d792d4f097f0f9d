"""The GPUs that the training pods of a job may get, according to the labels of nodes. Pure.

The node of a pod is unknown in advance, and a plan for the smallest GPU fits on all nodes. The labels are those of
NVIDIA's GPU feature discovery and of GKE; a node without them contributes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.quantity import parse_quantity
from finetune_operator.objects.identity import AcceptedJob
from finetune_operator.objects.kinds import Object
from finetune_operator.objects.node_affinity import allows

PRODUCT, MEMORY, GKE = "nvidia.com/gpu.product", "nvidia.com/gpu.memory", "cloud.google.com/gke-accelerator"
GPU_LABELS = (PRODUCT, GKE)  # the operator lists only nodes with one of these labels
GPU_SUFFIXES = ("/gpu", "/tpu", "/neuron")


@dataclass(frozen=True)
class GpuNode:
    """A node that may have GPUs.

    Attributes:
        resources: quantities that all pods on the node may use together, by the name of the resource.
    """

    name: str
    labels: Mapping[str, str]
    resources: Mapping[str, str]


@dataclass(frozen=True)
class NodeGpu:
    """The known properties of one GPU; an empty product and 0 MiB mean unknown."""

    product: str = ""
    memory_mib: int = 0


def node(item: Object) -> GpuNode:
    """Read a node as the API server returned it."""
    status = item.get("status") or {}
    resources = {**(status.get("capacity") or {}), **(status.get("allocatable") or {})}
    return GpuNode(item["metadata"]["name"], item["metadata"].get("labels") or {}, resources)


def gpu_resources(job: AcceptedJob) -> dict[str, int]:
    """Return the number of accelerators of one training pod, by the name of the resource."""
    requested = job.spec.resources_per_node
    named = {**requested.requests, **requested.limits}
    return {name: int(parse_quantity(value)) for name, value in named.items() if name.endswith(GPU_SUFFIXES)}


def gpu_of(job: AcceptedJob, nodes: Sequence[GpuNode]) -> NodeGpu | None:
    """Return the GPU to plan for: the one with the least memory on any node that can take a training pod.

    If no node reports its memory, return the product that all of them report; None if they report different ones.
    """
    fitting = [one for one in nodes if _has(one, gpu_resources(job)) and allows(job, one.name, one.labels)]
    gpus = {_gpu(one) for one in fitting} - {NodeGpu()}
    with_memory = [gpu for gpu in gpus if gpu.memory_mib]
    if with_memory:
        return min(with_memory, key=lambda gpu: (gpu.memory_mib, gpu.product))
    return gpus.pop() if len(gpus) == 1 else None


def _gpu(one: GpuNode) -> NodeGpu:
    memory = one.labels.get(MEMORY, "")
    return NodeGpu(one.labels.get(PRODUCT) or one.labels.get(GKE, ""), int(memory) if memory.isdecimal() else 0)


def _has(one: GpuNode, needed: Mapping[str, int]) -> bool:
    return bool(needed) and all(parse_quantity(one.resources.get(name, 0)) >= count for name, count in needed.items())

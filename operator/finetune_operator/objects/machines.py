"""The GPUs that a job's training pods may get, as the labels of nodes tell: planning reckons with the smallest. Pure.

Nobody can know which node a pod will get; a plan for the smallest fits on all of them. Labels are those of NVIDIA's GPU
feature discovery and of GKE; nodes without them tell nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1 import FineTuneJob

Object = dict[str, Any]

PRODUCT, MEMORY, GKE = "nvidia.com/gpu.product", "nvidia.com/gpu.memory", "cloud.google.com/gke-accelerator"
TELLING = (PRODUCT, GKE)  # a node without either is not asked for
GPU_SUFFIXES = ("/gpu", "/tpu", "/neuron")


@dataclass(frozen=True)
class Node:
    """A node that may have GPUs.

    Attributes:
        resources: what pods on it may have in all, by name.
    """

    name: str
    labels: Mapping[str, str]
    resources: Mapping[str, str]


@dataclass(frozen=True)
class Gpu:
    """What is known of one GPU; empty and 0 = not known."""

    product: str = ""
    memory_mib: int = 0


def node(item: Object) -> Node:
    """A node as the API server returned it."""
    status = item.get("status") or {}
    resources = {**(status.get("capacity") or {}), **(status.get("allocatable") or {})}
    return Node(item["metadata"]["name"], item["metadata"].get("labels") or {}, resources)


def gpu_resources(job: FineTuneJob) -> dict[str, int]:
    """Accelerators of one training pod, by the name of their resource."""
    asked = job.spec.resources_per_node
    named = {**asked.requests, **asked.limits}
    return {name: int(parse_quantity(value)) for name, value in named.items() if name.endswith(GPU_SUFFIXES)}


def gpu_of(job: FineTuneJob, nodes: Sequence[Node]) -> Gpu | None:
    """The GPU that a plan may reckon with: the one with the least memory on any node that can take a training pod.

    Where no node tells its memory, the product that all of them name; None where that is not one.
    """
    fitting = [one for one in nodes if _has(one, gpu_resources(job)) and _allowed(job, one)]
    found = {_told(one) for one in fitting} - {Gpu()}
    with_memory = [gpu for gpu in found if gpu.memory_mib]
    if with_memory:
        return min(with_memory, key=lambda gpu: (gpu.memory_mib, gpu.product))
    return found.pop() if len(found) == 1 else None


def _told(one: Node) -> Gpu:
    memory = one.labels.get(MEMORY, "")
    return Gpu(one.labels.get(PRODUCT) or one.labels.get(GKE, ""), int(memory) if memory.isdecimal() else 0)


def _has(one: Node, asked: Mapping[str, int]) -> bool:
    return bool(asked) and all(parse_quantity(one.resources.get(name, 0)) >= count for name, count in asked.items())


def _allowed(job: FineTuneJob, one: Node) -> bool:
    """Whether node selector and required node affinity let a training pod on a node. Taints are not looked at."""
    added = job.spec.pod_template
    if added is None:
        return True
    if any(one.labels.get(name) != value for name, value in added.node_selector.items()):
        return False
    required = ((added.affinity or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = (required or {}).get("nodeSelectorTerms") or []
    return not required or any(_meets(one, term) for term in terms)


def _meets(one: Node, term: Object) -> bool:
    labels = [_holds(each, one.labels) for each in term.get("matchExpressions") or ()]
    fields = [_holds(each, {"metadata.name": one.name}) for each in term.get("matchFields") or ()]
    return bool(labels or fields) and all(labels + fields)  # an empty term matches no node


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    """One requirement, as Kubernetes reads it; one that nobody can read holds nowhere."""
    value, values = labels.get(expression.get("key", "")), expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as way:
            try:
                ours, limit = int(value or ""), int(values[0])
            except (ValueError, IndexError, TypeError):
                return False
            return ours > limit if way == "Gt" else ours < limit
        case _:
            return False

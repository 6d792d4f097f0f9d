"""Which GPU a plan may reckon with, from the labels of nodes: the smallest that a training pod may get."""

from typing import Any

import pytest

from finetune_operator.objects.machines import GKE, MEMORY, PRODUCT, NodeGpu, gpu_of, node
from tests.unit.operator_worlds import world

Object = dict[str, Any]

GPU = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 2}}}


def machine(name: str, labels: Object, gpus: int = 8, **more: Any) -> Object:
    """A node as the API server returns it."""
    resources = {"cpu": "8", "nvidia.com/gpu": str(gpus)} if gpus else {"cpu": "8"}
    return {"metadata": {"name": name, "labels": labels}, "status": {"capacity": resources, **more}}


A100 = {PRODUCT: "NVIDIA-A100-SXM4-40GB", MEMORY: "40960", "zone": "a"}
H100 = {PRODUCT: "NVIDIA-H100-80GB-HBM3", MEMORY: "81559", "zone": "b"}
T4 = {GKE: "nvidia-tesla-t4", "zone": "c"}
L4 = {GKE: "nvidia-l4", "zone": "c"}
SMALL, LARGE = NodeGpu("NVIDIA-A100-SXM4-40GB", 40960), NodeGpu("NVIDIA-H100-80GB-HBM3", 81559)
MIXED = [machine("a", A100), machine("h", H100)]


def chosen(nodes: list[Object], **spec: Any) -> NodeGpu | None:
    job = world(spec_={**GPU, **spec}).job
    assert job
    return gpu_of(job, [node(one) for one in nodes])


@pytest.mark.parametrize(
    ("nodes", "gpu"),
    [
        ([], None),
        ([machine("c", {"zone": "a"})], None),
        ([machine("a", A100)], SMALL),
        (MIXED, SMALL),
        ([machine("a", A100, gpus=0), machine("h", H100)], LARGE),  # its GPUs are gone
        ([machine("a", A100, gpus=1), machine("h", H100)], LARGE),  # it has fewer than a pod asks for
        ([machine("a", A100, allocatable={"nvidia.com/gpu": "0"}), machine("h", H100)], LARGE),
        ([machine("t", T4)], NodeGpu("nvidia-tesla-t4")),
        ([machine("t", T4), machine("l", L4)], None),  # which is smaller? nobody says
        ([machine("t", T4), machine("h", H100)], LARGE),
        ([machine("a", {**A100, MEMORY: "much"})], NodeGpu("NVIDIA-A100-SXM4-40GB")),
        ([machine("a", {**A100, GKE: "nvidia-tesla-a100"})], SMALL),
    ],
)
def test_the_smallest_gpu_that_any_fitting_node_tells_of(nodes: list[Object], gpu: NodeGpu | None) -> None:
    assert chosen(nodes) == gpu


def affine(*expressions: Object, **more: Any) -> Object:
    terms = [{"matchExpressions": list(expressions), **more}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"podTemplate": {"affinity": {"nodeAffinity": required}}}


@pytest.mark.parametrize(
    ("placed", "gpu"),
    [
        ({"podTemplate": {"nodeSelector": {"zone": "b"}}}, LARGE),
        ({"podTemplate": {"nodeSelector": {"zone": "x"}}}, None),
        ({"podTemplate": {"labels": {"zone": "b"}}}, SMALL),
        (affine({"key": "zone", "operator": "In", "values": ["b", "c"]}), LARGE),
        (affine({"key": "zone", "operator": "NotIn", "values": ["a"]}), LARGE),
        (affine({"key": "spot", "operator": "DoesNotExist"}), SMALL),
        (affine({"key": "spot", "operator": "Exists"}), None),
        (affine({"key": MEMORY, "operator": "Gt", "values": ["50000"]}), LARGE),
        (affine({"key": MEMORY, "operator": "Lt", "values": ["50000"]}), SMALL),
        (affine({"key": "zone", "operator": "Gt", "values": ["50000"]}), None),
        (affine({"key": "zone", "operator": "Resembles"}), None),
        (affine(matchFields=[{"key": "metadata.name", "operator": "In", "values": ["h"]}]), LARGE),
        (affine(), None),  # an empty term is met by no node
        ({"podTemplate": {"affinity": {"podAntiAffinity": {}}}}, SMALL),
    ],
)
def test_nodes_that_the_job_may_not_use_are_not_reckoned_with(placed: Object, gpu: NodeGpu | None) -> None:
    assert chosen(MIXED, **placed) == gpu


def test_a_job_without_gpus_looks_for_none() -> None:
    assert chosen(MIXED, resourcesPerNode={"limits": {"cpu": 2}}) is None

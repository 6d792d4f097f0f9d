"""What a job's machine has: by a stated type, by the nodes' labels, by a selector, or assumed and called so."""

from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_trainer.prepare.plan.gpus import GIB, GPUS, find
from finetune_trainer.prepare.plan.machine import NO_HINT, GpuHint, gpu_hint, machine_of
from tests.unit.test_planner import job

# as NVIDIA's and AMD's feature discovery, GKE and people write them
NAMES = {
    "NVIDIA-A100-SXM4-80GB": "A100-80GB",
    "NVIDIA-A100-SXM4-40GB": "A100-40GB",
    "NVIDIA-A100-PCIE-40GB": "A100-40GB",
    "A100-80GB": "A100-80GB",
    "a100 80gb": "A100-80GB",
    "A100": "A100-40GB",
    "NVIDIA-H100-80GB-HBM3": "H100-80GB",
    "NVIDIA-H100-PCIe": "H100-PCIe",
    "NVIDIA-H100-NVL": "H100-NVL",
    "NVIDIA-H200": "H200-141GB",
    "nvidia-h200-141gb": "H200-141GB",
    "Tesla-T4": "T4",
    "nvidia-tesla-t4": "T4",
    "nvidia-tesla-a100": "A100-40GB",
    "nvidia-a100-80gb": "A100-80GB",
    "nvidia-h100-mega-80gb": "H100-80GB",
    "Tesla-V100-SXM2-32GB": "V100-32GB",
    "NVIDIA-L40S": "L40S",
    "NVIDIA-L4": "L4",
    "NVIDIA-A10G": "A10G",
    "NVIDIA-A10": "A10",
    "NVIDIA-GeForce-RTX-4090": "RTX-4090",
    "NVIDIA-RTX-A6000": "A6000",
    "NVIDIA-RTX-6000-Ada-Generation": "RTX-6000-Ada",
    "AMD_Instinct_MI300X_OAM": "MI300X",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_product_name_is_found_in_the_table(name: str, expected: str) -> None:
    found = find(name)
    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize("name", ["H1000", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "gpu", "", "potato"])
def test_what_is_no_whole_gpu_of_the_table_is_unknown(name: str) -> None:
    assert find(name) is None


def test_every_gpu_of_the_table_has_a_source_and_is_found_by_its_own_name() -> None:
    for gpu in GPUS:
        assert gpu.source
        assert gpu.teraflops > 0
        assert find(gpu.name) == gpu


def gpu_job(**spec: Any) -> Any:
    return job(**{"resourcesPerNode": {"limits": {"nvidia.com/gpu": 4, "memory": "256Gi"}}} | spec)


def test_a_stated_type_wins() -> None:
    machine = machine_of(gpu_job(gpuType="A100-80GB"), GpuHint("NVIDIA-L4", 23034))
    assert (machine.memory_bytes, machine.assumed, machine.processes) == (80 * GIB, False, 4)
    assert machine.source == "spec.gpuType A100-80GB"
    assert machine.host_bytes == 64 * GIB


def test_an_unknown_type_is_refused_with_what_was_meant() -> None:
    with pytest.raises(SpecError, match=r"spec\.gpuType: is 'H1000'.*did you mean H100-80GB") as refused:
        machine_of(gpu_job(gpuType="H1000"))
    assert refused.value.problems[0].code == "UnknownGPU"


def test_labels_of_the_nodes_come_next_with_their_own_memory() -> None:
    hint = gpu_hint({"FINETUNE_GPU_PRODUCT": "NVIDIA-A100-SXM4-80GB", "FINETUNE_GPU_MEMORY_MIB": "81920"})
    machine = machine_of(gpu_job(), hint)
    assert (machine.memory_bytes, machine.gpu and machine.gpu.name) == (80 * GIB, "A100-80GB")
    unknown = machine_of(gpu_job(), GpuHint("Some-New-GPU", 50_000))
    assert (unknown.memory_bytes, unknown.assumed) == (50_000 << 20, False)


def test_a_node_selector_names_the_gpu() -> None:
    selector = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    machine = machine_of(gpu_job(podTemplate={"nodeSelector": selector}))
    assert machine.gpu is not None
    assert (machine.gpu.name, machine.assumed) == ("L4", False)


def test_without_any_of_them_little_memory_is_assumed_and_called_so() -> None:
    machine = machine_of(gpu_job())
    assert (machine.memory_bytes, machine.assumed) == (16 * GIB, True)
    assert "assumed" in machine.source


def test_ranks_share_what_there_is() -> None:
    shared = machine_of(gpu_job(gpuType="A100-80GB", processesPerNode=8))
    assert (shared.memory_bytes, shared.processes) == (40 * GIB, 8)
    cpu = machine_of(job(resourcesPerNode={"limits": {"memory": "8Gi", "cpu": 4}}, processesPerNode=2))
    assert (cpu.device, cpu.memory_bytes, cpu.cores, cpu.unit) == ("cpu", 4 * GIB, 2.0, "rank")


@pytest.mark.parametrize("memory", ["", "many", "-1"])
def test_a_hint_that_is_no_number_is_none(memory: str) -> None:
    assert gpu_hint({"FINETUNE_GPU_MEMORY_MIB": memory}) == NO_HINT


def test_a_gpu_without_bfloat16_trains_in_float16() -> None:
    from tests.unit.test_planner import planned

    limits = {"limits": {"nvidia.com/gpu": 1}}
    assert planned(gpuType="T4", resourcesPerNode=limits).training == {"fp16": True}
    with pytest.raises(SpecError, match="a T4 has no bfloat16"):
        planned(gpuType="T4", resourcesPerNode=limits, training={"bf16": True})

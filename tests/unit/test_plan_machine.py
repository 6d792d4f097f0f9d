"""What a job's machine has: by a stated type, by the nodes' labels, by a selector, or assumed and called so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_trainer.prepare.plan.gpus import GIB, GPUS, find_gpu
from finetune_trainer.prepare.plan.here import hint_of, look
from finetune_trainer.prepare.plan.machine import NO_HINT, GpuHint, Here, gpu_hint, machine_of
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
    found = find_gpu(name)
    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize("name", ["H1000", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "gpu", "", "potato"])
def test_what_is_no_whole_gpu_of_the_table_is_unknown(name: str) -> None:
    assert find_gpu(name) is None


def test_every_gpu_of_the_table_has_a_source_and_is_found_by_its_own_name() -> None:
    for gpu in GPUS:
        assert gpu.source
        assert gpu.teraflops > 0
        assert find_gpu(gpu.name) == gpu


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
    assert planned(gpuType="T4", resourcesPerNode=limits).engine.training == {"fp16": True}
    with pytest.raises(SpecError, match="a T4 has no bfloat16"):
        planned(gpuType="T4", resourcesPerNode=limits, training={"bf16": True})


def test_memory_is_the_drivers_and_not_the_data_sheets() -> None:
    known = {gpu.name: gpu.memory_mib for gpu in GPUS}
    reported = {"T4": 15360, "L4": 23034, "A10G": 23028, "A100-80GB": 81920, "H100-80GB": 81559, "H200-141GB": 143771}
    assert {name: known[name] for name in reported} == reported


HERE = Here(64 * GIB, 8.0)


def test_on_this_machine_what_the_job_leaves_out_is_looked_at() -> None:
    machine = machine_of(job(), GpuHint(here=HERE))
    assert (machine.memory_bytes, machine.cores, machine.assumed) == (int(0.9 * 64 * GIB), 8.0, False)
    shared = machine_of(job(nodes=2), GpuHint(here=HERE))
    assert (shared.memory_bytes, shared.cores) == (int(0.9 * 64 * GIB) // 2, 4.0)
    stated = machine_of(job(resourcesPerNode={"limits": {"memory": "8Gi", "cpu": 2}}), GpuHint(here=HERE))
    assert (stated.memory_bytes, stated.cores, stated.source) == (8 * GIB, 2.0, "stated")


def test_gpus_of_this_machine_are_planned_with() -> None:
    gpus = (("NVIDIA L4", 23034), ("NVIDIA L4", 23034))
    machine = machine_of(job(), GpuHint(here=replace(HERE, gpus=gpus)))
    assert (machine.device, machine.processes, machine.memory_bytes) == ("gpu", 2, 23034 << 20)
    assert machine.gpu is not None
    assert (machine.gpu.name, machine.source) == ("L4", "NVIDIA L4, of this machine")
    assert machine.host_bytes == int(0.9 * 64 * GIB) // 2


GROUPS = {
    "version 2, a limit of its own": (
        "0::/pod\n",
        {"pod/memory.max": "8589934592\n", "pod/cpu.max": "150000 100000\n"},
    ),
    "version 2, a limit of an outer group": (
        "0::/pod/inner\n",
        {
            "pod/memory.max": "8589934592\n",
            "pod/inner/memory.max": "max\n",
            "pod/cpu.max": "150000 100000\n",
            "pod/inner/cpu.max": "max 100000\n",
        },
    ),
    "version 2, in a container that sees its own group as the root": (
        "0::/kubepods/elsewhere\n",
        {"memory.max": "8589934592\n", "cpu.max": "150000 100000\n"},
    ),
    "version 1": (
        "4:memory:/pod\n2:cpu,cpuacct:/pod\n",
        {
            "memory/pod/memory.limit_in_bytes": "8589934592\n",
            "cpu,cpuacct/pod/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
        },
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_limits_of_the_control_group_count(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    membership, files = GROUPS[name]
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       67108864 kB\nMemFree: 1 kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    for path, content in files.items():
        (groups / path).parent.mkdir(parents=True, exist_ok=True)
        (groups / path).write_text(content)
    found = look({"PATH": ""}, proc, groups)
    assert found == Here(8 * GIB, 1.5)


def test_without_limits_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:       67108864 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    assert look({"PATH": ""}, tmp_path, tmp_path / "none") == Here(64 * GIB, 4.0)


def test_gpus_are_those_of_the_driver_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.prepare.plan.here._built_for_gpus", lambda: True)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\necho 'Tesla T4, 15360'\n")
    program.chmod(0o755)
    environ = {"PATH": str(tmp_path)}
    assert look(environ).gpus == (("NVIDIA L4", 23034), ("Tesla T4", 15360))
    assert look({**environ, "CUDA_VISIBLE_DEVICES": "1"}).gpus == (("Tesla T4", 15360),)
    assert look({**environ, "CUDA_VISIBLE_DEVICES": ""}).gpus == ()


def test_only_a_job_that_runs_here_looks_at_this_machine() -> None:
    assert hint_of({}).here is None
    found = hint_of({"FINETUNE_LOCAL": "1", "PATH": ""}).here
    assert found is not None
    assert found.memory_bytes > 0 < found.cores


@pytest.mark.parametrize("gbps", [0, -1, 100_001, "100"])
def test_a_network_that_cannot_be_is_refused(gbps: Any) -> None:
    with pytest.raises(ValueError, match="interconnectGbps"):
        job(interconnectGbps=gbps)

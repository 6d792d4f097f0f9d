"""What the job's machine has: from its resources, a stated GPU type, the nodes' labels, this machine where the job runs
here (`here.py` looks), or a default. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_api.contract import Env
from finetune_api.errors import SpecError
from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.choice_log import problem
from finetune_trainer.prepare.plan.gpus import GIB, Gpu, find_gpu, similar

DEFAULT_CPU_MEMORY = 4 * GIB  # per rank, where the machine is not visible
DEFAULT_GPU = Gpu("assumed", "", 16384, 60, 40, 4, 300, 3, 100, "the least that GPUs for training have")
PLANNED = 0.9  # of a GPU's memory, or of this machine's, that a plan fills: no prediction is exact
NODE_GPUS = 8  # of the instances in the table of GPUs, whose network it has
CPU_NETWORK_GBPS = 10.0  # between nodes without GPUs, unless the job states it
NODE_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "amd.com/gpu.product-name")


@dataclass(frozen=True)
class Pace:
    """How fast a rank without GPU is. The defaults are of one core of a server; `measured_pace` measures the real ones.

    Attributes:
        operations: floating point operations a second in training.
        layer: seconds a layer and micro-batch take beside them: Python, and starts of kernels.
        token_layer: seconds a layer takes for one token that is generated.
        micro, step: seconds a micro-batch and an optimizer step take beside their arithmetic, in DeepSpeed and Trainer.
        memory: bytes a second that the optimizer streams.
        network: bytes a second between processes of a node, over gloo.
        start: seconds until the first step: imports, the model's weights, the engine.
        measured: whether the values were measured on this machine.
    """

    operations: float = 60e9
    layer: float = 1e-3
    token_layer: float = 5e-4
    micro: float = 0.02
    step: float = 0.03
    memory: float = 20e9
    network: float = 1e9
    start: float = 0.0
    measured: bool = False


@dataclass(frozen=True)
class Here:
    """What this machine has, within the limits of this process's control group.

    Attributes:
        gpus: product and MiB of each GPU, as the driver names them.
    """

    memory_bytes: int
    cores: float
    gpus: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class GpuHint:
    """What is known beside the job itself: the GPUs of the nodes that it may use, as their labels tell; or the machine
    at hand, where the job runs here."""

    product: str = ""
    memory_mib: int = 0
    here: Here | None = None


NO_HINT = GpuHint()


def gpu_hint(environ: Mapping[str, str]) -> GpuHint:
    """Return what the operator tells a prepare pod of the GPUs."""
    memory = environ.get(Env.GPU_MEMORY_MIB, "")
    return GpuHint(environ.get(Env.GPU_PRODUCT, ""), int(memory) if memory.isdigit() else 0)


@dataclass(frozen=True)
class Machine:
    """What one rank may use.

    Attributes:
        memory_bytes: of the GPU, or of a rank's share of the node's memory.
        source: where that is known from, as the end of "... per rank (...)".
        assumed: whether it is a default.
        host_bytes: a rank's share of the node's memory beside its GPU; 0 where the job does not say.
        cores: a rank's share of the node's.
        gpus: of a node; they are paid for, whether a rank uses them or not.
        network: of a node to other nodes, Gbit a second.
        network_source: where that is known from.
    """

    device: Literal["cpu", "gpu"]
    memory_bytes: int
    source: str
    assumed: bool
    nodes: int
    processes: int
    gpu: Gpu | None = None
    host_bytes: int = 0
    cores: float = 2.0
    gpus: int = 0
    network: float = 100.0
    network_source: str = "assumed"
    pace: Pace = Pace()

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes

    @property
    def unit(self) -> str:
        """What a rank runs on."""
        return "GPU" if self.device == "gpu" else "rank"

    @property
    def usable_bytes(self) -> int:
        """What a plan fills of it: of a GPU nine tenths."""
        return int(self.memory_bytes * PLANNED) if self.device == "gpu" else self.memory_bytes


def machine_of(job: FineTuneJob, hint: GpuHint = NO_HINT) -> Machine:
    """Return the machine that the job describes; in local mode, this machine fills in what the job leaves out.

    Raises:
        SpecError: `spec.gpuType` names no GPU that is known.
    """
    spec, here = job.spec, hint.here
    limits = spec.resources_per_node.limits
    stated = [int(parse_quantity(count)) for name, count in limits.items() if name.endswith("/gpu")]
    gpus = sum(stated) if stated or here is None else len(here.gpus)
    processes = spec.processes_per_node or max(1, gpus)
    ranks = processes * (spec.nodes if here else 1)  # of this machine: its "nodes" share it
    memory = int(parse_quantity(limits["memory"])) // processes if "memory" in limits else 0
    source = "stated"
    if not memory and here:
        memory, source = int(here.memory_bytes * PLANNED) // ranks, "nine tenths of this machine's, shared"
    cores = here.cores / ranks if here else 2.0
    cores = float(parse_quantity(limits["cpu"])) / processes if "cpu" in limits else cores
    if gpus:
        gpu, bytes_each, gpu_source, assumed = _gpu(job, hint)
        shared = -(-processes // gpus) * (spec.nodes if here else 1)  # ranks on one GPU
        network, network_source = _network(job, gpu.network * min(1.0, gpus / NODE_GPUS), gpu.source)
        return Machine(
            "gpu",
            bytes_each // shared,
            gpu_source,
            assumed,
            spec.nodes,
            processes,
            gpu,
            host_bytes=memory,
            cores=cores,
            gpus=gpus,
            network=network,
            network_source=network_source,
        )
    assumed = not memory
    if assumed:
        memory, source = DEFAULT_CPU_MEMORY, "assumed; state resourcesPerNode.limits.memory"
    network, network_source = _network(job, CPU_NETWORK_GBPS, "assumed; state spec.interconnectGbps")
    return Machine(
        "cpu",
        memory,
        source,
        assumed,
        spec.nodes,
        processes,
        cores=cores,
        network=network,
        network_source=network_source,
        pace=Pace(operations=Pace.operations * cores),
    )


def _network(job: FineTuneJob, usual: float, source: str) -> tuple[float, str]:
    stated = job.spec.interconnect_gbps
    return (stated, "spec.interconnectGbps") if stated is not None else (usual, source)


def _gpu(job: FineTuneJob, hint: GpuHint) -> tuple[Gpu, int, str, bool]:
    if stated := job.spec.gpu_type:
        gpu = find_gpu(stated)
        if gpu is None:
            message = f"is {stated!r}, which is not a GPU that the plan knows"
            raise SpecError(
                problem("UnknownGPU", "spec.gpuType", message, f"did you mean {' or '.join(similar(stated))}?")
            )
        return gpu, gpu.memory_bytes, f"spec.gpuType {stated}", False
    selector = job.spec.pod_template.node_selector if job.spec.pod_template else {}
    names = [(hint.product, "labels of the nodes"), *((selector.get(label, ""), label) for label in NODE_LABELS)]
    for name, source in names:
        gpu = find_gpu(name) if name else None
        if gpu:
            own = hint.memory_mib << 20 if name == hint.product else 0
            return gpu, own or gpu.memory_bytes, f"{name}, {source}", False
    if hint.memory_mib:
        return DEFAULT_GPU, hint.memory_mib << 20, "labels of the nodes", False
    if hint.here and hint.here.gpus:
        product, mib = min(hint.here.gpus, key=lambda gpu: gpu[1])
        return find_gpu(product) or DEFAULT_GPU, mib << 20, f"{product}, of this machine", False
    return DEFAULT_GPU, DEFAULT_GPU.memory_bytes, "assumed; set spec.gpuType", True

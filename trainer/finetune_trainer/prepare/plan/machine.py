"""What the job's machine has: from its resources, a stated GPU type, the nodes' labels, or a default. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_api.contract import Env
from finetune_api.errors import SpecError
from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.gpus import GIB, Gpu, find, similar
from finetune_trainer.prepare.plan.ledger import problem

DEFAULT_CPU_MEMORY = 4 * GIB  # per rank
DEFAULT_GPU = Gpu("assumed", "", 16, 60, 300, 12, "the least that GPUs for training have")
NODE_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "amd.com/gpu.product-name")


@dataclass(frozen=True)
class GpuHint:
    """What is known of the GPUs beside the job itself: of the nodes that it may use, as their labels tell."""

    product: str = ""
    memory_mib: int = 0


NO_HINT = GpuHint()


def gpu_hint(environ: Mapping[str, str]) -> GpuHint:
    """What the operator passes to a prepare pod."""
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

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes

    @property
    def unit(self) -> str:
        """What a rank runs on."""
        return "GPU" if self.device == "gpu" else "rank"


def machine_of(job: FineTuneJob, hint: GpuHint = NO_HINT) -> Machine:
    """The machine that the job describes.

    Raises:
        SpecError: `spec.gpuType` names no GPU that is known.
    """
    spec = job.spec
    limits = spec.resources_per_node.limits
    gpus = sum(int(parse_quantity(count)) for name, count in limits.items() if name.endswith("/gpu"))
    processes = spec.processes_per_node or max(1, gpus)
    memory = int(parse_quantity(limits["memory"])) // processes if "memory" in limits else 0
    cores = float(parse_quantity(limits["cpu"])) / processes if "cpu" in limits else 2.0
    if gpus:
        gpu, bytes_each, source, assumed = _gpu(job, hint)
        shared = -(-processes // gpus)  # ranks on one GPU
        return Machine(
            "gpu",
            bytes_each // shared,
            source,
            assumed,
            spec.nodes,
            processes,
            gpu,
            host_bytes=memory,
            cores=cores,
            gpus=gpus,
        )
    if memory:
        source, assumed = "stated", False
    else:
        memory, source, assumed = DEFAULT_CPU_MEMORY, "assumed; state resourcesPerNode.limits.memory", True
    return Machine("cpu", memory, source, assumed, spec.nodes, processes, cores=cores)


def _gpu(job: FineTuneJob, hint: GpuHint) -> tuple[Gpu, int, str, bool]:
    if stated := job.spec.gpu_type:
        found = find(stated)
        if found is None:
            message = f"is {stated!r}, which is no GPU that the plan knows"
            raise SpecError(
                problem("UnknownGPU", "spec.gpuType", message, f"did you mean {' or '.join(similar(stated))}?")
            )
        return found, found.memory_bytes, f"spec.gpuType {stated}", False
    selector = job.spec.pod_template.node_selector if job.spec.pod_template else {}
    names = [(hint.product, "labels of the nodes"), *((selector.get(label, ""), label) for label in NODE_LABELS)]
    for name, source in names:
        found = find(name) if name else None
        if found:
            own = hint.memory_mib << 20 if name == hint.product else 0
            return found, own or found.memory_bytes, f"{name}, {source}", False
    if hint.memory_mib:
        return DEFAULT_GPU, hint.memory_mib << 20, "labels of the nodes", False
    return DEFAULT_GPU, DEFAULT_GPU.memory_bytes, "assumed; set spec.gpuType", True

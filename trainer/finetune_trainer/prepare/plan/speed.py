"""How long a step takes, roughly: arithmetic, memory and network at stated speeds, one after the other. Pure.

Arithmetic: 2 operations a weight and token forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), of
which frozen weights need the half that leads to their inputs. Volumes of collectives: ZeRO paper (arXiv 1910.02054,
section 7). The order of two layouts can be trusted more than the seconds: on GPUs none of it was measured by us.
"""

import math
from dataclasses import dataclass

from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.architecture import Kind
from finetune_trainer.prepare.plan.load import Load
from finetune_trainer.prepare.plan.machine import DEFAULT_GPU, Machine

UTILISATION = 0.4  # of a GPU's dense peak; the Llama 3 paper (arXiv 2407.21783, table 4) reports 0.38 to 0.43 on H100
KERNELS = 60  # launches per layer, forward and backward
LAUNCH = 10e-6  # seconds each; why few large micro-batches are faster than many small ones
NETWORK = 12.5e9  # bytes a second between nodes: 100 Gbit
HOST_LINK = 20e9  # bytes a second between a GPU and its node's memory: PCIe 4, pinned
CPU_CORE = 60e9  # operations a second in float32, of one core in matrix products
CPU_NETWORK = 1e9  # bytes a second between nodes without GPUs, or between processes over gloo
HOST_MEMORY = 20e9  # bytes a second that a process streams through its memory
ADAM_BYTES = 28  # read and written per trained parameter in a step: gradient, master copy, two moments, weight
DEQUANTIZED = 1.3  # time of a product with 4-bit weights against 16 bits: they are unpacked in every use


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step, by what it waits for."""

    arithmetic: float
    network: float
    optimizer: float
    offload: float

    @property
    def seconds(self) -> float:
        """The step."""
        return self.arithmetic + self.network + self.optimizer + self.offload


def step_speed(load: Load, machine: Machine, tokens: float) -> Speed:
    """The time of a step.

    Args:
        tokens: of a row on average, with its padding; `load.tokens` is the longest row's.
    """
    return Speed(
        arithmetic=load.accumulation * (_arithmetic(load, machine, tokens) + _launches(load)),
        network=_network(load, machine),
        optimizer=0.0 if load.offload_optimizer else _adam(load, machine.gpu.bandwidth * 1e9 if machine.gpu else 0),
        offload=_offload(load),
    )


def _arithmetic(load: Load, machine: Machine, tokens: float) -> float:
    shape, rows = load.architecture, load.micro * tokens
    matrices = shape.matrices() or shape.parameters
    adapter = 0 if load.method is MethodType.FULL else load.trained
    backward = 4 * matrices if load.method is MethodType.FULL else 2 * matrices + 4 * adapter
    forward = 2 * (matrices + adapter)
    scores = 4 * shape.layers * tokens * shape.hidden  # of a token: products of query and key, and with value
    passes = 2 if load.recomputed else 1
    backward += 2 * shape.head if load.chunked else 0  # its product is made again
    operations = rows * (passes * (forward + scores) + backward + 2 * scores)
    slower = DEQUANTIZED if load.method is MethodType.QLORA else 1.0
    if machine.gpu:
        rate = machine.gpu.teraflops * 1e12 * (UTILISATION if shape.weight_bytes == 2 else UTILISATION / 4)
        return slower * operations / rate
    return slower * operations / (CPU_CORE * machine.cores)


def _launches(load: Load) -> float:
    passes = 4 / 3 if load.recomputed else 1.0
    return load.architecture.layers * KERNELS * LAUNCH * passes


def _network(load: Load, machine: Machine) -> float:
    """A ring moves (w - 1) / w of a tensor's bytes through every rank for a reduction or a gathering."""
    world = load.world_size
    if world == 1:
        return 0.0
    inside = machine.gpu.link * 1e9 if machine.gpu else CPU_NETWORK
    between = NETWORK if machine.gpu else CPU_NETWORK
    bandwidth = min(inside, between) if machine.nodes > 1 else inside
    width, share = load.architecture.weight_bytes, (world - 1) / world
    gradients = load.trained * width
    if load.zero_stage <= 1:
        moved = 2 * gradients  # reduced and gathered, once a step
    elif load.zero_stage == 2:
        moved = gradients * (load.accumulation + 1)  # reduced after every micro-batch
    else:
        weights = load.parameters * width * (3 if load.recomputed else 2)  # gathered in every pass
        moved = load.accumulation * (gradients + weights)
    return share * moved / bandwidth


def _adam(load: Load, bandwidth: float) -> float:
    share = load.trained / (load.world_size if load.zero_stage else 1)
    return share * ADAM_BYTES / (bandwidth or HOST_MEMORY)


def _offload(load: Load) -> float:
    seconds = 0.0
    width = load.architecture.weight_bytes
    if load.offload_optimizer:
        share = load.trained / load.world_size
        seconds += share * width * (load.accumulation + 1) / HOST_LINK + share * ADAM_BYTES / HOST_MEMORY
    if load.offload_parameters:
        passes = 3 if load.recomputed else 2
        seconds += load.accumulation * passes * load.parameters / load.world_size * width / HOST_LINK
    return seconds


def flops_per_token(load: Load, tokens: float, labelled: float) -> float:
    """Floating point operations that a token takes by the model's own arithmetic, forward and backward.

    PaLM paper (arXiv 2204.02311), appendix B: 6 N + 12 L H Q T, here with 2 N for a forward pass, 2 N for the gradients
    of inputs, and 2 for each trained weight's own: 4 N + 6 A for an adapter of A weights. What is recomputed does not
    count, causal masks are not counted as half, and of N are: matrices alone, the head for labelled tokens only.

    Args:
        tokens: of a row on average: what its tokens attend to.
        labelled: share of the tokens that carry loss.
    """
    shape = load.architecture
    head = sum(part.inputs * part.outputs for part in shape.parts if part.kind is Kind.HEAD)
    matrices = (shape.matrices() or shape.parameters) - (1 - min(1.0, labelled)) * head
    scores = 12 * shape.layers * shape.hidden * tokens
    if load.method is MethodType.FULL:
        return matrices * (4 + 2 * min(1.0, load.trained / max(1, shape.parameters))) + scores
    return 4 * matrices + 6 * load.trained + scores


def peak_flops(load: Load, machine: Machine) -> float:
    """Operations a second of one rank's share of its GPU, dense, in 16 bits; 0 where they are not known."""
    if machine.gpu is None or machine.gpu is DEFAULT_GPU or load.architecture.weight_bytes != 2:
        return 0.0
    return machine.gpu.teraflops * 1e12 * min(1.0, machine.gpus / machine.processes)


def hours(step_seconds: float, steps: int) -> float:
    """Wall time of a run's steps."""
    return step_seconds * steps / 3600


def rounded(value: float) -> float:
    """Three significant digits: more would claim what nobody knows."""
    return 0.0 if value == 0 else round(value, max(0, 2 - math.floor(math.log10(abs(value)))))

"""How long a step takes, roughly: arithmetic, what is not hidden of the network, the optimizer and offload. Pure.

Arithmetic: 2 operations a weight and token forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), of
which frozen weights need the half that leads to their inputs. Volumes of collectives: ZeRO paper (arXiv 1910.02054,
section 7). The order of two layouts can be trusted more than the seconds: on GPUs none of it was measured by us; the
constants are fitted to what others publish, named beside each.
"""

import math
from dataclasses import dataclass

from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.architecture import PartKind
from finetune_trainer.prepare.plan.gpus import Gpu
from finetune_trainer.prepare.plan.machine import DEFAULT_GPU, Machine
from finetune_trainer.prepare.plan.rank_load import Load

# Bytes through a GPU's memory for each operation, beside the products themselves: norms, activations, residuals. Fitted
# to full training of a LLaMA of 7 billion in bfloat16 (foundation-model-stack/fms-fsdp, README): 3,700 tokens a second
# on an A100, 7,500 on an H100, which are 173 and 351 TFLOP/s. With it the A100 is predicted 6 % slower, the H100 7 %
# faster; and an L4, with half the bandwidth of an A10G, is the slower one of the two.
MOVED = 0.0046
# Time against training all weights. LoRA: Qwen-7B on an A100, 5.2 s for 16,384 tokens (148 TFLOP/s). QLoRA: 7.0 s, and
# 59.5 s with 72 billion (110 and 123 TFLOP/s) (QwenLM/Qwen, README, "Profiling of Memory and Speed").
SLOWER = {MethodType.FULL: 1.0, MethodType.LORA: 1.1, MethodType.QLORA: 1.45}
# Seconds that a CPU needs to launch a layer's kernels, forward and backward: a GPU that is faster waits. The same table
# at 256 tokens: 1.8 and 7 billion with LoRA 1.0 and 1.2 s for 8 rows. All weights: an estimate.
LAUNCHES = {MethodType.FULL: 1.5e-3, MethodType.LORA: 3.7e-3, MethodType.QLORA: 5.5e-3}
SHARDED_LAUNCHES = 4e-3  # more of it for the hooks of ZeRO-3; the same table, all weights of 1.8 billion: 2.1 s
# Of the network's time that may pass behind arithmetic: DeepSpeed 0.19.8 overlaps communication from stage 3 on
# (overlap_comm in its runtime/zero/config.py). How much is an estimate: Qwen-72B with LoRA and ZeRO-3 (the same table)
# shows next to nothing at 2,048 tokens, and all of it at 8,192.
HIDDEN = 0.5
REACHED = 0.85  # of a network's stated rate: NVIDIA/nccl-tests#119 sees 84.8 GB/s on average on 4 x 200 Gbit/s
HOST_LINK = 20e9  # bytes a second between a GPU and its node's memory: PCIe 4, pinned
HOST_MEMORY = 20e9  # bytes a second that a process streams through its memory
STEPPED_BYTES = 12  # read and written per trained parameter in a step, beside states: gradient, master copy, weight
ADAM_BYTES = STEPPED_BYTES + 2 * 8  # with two moments


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step, by what it waits for; `network` is what arithmetic does not hide."""

    arithmetic: float
    network: float
    optimizer: float
    offload: float
    overhead: float = 0.0

    @property
    def seconds(self) -> float:
        """The step."""
        return self.arithmetic + self.network + self.optimizer + self.offload + self.overhead


def step_speed(load: Load, machine: Machine, tokens: float) -> Speed:
    """Return the time of a step.

    Args:
        tokens: of a sequence on average, with its padding; `load.tokens` is the longest one's.
    """
    arithmetic = load.accumulation * micro_seconds(load, machine, tokens)
    return Speed(
        arithmetic=arithmetic,
        network=_exposed(load, machine, arithmetic),
        optimizer=0.0 if load.offload_optimizer else _optimizer(load, machine),
        offload=_offload(load),
        overhead=machine.pace.step if machine.gpu is None else 0.0,
    )


def rate(gpu: Gpu, method: MethodType, weight_bytes: int) -> float:
    """Return the operations a second that training reaches on a GPU."""
    narrow = weight_bytes == 2
    product = 1 / ((gpu.matmul if narrow else gpu.float32) * 1e12)
    moved = (MOVED if narrow else 2 * MOVED) / (gpu.bandwidth * 1e9)
    return 1 / ((product + moved) * SLOWER[method])


def forward_rate(load: Load, machine: Machine) -> float:
    """Return operations a second of a forward pass."""
    if machine.gpu:
        return rate(machine.gpu, load.method, load.architecture.weight_bytes)
    return machine.pace.operations


def operations(load: Load, tokens: float) -> float:
    """Return the floating point operations of a micro-batch, forward and backward, with all recomputation."""
    shape, rows = load.architecture, load.micro * load.sequences * tokens
    matrices = shape.matrices or shape.parameters
    adapter = 0 if load.method is MethodType.FULL else load.active_trained
    backward = 4 * matrices if load.method is MethodType.FULL else 2 * matrices + 4 * adapter
    forward = 2 * (matrices + adapter)
    scores = 4 * shape.layers * tokens * shape.hidden  # of a token: products of query and key, and with value
    passes = 2 if load.recomputed else 1
    backward += 2 * shape.head if load.chunked else 0  # its product is made again
    folded = load.kept.folded * (passes + 2)  # the adapters of experts: a product forward, two of its size backward
    return rows * ((passes + load.beside) * (forward + scores) + backward + 2 * scores) + folded


def micro_seconds(load: Load, machine: Machine, tokens: float) -> float:
    """Return the time of one micro-batch, forward and backward."""
    shape = load.architecture
    passes = 4 / 3 if load.recomputed else 1.0
    if machine.gpu is None:
        pace = machine.pace
        return operations(load, tokens) / pace.operations + shape.layers * pace.layer * passes + pace.micro
    launches = LAUNCHES[load.method] + (SHARDED_LAUNCHES if load.zero_stage == 3 else 0)
    counted = operations(load, tokens) / rate(machine.gpu, load.method, shape.weight_bytes)
    return max(counted, shape.layers * launches * passes)  # one waits for the other


def bandwidth(machine: Machine) -> float:
    """Return bytes a second that a ring of all ranks moves through each of them."""
    between = machine.network * 1e9 / 8 * REACHED
    if machine.gpu is None:
        return machine.pace.network if machine.nodes == 1 else min(machine.pace.network, between)
    inside = machine.gpu.link * 1e9
    return inside if machine.nodes == 1 else min(inside, between)


def _exposed(load: Load, machine: Machine, arithmetic: float) -> float:
    """Return the seconds of communication that arithmetic does not hide."""
    world = load.world_size
    if world == 1:
        return 0.0
    width, share = load.architecture.weight_bytes, (world - 1) / world
    gradients = load.trained * width
    if load.zero_stage <= 1:
        moved = 2 * gradients  # reduced and gathered, once a step
    elif load.zero_stage == 2:
        moved = gradients * (load.accumulation + 1)  # reduced after every micro-batch
    else:
        weights = load.parameters * width * (3 if load.recomputed else 2)  # gathered in every pass
        moved = load.accumulation * (gradients + weights)
    seconds = share * moved / bandwidth(machine)
    return seconds - min(HIDDEN * seconds, arithmetic) if load.zero_stage == 3 and machine.gpu else seconds


def _stepped_bytes(load: Load) -> float:
    """Return bytes that a step of the optimizer moves per trained parameter: states are read and written."""
    return STEPPED_BYTES + 2 * load.optimizer.state_bytes


def _optimizer(load: Load, machine: Machine) -> float:
    share = load.trained / (load.world_size if load.zero_stage else 1)
    return share * _stepped_bytes(load) / (machine.gpu.bandwidth * 1e9 if machine.gpu else machine.pace.memory)


def _offload(load: Load) -> float:
    seconds = 0.0
    width = load.architecture.weight_bytes
    if load.offload_optimizer:
        share = load.trained / load.world_size
        seconds += share * width * (load.accumulation + 1) / HOST_LINK + share * _stepped_bytes(load) / HOST_MEMORY
    if load.offload_parameters:
        passes = 3 if load.recomputed else 2
        seconds += load.accumulation * passes * load.parameters / load.world_size * width / HOST_LINK
    return seconds


def flops_per_token(load: Load, tokens: float, labelled: float) -> float:
    """Return floating point operations that a token takes by the model's own arithmetic, forward and backward.

    PaLM paper (arXiv 2204.02311), appendix B: 6 N + 12 L H Q T, here with 2 N for a forward pass, 2 N for the gradients
    of inputs, and 2 for each trained weight's own: 4 N + 6 A for an adapter of A weights. What is recomputed does not
    count, causal masks are not counted as half, and of N are: matrices alone, of experts those of a token, the head for
    labelled tokens only.

    Args:
        tokens: of a sequence on average: what its tokens attend to.
        labelled: share of the tokens that carry loss.
    """
    shape = load.architecture
    head = sum(part.inputs * part.outputs for part in shape.parts if part.kind is PartKind.HEAD)
    matrices = (shape.matrices or shape.parameters) - (1 - min(1.0, labelled)) * head
    scores = 12 * shape.layers * shape.hidden * tokens
    if load.method is MethodType.FULL:
        return matrices * (4 + 2 * min(1.0, load.trained / max(1, shape.parameters))) + scores
    return 4 * matrices + 6 * load.active_trained + scores


def peak_flops(load: Load, machine: Machine) -> float:
    """Return operations a second of one rank's share of its GPU, dense, in 16 bits; 0 if unknown."""
    if machine.gpu is None or machine.gpu is DEFAULT_GPU or load.architecture.weight_bytes != 2:
        return 0.0
    return machine.gpu.teraflops * 1e12 * min(1.0, machine.gpus / machine.processes)


def rounded(value: float) -> float:
    """Round to three significant digits: the estimates are not more exact."""
    return 0.0 if value == 0 else round(value, max(0, 2 - math.floor(math.log10(abs(value)))))

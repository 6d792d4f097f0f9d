"""How much memory one rank needs, by component, with the reason of each number. Pure.

Sharded states: ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3). Activations: counted from the model's own
code (`shape.py`), recomputed ones as in Korthikanti et al. 2022 (arXiv 2205.05198, section 5). 4-bit weights: QLoRA
(Dettmers et al. 2023, arXiv 2305.14314, section 3). A step has three moments in which memory may be at its peak: the
loss (everything kept for the backward pass, and the logits), the end of the backward pass (all gradients, and the
buffers of their reduction), and the optimizer's step (its temporaries). An evaluation is a fourth: no gradients, but
larger batches, and keys and values of the answers. Loading holds no more of a GPU than a step does, and a save copies
what it writes: both are counted in the node's memory. What DeepSpeed and torch hold beside the formulas was read in
their code and measured with benchmarks/memory.py.
"""

import math
from dataclasses import dataclass
from typing import Literal

from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.engine import BUCKET, LIVE, SUB_GROUP
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.memory_reasons import Name, reasons
from finetune_trainer.prepare.plan.rank_load import Load

FULL = 4  # bytes of a float32
NF4_BYTES = (
    0.5 + 0.127 / 8
)  # per weight: 4 bits, and 0.127 bits of its block's constants, quantized twice (QLoRA, section 3)
STAGE_0_BUCKET = 500_000_000  # numbers; engine.py of DeepSpeed, MEMORY_OPT_ALLREDUCE_SIZE
IMPORTS = 1 * GIB  # interpreter, torch and the libraries
STARTED = 100 << 20  # what libraries allocate at first use: threads, autograd, gloo; 69 to 120 MiB measured on CPU
CUDA_CONTEXT = 1 * GIB  # context, cuBLAS workspaces and NCCL's channels; not measured by us
CHUNK = 256 << 20  # bytes of a chunk's logits in float32: CHUNK_BYTES of worker/losses/output_layer.py
EVALUATED = 2  # rows of an evaluation's batch for one of a micro-batch: EVAL_BATCH_FACTOR of worker/arguments.py
ANSWERED = (2048, 8192)  # tokens of a batch of answers: BATCH_TOKENS of worker/evaluation/answers.py
MARGIN = 0.10  # of all that: fragmentation, and what the formulas leave out
HEAP = 0.75  # of activations and logits on CPU: glibc keeps freed blocks below 32 MiB; measured 0.4 to 0.75


Moment = Literal["loss", "backward", "step", "evaluation"]


@dataclass(frozen=True)
class Component:
    """Bytes for one purpose, and the reason for their number."""

    name: Name
    bytes: int
    why: str


@dataclass(frozen=True)
class Memory:
    """The memory of a rank when it needs most.

    Attributes:
        moment: when that is.
        components: what it is for; they add up to `bytes`.
        host: the same for the node's memory beside a GPU, for one rank; empty without GPU.
    """

    moment: Moment
    components: tuple[Component, ...]
    host: tuple[Component, ...] = ()

    @property
    def bytes(self) -> int:
        """The peak."""
        return sum(component.bytes for component in self.components)

    @property
    def host_bytes(self) -> int:
        """The peak of the node's memory, for one rank."""
        return sum(component.bytes for component in self.host)

    def of(self, *names: Name) -> int:
        """Return bytes of some components."""
        return sum(component.bytes for component in self.components if component.name in names)


@dataclass(frozen=True)
class _Moment:
    """Bytes at one moment, where they differ between moments."""

    gradients: float
    temporaries: float  # of the optimizer
    activations: float
    logits: float
    buffers: float

    @property
    def bytes(self) -> float:
        return self.gradients + self.temporaries + self.activations + self.logits + self.buffers


def predict(load: Load) -> Memory:
    """Predict the peak memory of one rank, by component."""
    weights, held, optimizer = _weights(load), _gradients(load), _optimizer(load)
    kept, again, logits = _activations(load)
    gathered, bucket = _gathered(load), _bucket(load)
    reduction = _reduction(load)
    before = held if load.zero_stage == 3 or load.accumulation > 1 else 0.0  # from earlier micro-batches
    always = bucket if load.device == "gpu" or load.zero_stage == 3 else 0.0  # a CPU gives memory when it is written
    moments: dict[Moment, _Moment] = {
        "loss": _Moment(before, 0, kept, logits, gathered + always),
        "backward": _Moment(max(held, before), 0, again, 0, bucket + max(gathered, reduction)),
        "step": _step(load, held, bucket if load.zero_stage == 3 else 0.0),
    }
    if load.evaluated:
        moments["evaluation"] = _Moment(0, 0, *_evaluation(load), gathered + always)
    name = max(moments, key=lambda one: moments[one].bytes)
    most = moments[name]
    sizes = {
        Name.WEIGHTS: weights,
        Name.GRADIENTS: most.gradients,
        Name.OPTIMIZER: optimizer + most.temporaries,
        Name.ACTIVATIONS: most.activations,
        Name.LOGITS: most.logits,
        Name.BUFFERS: most.buffers,
        Name.PROCESS: CUDA_CONTEXT if load.device == "gpu" else IMPORTS + STARTED,
    }
    heap = HEAP * (most.activations + most.logits) if load.device == "cpu" else 0.0
    sizes[Name.MARGIN] = MARGIN * sum(sizes.values()) + heap
    why = reasons(load, name, most.temporaries)
    return Memory(
        moment=name,
        components=tuple(Component(part, math.ceil(size), why[part]) for part, size in sizes.items()),
        host=tuple(_host(load)) if load.device == "gpu" else (),
    )


# ---------------------------------------------------------------- states


def _weights(load: Load) -> float:
    width = load.architecture.weight_bytes
    if load.method is MethodType.QLORA:
        quantized = load.architecture.quantized
        return (quantized * NF4_BYTES + (load.parameters - quantized) * width) / load.ranks(3)
    return 0.0 if load.offload_parameters and load.device == "gpu" else load.parameters * width / load.ranks(3)


def _gradients(load: Load) -> float:
    """Return gradients at the end of a backward pass, in the type of the weights."""
    if load.on_host and load.zero_stage >= 2:
        return 0.0
    return load.trained * load.architecture.weight_bytes / load.ranks(2)


def _optimizer(load: Load) -> float:
    if load.on_host:
        return 0.0
    return load.trained * load.master_bytes / load.ranks(1)


def _step(load: Load, held: float, bucket: float) -> _Moment:
    """Return the copies that the optimizer makes: torch's AdamW two of its tensors on a CPU, one on a GPU, where it
    steps whole lists."""
    copies = FULL * load.optimizer.spec.copies[0 if load.device == "cpu" else 1]
    if load.on_host:
        return _Moment(held, 0, 0, 0, bucket)
    if load.zero_stage == 0:
        largest = min(load.trained, load.architecture.largest) if load.device == "cpu" else load.trained
        converted = load.trained * FULL if load.architecture.weight_bytes < FULL else 0
        return _Moment(held, converted + largest * copies, 0, 0, bucket)
    if load.zero_stage == 3:
        stepped = min(load.trained / load.world_size, SUB_GROUP)
        return _Moment(held, stepped * (FULL + copies), 0, 0, bucket)
    share = load.trained / load.world_size
    return _Moment(share * FULL, share * copies, 0, 0, bucket)  # gradients as one float32 tensor


# ---------------------------------------------------------------- activations


def _activations(load: Load) -> tuple[float, float, float]:
    """Return bytes kept at the loss, bytes of the layer that is recomputed at the end, and bytes of the loss itself."""
    kept, rows, tokens = load.kept, load.micro * load.sequences, load.tokens
    rest, largest = kept.rest.at(tokens) * rows, kept.largest_layer.at(tokens) * rows
    # beside the kept log-probabilities: the gradient of the loss, and its product with them, in float32
    logits = 2.0 * load.logits_bytes
    if load.chunked:
        rest -= kept.head.at(tokens) * rows
        # of one chunk: logits, log-probabilities, and the same two
        logits = 4.0 * min(load.logits_bytes, CHUNK)
    again = largest + 2 * kept.largest_merged  # weights and their gradients
    if load.recomputed and largest:
        inputs = kept.inputs.at(tokens) * rows
        return max(inputs + rest, inputs + again - logits), again, logits
    return kept.layers.at(tokens) * rows + kept.merged + rest, again, logits


def _evaluation(load: Load) -> tuple[float, float]:
    """Return bytes of activations and logits without gradients: of one layer, or of keys and values of answers."""
    least, most = ANSWERED
    width = load.architecture.weight_bytes
    answers = load.architecture.cached * width * min(most, max(least, load.micro * load.tokens))
    sequences = load.evaluated * load.sequences
    activations = load.kept.largest_layer.at(load.tokens) * sequences
    logits = load.logits_of(sequences)
    # float32 logits and their log-probabilities, beside those that the layer made in 16 bits
    copies = 2 + (width / FULL if width < FULL else 0)
    activations += load.kept.largest_merged
    return max(activations, answers if logits else 0), copies * (min(logits, CHUNK) if load.chunked else logits)


# ---------------------------------------------------------------- buffers


def _bucket(load: Load) -> float:
    """Return the buffer in which gradients are collected for a collective."""
    if load.zero_stage == 0:
        return 0.0
    numbers = min(load.trained, BUCKET) if load.device == "cpu" else BUCKET
    return numbers * load.architecture.weight_bytes


def _reduction(load: Load) -> float:
    """Return what a reduction holds beside the bucket."""
    width = load.architecture.weight_bytes
    if load.zero_stage == 0:
        return min(load.trained, STAGE_0_BUCKET) * width
    one = min(load.trained, BUCKET) * width
    if load.zero_stage == 3:
        return 2 * one
    return one if load.world_size > 1 else 0.0


def _gathered(load: Load) -> float:
    """Return bytes of weights that ZeRO-3 has gathered from other ranks: those in use and those prefetched."""
    width = load.architecture.weight_bytes
    dequantized = 0.0
    if load.method is MethodType.QLORA:
        dequantized = load.architecture.largest_quantized * width
    if load.zero_stage < 3:
        return dequantized
    if load.world_size == 1 and not load.offload_parameters:
        return 0.0 if load.method is MethodType.FULL else min(load.parameters, LIVE) * width
    live = min(load.parameters, max(LIVE, load.architecture.largest) + BUCKET)
    return (live + min(load.parameters, max(BUCKET, load.architecture.largest))) * width


def _host(load: Load) -> list[Component]:
    share = load.trained / load.world_size
    parts = [Component(Name.PROCESS, 4 * GIB, "interpreter, libraries and CUDA's host side")]
    if load.offload_optimizer:
        size = share * (load.master_bytes + FULL + load.architecture.weight_bytes + 2 * FULL)
        why = "master copy, moments, float32 gradients, a copy in the type of the weights and two of the step"
        parts.append(Component(Name.OPTIMIZER, math.ceil(size), why))
    if load.offload_parameters:
        size = load.parameters / load.world_size * load.architecture.weight_bytes
        parts.append(Component(Name.WEIGHTS, math.ceil(size), "this rank's share of the weights"))
    width = load.architecture.weight_bytes
    # One tensor at a time is copied: of the trained weights in one piece, as DeepSpeed holds them, or of the states.
    saved = max(load.trained * width / load.ranks(3), share * (0 if load.offload_optimizer else FULL))
    saved += load.trained * width if load.method is not MethodType.FULL else 0
    # Files are mapped, not read (measured: 2 MiB for 325): only weights of another type take memory of their own.
    whole = load.converted and load.zero_stage < 3 and load.method is not MethodType.QLORA
    loaded = load.architecture.parameters * width if whole else 0
    if loaded > saved + sum(part.bytes for part in parts[1:]):
        why = "the model while it is loaded: its files have another number type"
        return [parts[0], Component(Name.WEIGHTS, math.ceil(loaded), why)]
    parts.append(Component(Name.BUFFERS, math.ceil(saved), "a checkpoint while it is copied from the GPU to the disk"))
    return parts

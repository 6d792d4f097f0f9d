"""How much memory one rank needs. Pure: formulas of published papers, no measurement and no I/O.

Sharded states: ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3). Activations: Korthikanti et al. 2022,
arXiv 2205.05198, equation 1 (per layer s*b*h*(34 + 5*a*s/h) bytes in 16 bits) and section 5 (2*s*b*h when recomputed).
"""

from dataclasses import dataclass

OPTIMIZER_BYTES = 12  # per trained parameter: float32 master copy and Adam's two moments
BUSY = 0.8  # share of the memory that is planned with: the rest is fragmentation and what the rule leaves out
PROCESS_BYTES = 1 << 30  # interpreter, torch and its libraries, communication buffers


@dataclass(frozen=True)
class Architecture:
    """The sizes of a transformer that memory depends on."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Load:
    """What one rank holds.

    Attributes:
        parameters: of the whole model, adapter included.
        trained: parameters that get gradients.
        weight_bytes: bytes per weight: 4 in float32, 2 in bfloat16.
        zero_stage: 1 shards optimizer states over the ranks, 2 gradients too, 3 weights too.
        world_size: ranks in all.
        recomputed: whether activations are recomputed in the backward pass.
        predicts_tokens: whether the head has the vocabulary's width (language model) or a few classes.
    """

    architecture: Architecture
    parameters: int
    trained: int
    weight_bytes: int
    zero_stage: int
    world_size: int
    recomputed: bool
    predicts_tokens: bool


def state_bytes(load: Load) -> int:
    """Bytes of weights, gradients and optimizer states on one rank: what does not depend on the batch."""
    weights = load.parameters * load.weight_bytes
    gradients = load.trained * load.weight_bytes
    optimizer = load.trained * OPTIMIZER_BYTES
    if load.zero_stage >= 1:
        optimizer //= load.world_size
    if load.zero_stage >= 2:
        gradients //= load.world_size
    if load.zero_stage >= 3:
        weights //= load.world_size
    return PROCESS_BYTES + weights + gradients + optimizer


def row_bytes(load: Load, tokens: int) -> int:
    """Bytes of activations that one more row of `tokens` in the micro-batch costs."""
    shape = load.architecture
    scale = load.weight_bytes / 2  # the paper counts 16-bit numbers
    whole = tokens * shape.hidden * (34 + 5 * shape.heads * tokens / shape.hidden) * scale
    kept = 2 * tokens * shape.hidden * scale
    layers = kept * shape.layers + whole if load.recomputed else whole * shape.layers
    # logits in the model's type, in float32 for the loss, and their gradient
    head = tokens * shape.vocabulary * (load.weight_bytes + 8) if load.predicts_tokens else 0
    return int(layers + head)


def largest_micro_batch(load: Load, tokens: int, memory_bytes: int) -> int:
    """Rows that fit into the planned share of a rank's memory; 0 if not even one does."""
    free = BUSY * memory_bytes - state_bytes(load)
    return max(0, int(free // max(1, row_bytes(load, tokens))))


def lora_parameters(architecture: Architecture, rank: int) -> int:
    """Trained parameters of adapters on all linear layers: rank * (in + out) for each matrix of each layer.

    Four square attention matrices and three of the feed-forward block (LLaMA's; BERT has two): an upper bound.
    """
    attention = 4 * 2 * architecture.hidden
    feed_forward = 3 * (architecture.hidden + architecture.intermediate)
    return rank * architecture.layers * (attention + feed_forward)

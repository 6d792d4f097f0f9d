"""Why a rank needs the memory it needs: a sentence for each component. Pure."""

from enum import StrEnum

from finetune_api.messages import MethodType
from finetune_api.optimizers import DEFAULT
from finetune_trainer.model.counts import in_words
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.rank_load import Load


class Name(StrEnum):
    """Components of the memory of a rank."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    BUFFERS = "buffers"
    PROCESS = "process"
    MARGIN = "margin"


def reasons(load: Load, moment: str, temporaries: float) -> dict[Name, str]:
    """Return the sentence of each component.

    Args:
        moment: when the peak is: loss, backward, step or evaluation.
        temporaries: bytes that the optimizer's step takes beside its states.
    """
    return {
        Name.WEIGHTS: _why_weights(load),
        Name.GRADIENTS: _why_gradients(load, moment),
        Name.OPTIMIZER: _why_optimizer(load, temporaries),
        Name.ACTIVATIONS: _why_activations(load, moment),
        Name.LOGITS: _why_logits(load, moment),
        Name.BUFFERS: _why_buffers(load, moment),
        Name.PROCESS: "CUDA context, cuBLAS and NCCL" if load.device == "gpu" else "interpreter, torch and libraries",
        Name.MARGIN: "fragmentation, and what the formulas leave out"
        + ("; freed blocks that the C library keeps" if load.device == "cpu" else ""),
    }


def _over(load: Load, from_stage: int) -> str:
    return f", over {load.world_size} ranks" if load.ranks(from_stage) > 1 else ""


def _why_weights(load: Load) -> str:
    width = load.architecture.weight_bytes
    if load.method is MethodType.QLORA:
        quantized = load.architecture.quantized
        return (
            f"{in_words(quantized)} weights of 4.127 bits, {in_words(load.parameters - quantized)} of {width} bytes"
            f"{_over(load, 3)}"
        )
    if load.offload_parameters and load.device == "gpu":
        return "in the node's memory"
    return f"{in_words(load.parameters)} parameters of {width} bytes{_over(load, 3)}"


def _why_gradients(load: Load, moment: str) -> str:
    if load.on_host:
        return "moved to the node's memory as they are computed"
    if moment == "evaluation":
        return "none in a pass without gradients"
    if moment == "step" and load.zero_stage in (1, 2):
        return (
            f"{in_words(load.trained)} trained parameters of 4 bytes, one float32 tensor for the step{_over(load, 1)}"
        )
    if moment == "loss" and not (load.zero_stage == 3 or load.accumulation > 1):
        return "none yet at the loss"
    return f"{in_words(load.trained)} trained parameters of {load.architecture.weight_bytes} bytes{_over(load, 2)}"


def _why_optimizer(load: Load, temporaries: float) -> str:
    if load.on_host:
        return "in the node's memory"
    master = load.master_bytes
    states = "Adam's two moments" if load.optimizer.name == DEFAULT else load.optimizer.spec.states
    what = f"a float32 copy and {states}" if load.copied else states
    more = f", and {temporaries / GIB:.2f} GiB of temporaries in the step" if temporaries else ""
    return f"{in_words(load.trained)} trained parameters of {master:.4g} bytes ({what}){_over(load, 1)}{more}"


def _why_activations(load: Load, moment: str) -> str:
    rows = f"{load.micro} {'row' if load.micro == 1 else 'rows'} of {load.tokens} tokens"
    if load.sequences > 1:
        rows = f"{load.micro} {'row' if load.micro == 1 else 'rows'} of {load.sequences} texts of {load.tokens} tokens"
    if load.sequences > 1 and load.architecture.predicts_tokens:
        rows = f"{load.micro} {'pair' if load.micro == 1 else 'pairs'} of two sequences of {load.tokens} tokens"
    if moment == "step":
        return "none are left in the step"
    if moment == "evaluation":
        return (
            f"of one layer for {load.evaluated} rows of {load.tokens} tokens, or keys and values of generated answers"
        )
    if moment == "backward":
        return f"of one layer, at the end of the backward pass over {rows}{_sums(2 * load.kept.largest_merged)}"
    if load.recomputed:
        layers = f"{load.architecture.layers} layers"
        return f"inputs of {layers} and what lies outside of them, for {rows}; the rest is recomputed"
    each = load.kept.layers.at(load.tokens) / load.tokens / max(1, load.architecture.layers)
    each_token = f"{rows} keep {each / 1024:.4g} KiB a token in each of {load.architecture.layers} layers"
    return f"{each_token}{_sums(load.kept.merged)}"


def _sums(size: int) -> str:
    return f", and {size / GIB:.3g} GiB of experts with their adapters added" if size else ""


def _why_logits(load: Load, moment: str) -> str:
    if not load.architecture.predicts_tokens:
        return "the model predicts no tokens"
    if moment not in ("loss", "evaluation"):
        return "freed by then"
    if load.chunked:
        again = "" if moment == "evaluation" else ", and again in the backward pass"
        return f"of one chunk: made a chunk at a time{again}"
    if moment == "evaluation":
        each = 8 if load.architecture.weight_bytes == 4 else 10
        tokens = load.evaluated * load.sequences * load.tokens
        return f"{each} bytes for each of {tokens} tokens and {load.architecture.vocabulary} words, without gradients"
    tokens = load.micro * load.sequences * load.tokens
    return f"8 bytes for each of {tokens} tokens and {load.architecture.vocabulary} words, for the loss"


def _why_buffers(load: Load, moment: str) -> str:
    parts = []
    if load.zero_stage == 3 and moment != "step":
        parts.append("weights gathered from other ranks")
    if load.method is MethodType.QLORA:
        parts.append("one matrix in 16 bits")
    if moment == "backward" or load.device == "gpu" or load.zero_stage == 3:
        parts.append("gradients on their way")
    return " and ".join(parts) or "none at that moment"

"""Architectures by formula, for tests of what is pure; tests/local/test_shapes.py counts real ones."""

from collections.abc import Collection

from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.architecture import Architecture, Growth, Kept, Part, PartKind

RANK = 16


def decoder(
    hidden: int = 4096,
    layers: int = 32,
    intermediate: int = 11008,
    vocabulary: int = 32000,
    weight_bytes: int = 2,
    predicts_tokens: bool = True,
) -> Architecture:
    """A LLaMA of these sizes; its defaults are those of the one with 7 billion parameters."""
    parts = [Part(name="model.embed_tokens", kind=PartKind.EMBEDDING, parameters=vocabulary * hidden)]
    square, wide = (hidden, hidden), (hidden, intermediate)
    matrices = {
        **{f"self_attn.{name}": (PartKind.ATTENTION, square) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        **{f"mlp.{name}": (PartKind.MLP, wide) for name in ("gate_proj", "up_proj", "down_proj")},
    }
    for layer in range(layers):
        for name, (kind, (inputs, outputs)) in matrices.items():
            full = f"model.layers.{layer}.{name}"
            parts.append(Part(name=full, kind=kind, parameters=inputs * outputs, inputs=inputs, outputs=outputs))
        parts.append(Part(name=f"model.layers.{layer}.norm", kind=PartKind.NORM, parameters=2 * hidden))
    if predicts_tokens:
        size = vocabulary * hidden
        parts.append(Part(name="lm_head", kind=PartKind.HEAD, parameters=size, inputs=hidden, outputs=vocabulary))
    made = Architecture(
        model_type="llama",
        hidden=hidden,
        layers=layers,
        heads=max(1, hidden // 128),
        vocabulary=vocabulary,
        predicts_tokens=predicts_tokens,
        parts=tuple(parts),
        weight_bytes=weight_bytes,
        kept={},
    )
    layer = Growth(linear=17 * hidden * weight_bytes)
    rest = Growth(linear=2 * hidden * weight_bytes + (4 * vocabulary if predicts_tokens else 0))
    inputs = Growth(linear=layers * hidden * weight_bytes)
    all_layers = Growth(linear=layers * layer.linear)

    def kept(trained: int) -> Kept:
        return Kept(trained=trained, layers=all_layers, largest_layer=layer, rest=rest, inputs=inputs)

    adapter = kept(lora_parameters(made, RANK))
    methods = {MethodType.FULL: kept(made.parameters), MethodType.LORA: adapter, MethodType.QLORA: adapter}
    return made.model_copy(update={"kept": methods})


def encoder(weight_bytes: int = 4) -> Architecture:
    """About the size of MiniLM: 6 layers of 384."""
    return decoder(384, 6, 1024, 30522, weight_bytes, predicts_tokens=False)


def lora_parameters(architecture: Architecture, rank: int, targets: Collection[str] | None = None) -> int:
    """Trained parameters of plain adapters: rank * (inputs + outputs) for each adapted linear layer.

    LoRA paper (arXiv 2106.09685), section 4.1. Heads are adapted only where `targets` names them, as PEFT does it.

    Args:
        targets: last parts of the names of adapted modules; None = all linear layers but the head.
    """
    return rank * sum(
        part.inputs + part.outputs
        for part in architecture.parts
        if part.inputs and (part.kind is not PartKind.HEAD if targets is None else _ends(part.name, targets))
    )


def _ends(name: str, targets: Collection[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)

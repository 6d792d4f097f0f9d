"""What a plan needs to know of a model: sizes, parameters by kind, and what a training step keeps. Pure, JSON-able.

`shape.py` fills these in from a model's own code; everything that predicts reads them from here.
"""

from enum import StrEnum
from functools import cached_property

from finetune_api.messages import Message, MethodType


class PartKind(StrEnum):
    """What parameters are for."""

    EMBEDDING = "embeddings"
    ATTENTION = "attention"
    MLP = "MLP"
    NORM = "norms"
    HEAD = "head"
    OTHER = "other"


class Part(Message):
    """A module that owns parameters.

    Attributes:
        name: its full name in the model, such as `model.layers.0.self_attn.q_proj`.
        parameters: its own, biases included, those that it shares with an earlier part left out.
        inputs, outputs: sizes of a linear layer; 0 for everything else.
        stacked: of `parameters`, those in the matrices of all experts of a layer.
    """

    name: str
    kind: PartKind
    parameters: int
    inputs: int = 0
    outputs: int = 0
    stacked: int = 0


class Growth(Message):
    """Bytes that grow with a row's tokens: linear * tokens + quadratic * tokens^2."""

    linear: float = 0.0
    quadratic: float = 0.0

    def at(self, tokens: int) -> float:
        """Return bytes for one row of `tokens`."""
        return self.linear * tokens + self.quadratic * tokens * tokens


class Kept(Message):
    """What the forward pass keeps for the backward pass, per row, with one method and one type of weights.

    Attributes:
        trained: parameters that get gradients.
        layers: of all layers.
        largest_layer: of the layer that keeps most.
        rest: of everything outside the layers, the loss included.
        head: of `rest`, what is as wide as the vocabulary: kept by a loss that makes all logits at once.
        inputs: the inputs of the layers alone: what is kept when activations are recomputed.
        sharded: further parameters that get gradients where ZeRO-3 shards weights: embeddings of which otherwise only
            the rows of new tokens are trained.
        routed: of `trained`, parameters of experts or of their adapters: a token passes through its own experts only.
        folded: operations of a forward pass that add the adapters of experts to their weights, however many tokens.
        merged: bytes of these sums in all layers, for any number of rows and tokens.
        largest_merged: of the layer that has most of them.
    """

    trained: int
    layers: Growth
    largest_layer: Growth
    rest: Growth
    inputs: Growth
    head: Growth = Growth()
    sharded: int = 0
    routed: int = 0
    folded: int = 0
    merged: int = 0
    largest_merged: int = 0


class Architecture(Message):
    """A model's sizes.

    Attributes:
        hidden, layers, heads, vocabulary: as in its configuration; `layers` counts encoder and decoder.
        predicts_tokens: whether the head has the vocabulary's width (language model) or a few classes.
        parts: modules with parameters; the sum over them is the model's number of parameters.
        largest: parameters of the largest module that is gathered as one.
        weight_bytes: bytes per weight that `kept` was counted with: 4 in float32, 2 in 16 bits.
        kept: by method.
        experts, chosen: experts of a layer, and those of them that compute a token; 0 for a model without experts.
        blocks: whether its layers are blocks of transformers that can be compiled one by one.
        recomputes: whether transformers' code of the model can recompute activations.
    """

    model_type: str
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    predicts_tokens: bool
    parts: tuple[Part, ...]
    weight_bytes: int
    kept: dict[MethodType, Kept]
    experts: int = 0
    chosen: int = 0
    blocks: bool = True
    recomputes: bool = True

    @cached_property
    def share(self) -> float:
        """Share of the experts that compute a token; 1 for a model without experts."""
        return self.chosen / self.experts if self.experts else 1.0

    @cached_property
    def stacked(self) -> int:
        """Parameters in the matrices of experts."""
        return sum(part.stacked for part in self.parts)

    @cached_property
    def active(self) -> int:
        """Parameters that a token passes through, embeddings included; all of them in a model without experts."""
        return self.parameters - round(self.stacked * (1 - self.share))

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model, shared ones once."""
        return sum(part.parameters for part in self.parts)

    @cached_property
    def largest(self) -> int:
        """Parameters of the largest single module."""
        return max((part.parameters for part in self.parts), default=0)

    @cached_property
    def cached(self) -> int:
        """Numbers that generation keeps of a token: keys and values, as wide as the model if no layer is named so."""
        named = [part.outputs for part in self.parts if part.name.endswith((".k_proj", ".v_proj"))]
        return sum(named) or 2 * self.hidden * self.layers

    def by_kind(self) -> dict[PartKind, int]:
        """Return parameters by what they are for."""
        return {kind: sum(part.parameters for part in self.parts if part.kind is kind) for kind in PartKind}

    @cached_property
    def matrices(self) -> int:
        """Parameters that a token is multiplied with: of experts its own ones; embeddings are looked up."""
        return sum(part.inputs * part.outputs for part in self.parts) + round(self.stacked * self.share)

    @cached_property
    def head(self) -> int:
        """Parameters of the output layer."""
        return sum(part.inputs * part.outputs for part in self.parts if part.kind is PartKind.HEAD)

    @cached_property
    def quantized(self) -> int:
        """Parameters that QLoRA keeps in 4 bits: all linear layers but the head. The matrices of experts are not
        linear layers: bitsandbytes leaves them in 16 bits."""
        return sum(part.inputs * part.outputs for part in self.parts if part.kind is not PartKind.HEAD)

    @cached_property
    def largest_quantized(self) -> int:
        """Parameters of the largest layer that QLoRA keeps in 4 bits."""
        return max((part.inputs * part.outputs for part in self.parts if part.kind is not PartKind.HEAD), default=0)

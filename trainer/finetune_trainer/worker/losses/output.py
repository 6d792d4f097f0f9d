"""The output layer of a language model: which positions go through it, and how their logits become a loss.

A hook on the layer picks the positions, for every family alike: `logits_to_keep` does the same, but encoders and
encoder-decoders lack it. `labelled` makes the logits of all trained tokens at once. `chunked` makes them a chunk at a
time and again in the backward pass, `liger` fuses product and loss: both for where the logits would not fit.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 256 << 20  # of one chunk's logits in float32; prepare's memory model counts them

Kind = Literal["labelled", "chunked", "liger"]


class OutputLayer:
    """Watches a model's output layer.

    Args:
        model: a language model with `get_output_embeddings`, or what PEFT makes of it.
        kind: how logits become a loss; the others fall back to `labelled` where a family works on its logits
            in a way that they do not know.
    """

    def __init__(self, model: torch.nn.Module, kind: Kind) -> None:
        self._model = model
        self._kind = kind if kind == "labelled" or plain_logits(model) else "labelled"
        self._layer: Callable[[torch.Tensor], torch.Tensor] = output_layer(model)
        self._kept: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None
        output_layer(model).register_forward_pre_hook(self._pick)

    @property
    def kind(self) -> Kind:
        """What is really done."""
        return self._kind

    def losses(
        self, forward: Callable[[], torch.Tensor], kept: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sum of the losses, float32 scalar, and without gradients the number of targets that were hit.

        Args:
            forward: calls the model and gives its logits.
            kept: positions [trained] among all of the batch's, row by row.
            targets: their token ids [trained].
        """
        self._kept = kept
        try:
            logits = forward()
        finally:
            self._kept = None
        if self._kind == "labelled":
            return summed(logits, targets)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return self._liger(hidden, targets) if self._kind == "liger" else self._chunks(hidden, targets)

    def _pick(self, layer: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._kept is None:  # somebody else's pass, such as generation
            return None
        hidden = arguments[0].flatten(0, -2).index_select(0, self._kept)
        if self._kind == "labelled":
            return (hidden, *arguments[1:])
        self._hidden = hidden
        return (hidden[:1].detach(), *arguments[1:])  # the layer is called later, by the loss

    def _chunks(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = max(1, CHUNK_BYTES // (4 * int(self._model.config.vocab_size)))  # type: ignore[union-attr, arg-type]
        total = hidden.new_zeros((), dtype=torch.float32)
        hits: torch.Tensor | None = None
        for part, goals in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            if torch.is_grad_enabled():
                total = total + checkpoint(self._of_chunk, part, goals, use_reentrant=False)
            else:
                loss, hit = summed(self._softened(self._layer(part)), goals)
                total, hits = total + loss, hit if hits is None or hit is None else hits + hit
        return total, hits

    def _of_chunk(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return summed(self._softened(self._layer(hidden)), targets)[0]

    def _softened(self, logits: torch.Tensor) -> torch.Tensor:
        """What Gemma and BART do with the output layer's logits."""
        bias = getattr(self._model, "final_logits_bias", None)
        if bias is not None:
            logits = logits + bias
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _liger(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not torch.is_grad_enabled():
            return self._chunks(hidden, targets)
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # imports Triton

        layer = output_layer(self._model)
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap)
        total: torch.Tensor = loss(layer.weight, hidden, targets, getattr(layer, "bias", None))
        return total.float(), None


def summed(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed cross entropy of logits [trained, vocabulary], and without gradients the hits."""
    total = cross_entropy(logits.float(), targets, reduction="sum")
    return total, None if torch.is_grad_enabled() else (logits.argmax(-1) == targets).sum()


def output_layer(model: torch.nn.Module) -> torch.nn.Module:
    """The layer that makes logits of hidden states; an adapter's wrapper around it counts as the layer."""
    layer: torch.nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    return layer


def plain_logits(model: torch.nn.Module) -> bool:
    """Whether the logits are what the output layer gives, but for what `_softened` does."""
    return all(getattr(model.config, name, None) is None for name in ("logit_scale", "logits_scaling"))

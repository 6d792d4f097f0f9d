"""The output layer of a language model: the positions that go through it, and the loss of their logits.

A hook on the layer picks the positions, for every family alike: `logits_to_keep` does the same, but encoders and
encoder-decoders lack it. `labelled` computes the logits of all trained tokens at once. For batches whose logits
would not fit into memory, `chunked` computes them a chunk at a time, and again in the backward pass; `liger` fuses
product and loss. The planner never chooses `liger`; the measurements on GPUs compare it (docs/decisions/009).

The model calls the layer once for every batch, and `chunked` and `liger` compute the whole loss inside that call. So
ZeRO-3 gathers the layer's weights once in the forward pass and once in the backward pass, however many chunks a rank
has: that number depends on the rank's own data, and the number of collectives must not.

Both know the bias of BART and the soft cap of Gemma. The first batch shows whether the model does anything else with
its logits, such as Falcon-H1's multiplier; then the loss is `labelled` from that batch on.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from deepspeed.runtime.zero import register_external_parameter
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from finetune_trainer.worker.compat import without_hooks

CHUNK_BYTES = 256 << 20  # of one chunk's logits in float32; prepare's memory model counts them

Kind = Literal["labelled", "chunked", "liger"]
Reduction = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


class OutputLayer:
    """The output layer of a model, with hooks that pick positions and compute the loss.

    Args:
        model: a language model with `get_output_embeddings`, or its PeftModel; no engine wraps it yet.
        kind: how logits become a loss. A family whose work on its logits only the model itself can do gets `labelled`.
        smoothing: share of each target that is spread over the vocabulary, in training only.
    """

    def __init__(self, model: torch.nn.Module, kind: Kind, smoothing: float = 0.0) -> None:
        self._model = model
        self._smoothing = smoothing
        self._kind = kind if kind == "labelled" or plain_logits(model) else "labelled"
        self._layer: Any = output_layer(model)
        self._kept: torch.Tensor | None = None
        self._targets: torch.Tensor | None = None
        self._summed: Reduction = partial(summed, smoothing=smoothing)
        self._reduce: Reduction = self._summed
        self._loss: torch.Tensor | None = None
        self._hits: torch.Tensor | None = None
        self._takes_loss = False
        self._given: torch.Tensor | None = None  # logits with which a model continues, [1, vocabulary]
        self._known: bool | None = None  # whether `_softened` is all that the model does with them
        self._layer.register_forward_pre_hook(self._pick)
        if self._kind != "labelled":
            self._forward_of_layer: Callable[..., torch.Tensor] = self._layer.forward
            self._layer.forward = self._forward
            self._parts = [part for part in self._layer.modules() if part is not self._layer]  # of an adapter
            for parameter in (one for part in self._parts for one in part.parameters(recurse=False)):
                register_external_parameter(self._layer, parameter)  # ZeRO-3 gathers it with the layer

    @property
    def kind(self) -> Kind:
        """Return the kind in use."""
        return self._kind

    def losses(
        self, forward: Callable[[], torch.Tensor], kept: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the sum of the losses, float32 scalar, and without gradients the number of correct predictions.

        Args:
            forward: calls the model and returns its logits.
            kept: positions [trained] among all of the batch's, row by row.
            targets: their token ids [trained].
        """
        return self._reduced(self._summed, forward, kept, targets)

    def log_probs(self, forward: Callable[[], torch.Tensor], kept: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target, float32 [trained], with its graph; arguments as of `losses`.

        `liger` computes its gradients in the forward pass, for a sum only, so chunks take its place.
        """
        return self._reduced(per_token, forward, kept, targets)[0]

    def _reduced(
        self, reduce: Reduction, forward: Callable[[], torch.Tensor], kept: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._kind == "labelled":
            self._kept = kept
            try:
                return reduce(forward(), targets)
            finally:
                self._kept = None
        if not self._takes_loss:
            # Registered after the engine's own hooks, which must see the loss: its gradient gathers the weights again.
            self._layer.register_forward_hook(self._take)
            self._takes_loss = True
        self._kept, self._targets, self._reduce = kept, targets, reduce
        try:
            continued = forward()
            assert self._loss is not None
            if self._known is None:  # the same on all ranks
                self._known = self._expected(continued.detach())
            if self._known:
                return self._loss, self._hits
        finally:
            self._kept = self._targets = self._loss = self._hits = None
        self._kind = "labelled"
        return self._reduced(reduce, forward, kept, targets)

    def _pick(self, layer: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._kept is None:  # a forward pass outside of `losses`, such as generation
            return None
        return (arguments[0].flatten(0, -2).index_select(0, self._kept), *arguments[1:])

    def _forward(self, hidden: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """Return the loss of hidden states [trained, width], reduced; outside of `_reduced`, the logits."""
        if self._targets is None:
            return self._forward_of_layer(hidden, *arguments, **named)
        if self._reduce is per_token:
            return self._log_probs(hidden, self._targets)
        if self._kind == "liger" and torch.is_grad_enabled():
            return self._liger(hidden, self._targets)
        return self._chunks(hidden, self._targets)

    def _take(self, layer: torch.nn.Module, arguments: tuple[Any, ...], loss: torch.Tensor) -> torch.Tensor | None:
        """Store the loss, and give the model logits of one token to continue with."""
        if self._targets is None:
            return None
        self._loss = loss
        hidden: torch.Tensor = arguments[0]
        if self._given is None:
            self._given = torch.linspace(-8, 8, self._vocabulary, device=hidden.device)[None].to(hidden.dtype)
        return self._given.clone()  # which the model may change in place

    def _expected(self, logits: torch.Tensor) -> bool:
        """Return whether the model made of the logits that it was given what `_softened` makes of them."""
        assert self._given is not None
        expected = self._softened(self._given).flatten().float()
        few = 8 * torch.finfo(self._given.dtype).eps
        return torch.allclose(logits.flatten().float(), expected, rtol=few, atol=few)

    @property
    def _vocabulary(self) -> int:
        return int(_text_config(self._model).vocab_size)

    def _split(self, hidden: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = max(1, CHUNK_BYTES // (4 * self._vocabulary))
        return zip(torch.split(hidden, size), torch.split(targets, size), strict=True)

    def _log_probs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return torch.cat([self._of_chunk(per_token, part, goals) for part, goals in self._split(hidden, targets)])
        parts = [
            checkpoint(self._of_chunk, per_token, part, goals, use_reentrant=False)
            for part, goals in self._split(hidden, targets)
        ]
        return torch.cat(parts)

    def _chunks(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        for part, goals in self._split(hidden, targets):
            if torch.is_grad_enabled():
                total = total + checkpoint(self._of_chunk, self._summed, part, goals, use_reentrant=False)
            else:
                loss, hit = summed(self._softened(self._logits(part)), goals)
                total, self._hits = total + loss, hit if self._hits is None or hit is None else self._hits + hit
        return total

    def _of_chunk(self, reduce: Reduction, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return reduce(self._softened(self._logits(hidden)), targets)[0]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with without_hooks(self._parts):
            return self._forward_of_layer(hidden)

    def _softened(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the bias of BART and the soft cap of Gemma to the output layer's logits."""
        bias = getattr(self._model, "final_logits_bias", None)
        if bias is not None:
            logits = logits + bias
        cap = getattr(_text_config(self._model), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _liger(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # imports Triton

        cap = getattr(_text_config(self._model), "final_logit_softcapping", None)
        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=cap, label_smoothing=self._smoothing)
        total: torch.Tensor = loss(self._layer.weight, hidden, targets, getattr(self._layer, "bias", None))
        return total.float()


def summed(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed cross entropy of logits [trained, vocabulary]; without gradients unsmoothed, and the hits."""
    if torch.is_grad_enabled():
        return cross_entropy(logits.float(), targets, label_smoothing=smoothing, reduction="sum"), None
    return cross_entropy(logits.float(), targets, reduction="sum"), (logits.argmax(-1) == targets).sum()


def per_token(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Return the log-probability of each target, float32 [trained], of logits [trained, vocabulary]."""
    return -cross_entropy(logits.float(), targets, reduction="none"), None


def output_layer(model: torch.nn.Module) -> torch.nn.Module:
    """Return the layer that makes logits of hidden states; with an adapter, the adapter's wrapper around it."""
    layer: torch.nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    return layer


def plain_logits(model: torch.nn.Module) -> bool:
    """Return False if the model's configuration says that it scales the output layer's logits."""
    return all(getattr(_text_config(model), name, None) is None for name in ("logit_scale", "logits_scaling"))


def _text_config(model: torch.nn.Module) -> Any:
    """Return the configuration of what writes the text: of a part, in a model of several."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]

"""The auxiliary loss that balances the experts of a mixture (Switch Transformer, arXiv 2101.03961, equations 4 to 6).

It is the number of experts times the sum, over experts, of the share of tokens that chose an expert and the mean
probability that the router gave it. transformers computes it over all tokens of a micro-batch, with the tokens of all
layers together; so its value depends on which rows share a micro-batch. Here it is computed for each document alone and
averaged over the tokens of the step: the same for any number of ranks, micro-batches and accumulation. (DeepSeek-V3,
arXiv 2412.19437, section 2.1.2, balances within a sequence, too.) For one document it is the value of transformers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune_api.plan import Plan
from finetune_trainer.model.mixture import experts_of_a_token
from finetune_trainer.worker.compat import router_outputs
from finetune_trainer.worker.losses.head import Head, Summed

Batch = Mapping[str, Any]


class RouterLogits:
    """The logits of a model's routers, noted while a loss is computed, in passes with gradients.

    Args:
        model: a model with routers, or its PeftModel.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._noted: list[torch.Tensor] | None = None
        for router, index in router_outputs(model):
            router.register_forward_hook(self._note(index))

    def _note(self, index: int) -> Any:
        def note(module: torch.nn.Module, arguments: Any, outputs: Any) -> None:
            # not while activations are recomputed, and not in a reference's pass
            if self._noted is not None and torch.is_grad_enabled():
                logits: torch.Tensor = outputs[index] if isinstance(outputs, tuple) else outputs
                self._noted.append(logits.flatten(0, -2))

        return note

    @contextmanager
    def noted(self) -> Iterator[list[torch.Tensor]]:
        """Note the logits of one forward pass: [tokens, experts] for each layer with experts."""
        found: list[torch.Tensor] = []
        self._noted = found
        try:
            yield found
        finally:
            self._noted = None


@dataclass(frozen=True)
class BalancedHead:
    """A loss that also returns the router's auxiliary loss, where gradients are computed.

    Args:
        chosen: experts that a token takes.
    """

    head: Head
    logits: RouterLogits
    chosen: int

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Summed:
        if not torch.is_grad_enabled():
            return self.head(model, batch)
        with self.logits.noted() as logits:
            summed = self.head(model, batch)
        documents, count = documents_of(batch)
        return replace(summed, balance=balance(logits, self.chosen, documents, count))


def with_balance(plan: Plan, model: torch.nn.Module, head: Head) -> Head:
    """Return a run's loss, with the router's auxiliary loss if the plan has a coefficient for it.

    Args:
        model: as loaded, with its adapter, before an engine wraps it.
    """
    if not plan.engine.router_loss:
        return head
    return BalancedHead(head, RouterLogits(model), experts_of_a_token(model))


def documents_of(batch: Batch) -> tuple[torch.Tensor, int]:
    """Return the number of the document of each token, int64 [tokens], and the number of documents. Padding has that
    number itself, one above the last."""
    ids: torch.Tensor = batch["input_ids"]
    if (documents := batch.get("documents")) is not None:
        lengths = torch.tensor([length for count, length in documents.groups for _ in range(count)])
        return torch.arange(len(lengths)).repeat_interleave(lengths).to(ids.device), len(lengths)
    rows, tokens = ids.shape
    numbers = torch.arange(rows, device=ids.device).repeat_interleave(tokens)
    if (mask := batch.get("attention_mask")) is not None:
        numbers = torch.where(mask.flatten() > 0, numbers, rows)
    return numbers, rows


def balance(logits: Sequence[torch.Tensor], chosen: int, documents: torch.Tensor, count: int) -> torch.Tensor:
    """Return the auxiliary loss of each document times its tokens, summed over the documents; float32 scalar.

    Args:
        logits: [tokens, experts] of each layer.
        chosen: experts that a token takes.
        documents: number of each token's document, [tokens]; `count` for padding.
    """
    experts = logits[0].shape[-1]
    shares = logits[0].new_zeros(count + 1, experts, dtype=torch.float32)
    probabilities = torch.zeros_like(shares)
    for layer in logits:
        likely = layer.float().softmax(-1)
        picked = torch.zeros_like(likely).scatter_(1, likely.topk(chosen, -1).indices, 1.0)
        shares = shares.index_add(0, documents, picked)
        probabilities = probabilities.index_add(0, documents, likely)
    tokens = torch.bincount(documents, minlength=count + 1)[:count]
    seen = (tokens * len(logits)).clamp(min=1)[:, None]
    each = experts * ((shares[:count] / seen) * (probabilities[:count] / seen)).sum(-1)
    return (each * tokens).sum()

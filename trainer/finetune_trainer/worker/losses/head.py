"""The summed loss of a batch, one function for training and evaluation.

Models are called without labels. Only the positions that predict a trained token go through the output layer, so the
logits are [trained tokens, vocabulary] instead of [rows, tokens, vocabulary]. Each family's own scaling of hidden
states or logits around that layer stays unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from finetune_api.messages import ProblemType
from finetune_trainer.worker.losses.label_loss import PLAIN, LabelLoss
from finetune_trainer.worker.losses.output_layer import OutputLayer

Batch = Mapping[str, Any]
# entries of a batch that the model does not take
BESIDE = frozenset(
    {"kept", "targets", "labels", "sequences", "completion", "reference", "desirable", "mismatched", "texts"}
)


@dataclass(frozen=True)
class Summed:
    """The loss of one batch; over several batches, totals and items add up.

    Attributes:
        total: float32 scalar, the sum of the losses of all items, with its graph.
        items: number of items: trained tokens, or rows for classification. Known on the host, without synchronisation.
        outputs: logits [rows, labels] of a classification, [words, labels] of labels for words; other tasks: None.
        hits: token tasks without gradients: number of targets with the highest logit, int64 scalar; else None.
        facts: numbers of each row, [rows, columns], of which the task makes metrics; None if it makes none of them.
        balance: the router's auxiliary loss of each document times its tokens, summed, with its graph; None without it.
    """

    total: torch.Tensor
    items: int
    outputs: torch.Tensor | None = None
    hits: torch.Tensor | None = None
    facts: torch.Tensor | None = None
    balance: torch.Tensor | None = None


Head = Callable[[torch.nn.Module, Batch], Summed]


@dataclass(frozen=True)
class RowLoss:
    """A loss for each row: cross entropy, its binary form averaged over the labels, or the squared error."""

    problem: ProblemType
    entropy: LabelLoss = PLAIN

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Summed:
        labels: torch.Tensor = batch["labels"]
        logits: torch.Tensor = model(**inputs(batch)).logits
        return Summed(self._total(logits.float(), labels), len(labels), logits.detach())

    def _total(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        match self.problem:
            case ProblemType.SINGLE_LABEL:
                return self.entropy(logits, labels)
            case ProblemType.MULTI_LABEL:
                return binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / logits.shape[-1]
            case ProblemType.REGRESSION:
                return mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")


@dataclass(frozen=True)
class TokenLoss:
    """The cross entropy of the batch's `targets` [trained], predicted at its `kept` positions [trained]."""

    layer: OutputLayer

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Summed:
        targets: torch.Tensor = batch["targets"]
        total, hits = self.layer.losses(lambda: model(**inputs(batch)).logits, batch["kept"], targets)
        documents = batch.get("documents")
        if documents is not None and not documents.kept_apart:
            raise RuntimeError("the model's attention does not keep the documents of a flat batch apart")
        return Summed(total, len(targets), hits=hits)


@dataclass(frozen=True)
class WordLoss:
    """The cross entropy of the batch's `targets` [words], labels of the words that begin at its `kept` positions."""

    entropy: LabelLoss = PLAIN

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Summed:
        targets: torch.Tensor = batch["targets"]
        logits: torch.Tensor = model(**inputs(batch)).logits.flatten(0, 1).index_select(0, batch["kept"])
        return Summed(self.entropy(logits, targets), len(targets), logits.detach())


def inputs(batch: Batch) -> dict[str, Any]:
    """Return the entries of a batch that the model takes."""
    return {name: value for name, value in batch.items() if name not in BESIDE}

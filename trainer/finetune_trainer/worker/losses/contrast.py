"""The loss of embeddings: the positive of an anchor must be closer to it than all other texts of the batch.

The cross entropy of scaled cosine similarities, in which the positives of the other rows, on all ranks, and the
negatives of all rows are the wrong choices (van den Oord et al. 2018, arXiv 1807.03748, equation 4; Henderson et al.
2017, arXiv 1705.00652, section 4). sentence-transformers calls it MultipleNegativesRankingLoss. A text is no wrong
choice if it is equal to the anchor, to its positive, or to the positive of an equal anchor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy, normalize

from finetune_api.plan import PlannedEmbedding
from finetune_trainer.worker.batches.padded_texts import ABSENT
from finetune_trainer.worker.losses.gathering import gathered, own_rank
from finetune_trainer.worker.losses.head import Batch, Summed

MODEL_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class ContrastiveLoss:
    """The summed loss of a batch's anchors. Without gradients, each rank compares its own rows only, and
    `Summed.outputs` has the vectors [rows, texts, numbers], zeros for absent texts.
    """

    planned: PlannedEmbedding

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Summed:
        texts: torch.Tensor = batch["texts"]
        hidden = model(**{name: batch[name] for name in MODEL_INPUTS}).last_hidden_state
        vectors = placed(pooled(hidden, batch["attention_mask"], self.planned.pooling), texts)
        if not torch.is_grad_enabled():
            total = summed_loss(vectors, texts, self.planned.scale, self.planned.dims)
            return Summed(total, len(texts), vectors)
        everyone, theirs = gathered(vectors), gathered(texts)
        rows = slice(own_rank() * len(texts), (own_rank() + 1) * len(texts))
        everyone, theirs = everyone.flatten(0, 1), theirs.flatten(0, 1)
        return Summed(summed_loss(everyone, theirs, self.planned.scale, self.planned.dims, rows), len(texts))


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: Literal["mean", "cls", "last"]) -> torch.Tensor:
    """Return one vector a sequence, float32 [sequences, numbers].

    Args:
        hidden: [sequences, tokens, numbers].
        mask: [sequences, tokens], 1 for a token; padding is on the right.
    """
    match pooling:
        case "cls":
            return hidden[:, 0].float()
        case "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1].float()
        case "mean":
            kept = mask.unsqueeze(-1).float()
            return (hidden.float() * kept).sum(1) / kept.sum(1)


def placed(vectors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return vectors [sequences, numbers], in the order of `PaddedTexts`, as [rows, texts, numbers]."""
    rows, most = texts.shape
    present = (texts.T.reshape(-1) != ABSENT).nonzero().squeeze(1)
    whole = vectors.new_zeros(rows * most, vectors.shape[-1]).index_copy(0, present, vectors)
    return whole.view(most, rows, -1).transpose(0, 1)


def summed_loss(
    vectors: torch.Tensor,
    texts: torch.Tensor,
    scale: float,
    dims: Sequence[int] = (),
    rows: slice = slice(None),
) -> torch.Tensor:
    """Return the sum of the losses of some rows' anchors, float32 scalar.

    Args:
        vectors: of all rows, [rows, texts, numbers]: anchor, positive, negatives; zeros for absent texts.
        texts: a hash of each text, or ABSENT; int64 [rows, texts].
        scale: factor of the cosine similarities.
        dims: the loss is the sum over the vectors cut to these sizes (Kusupati et al. 2022, arXiv 2205.13147, equation
            1); empty = whole vectors.
        rows: those whose anchors count.
    """
    wrong, own = wrong_choices(texts, rows)
    total = vectors.new_zeros(())
    for size in dims or (vectors.shape[-1],):
        cut = normalize(vectors[..., :size], dim=-1)
        anchors, choices = cut[rows, 0], cut[:, 1:].transpose(0, 1).flatten(0, 1)
        scores = (scale * anchors @ choices.T).masked_fill(~wrong, -torch.inf)
        total = total + cross_entropy(scores, own, reduction="sum")
    return total


def wrong_choices(texts: torch.Tensor, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which texts an anchor is compared with, its positive among them, bool [anchors, choices], and the place of
    its positive, int64 [anchors].

    The choices are the positives of all rows, then their first negatives, and so on.
    """
    anchors, positives = texts[rows, 0, None], texts[rows, 1, None]
    choices = texts[:, 1:].T.reshape(-1)
    equal = (choices == positives) | (choices == anchors) | (choices == ABSENT) | _answers(texts, anchors, choices)
    own = torch.arange(len(texts), device=texts.device)[rows]
    compared = ~equal
    compared[torch.arange(len(own), device=texts.device), own] = True
    return compared, own


def _answers(texts: torch.Tensor, anchors: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """Return which choices are a positive of an equal anchor in any row, bool [anchors, choices]."""
    same_anchor = anchors == texts[:, 0]
    same_text = texts[:, 1, None] == choices
    # a product of matrices, since the number of equal anchors is not known without asking the device
    return same_anchor.float() @ same_text.float() > 0

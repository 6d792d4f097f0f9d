"""Scores of a search: each anchor of a split looks for its positives among the positives of all rows. Pure."""

from collections.abc import Sequence

import numpy as np
import torch

from finetune_trainer.worker.evaluation.scores import Values
from finetune_trainer.worker.losses.contrast import summed_loss

ANCHORS = 512  # whose similarities to all texts are in memory at a time
CUT = 10


def retrieval_scores(vectors: Values, texts: Values) -> dict[str, float]:
    """Return recall at 1 and 10, MRR at 10, nDCG at 10 (Järvelin and Kekäläinen 2002) and the margin.

    Equal anchors are one question, whose answers are the positives of all its rows; equal positives are one text. A
    text that is equal to the anchor is not looked at, unless it is its answer. Of two equally similar texts, the answer
    comes last, so that equal vectors for all texts score nothing. The margin is the mean over the questions of the
    cosine similarity of the most similar answer, less that of the most similar other text.

    Args:
        vectors: [rows, texts, numbers]: anchor, positive, and negatives, which are not looked at.
        texts: a hash of each text, int64 [rows, texts].
    """
    questions, first = np.unique(texts[:, 0], return_index=True)
    answers, place = np.unique(texts[:, 1], return_index=True)
    corpus = _unit(vectors[place, 1])
    asked = _unit(vectors[first, 0])
    pairs = np.unique(
        np.stack([np.searchsorted(questions, texts[:, 0]), np.searchsorted(answers, texts[:, 1])], axis=1), axis=0
    )
    ranks, margins = [], []
    for start in range(0, len(questions), ANCHORS):
        part = slice(start, start + ANCHORS)
        own = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + ANCHORS)]
        rows, columns = torch.from_numpy(own[:, 0] - start), torch.from_numpy(own[:, 1])
        scores = asked[part] @ corpus.T
        right = scores[rows, columns]
        others = scores.clone()
        others[torch.from_numpy(questions[part, None] == answers[None])] = -torch.inf
        others[rows, columns] = -torch.inf
        margins.append(scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, rows, right, "amax"))
        margins[-1] = margins[-1] - others.amax(1)
        before = (others[rows] >= right[:, None]).sum(1)
        ranks.append(np.column_stack([own[:, 0], 1 + before.numpy() + _among(own[:, 0], right.numpy())]))
    margin = torch.cat(margins)
    measured = _measured(np.concatenate(ranks), len(questions))
    apart = margin[torch.isfinite(margin)]
    return measured | ({"margin": float(apart.mean())} if len(apart) else {})


def evaluated_loss(vectors: Values, texts: Values, scale: float, dims: Sequence[int], rows: int) -> float:
    """Return the mean loss of an anchor, in groups of about as many rows as training compares at once.

    Args:
        rows: of a group; the groups are the rows of the split in their order.
    """
    groups = -(-len(texts) // rows)
    total = 0.0
    for own, hashes in zip(np.array_split(vectors, groups), np.array_split(texts, groups), strict=True):
        total += float(summed_loss(torch.from_numpy(own), torch.from_numpy(hashes), scale, dims))
    return total / len(texts)


def _unit(vectors: Values) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(vectors)), dim=-1)


def _among(questions: Values, similarities: Values) -> Values:
    """Return for each answer how many answers of the same question are closer to it; questions are ascending."""
    order = np.lexsort((-similarities, questions))
    starts = np.searchsorted(questions, questions)
    places = np.empty(len(questions), np.int64)
    places[order] = np.arange(len(questions))
    among: Values = places - starts
    return among


def _measured(ranks: Values, questions: int) -> dict[str, float]:
    """Return the scores of the ranks of answers.

    Args:
        ranks: int64 [answers, 2]: the question, and the rank of the answer among all texts, from 1.
    """
    question, rank = ranks.T
    count = np.bincount(question, minlength=questions)
    gains = np.where(rank <= CUT, 1 / np.log2(rank + 1), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, CUT + 2)))[np.minimum(count, CUT) - 1]
    firsts = np.full(questions, np.iinfo(np.int64).max)
    np.minimum.at(firsts, question, rank)
    return {
        "recall_at_1": float((np.bincount(question, rank <= 1, questions) / count).mean()),
        f"recall_at_{CUT}": float((np.bincount(question, rank <= CUT, questions) / count).mean()),
        f"mrr_at_{CUT}": float(np.where(firsts <= CUT, 1 / firsts, 0.0).mean()),
        f"ndcg_at_{CUT}": float((np.bincount(question, gains, questions) / ideal).mean()),
    }

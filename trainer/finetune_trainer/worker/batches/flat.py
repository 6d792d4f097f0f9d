"""Collation without padding: the documents of a batch lie one after the other in a single line.

The attention of `worker.attention` prevents a document from seeing another one. So a row that holds several documents
(packing) and several rows are the same thing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from finetune_trainer.worker.attention import Documents
from finetune_trainer.worker.batches.padded import IGNORED


@dataclass(frozen=True)
class FlatTokens:
    """A collator that puts the rows of a causal language model into one line.

    Returns `input_ids` and `position_ids`, int64 [1, tokens], where the positions start at 0 in every document;
    `cu_seq_lens`, int32 [documents + 1], the starts of the documents; `documents`, the same on the host; `kept` and
    `targets`, int64 [trained], as `PaddedTokens` does. Documents are sorted by length, because documents of equal
    length share one call of the attention.
    """

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        documents = [document for row in rows for document in split(row)]
        documents.sort(key=lambda document: len(document[0]), reverse=True)
        lengths = [len(ids) for ids, _ in documents]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.concatenate([ids for ids, _ in documents]).astype(np.int64)
        labels = np.concatenate([labels for _, labels in documents]).astype(np.int64)
        labels[starts[:-1]] = IGNORED  # the document before must not predict the first token of a document
        trained = np.flatnonzero(labels != IGNORED)
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            "cu_seq_lens": torch.from_numpy(starts.astype(np.int32)),
            "documents": Documents(tuple((len(list(same)), length) for length, same in groupby(lengths)), lengths[0]),
            "kept": torch.from_numpy(trained - 1),
            "targets": torch.from_numpy(labels[trained]),
        }


def split(row: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the documents of a row: ids and labels, each [tokens]."""
    if "seq_lengths" not in row:
        return [(row["input_ids"], row["labels"])]
    cuts = np.cumsum(row["seq_lengths"])[:-1]
    return list(zip(np.split(row["input_ids"], cuts), np.split(row["labels"], cuts), strict=True))

"""Rows to a batch without padding: documents one after the other, told apart by where they begin.

The attention of `worker.attention` keeps them from seeing one another, so that a row that holds several documents
(packing) and several rows are the same thing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch

from finetune_trainer.worker.batches.padded import IGNORED


@dataclass
class Documents:
    """Where the documents of a flat batch lie; on the host, so that nobody waits for a device to know it.

    Attributes:
        groups: (how many, tokens of each) for neighbours of equal length, in the batch's order.
        longest: tokens of the longest.
        kept_apart: set by the attention that has done so; a model that never calls it would mix the documents.
    """

    groups: tuple[tuple[int, int], ...]
    longest: int
    kept_apart: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class FlatTokens:
    """Causal language models' rows in one line.

    Gives `input_ids` and `position_ids`, int64 [1, tokens], the latter beginning again with every document; `documents`
    and `cu_seq_lens`, int32 [documents + 1], where they begin; `kept` and `targets`, int64 [trained], as
    `PaddedTokens` does. Documents are sorted by length: equal ones share a call of the attention.
    """

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        documents = [document for row in rows for document in split(row)]
        documents.sort(key=lambda document: len(document[0]), reverse=True)
        lengths = [len(ids) for ids, _ in documents]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.concatenate([ids for ids, _ in documents]).astype(np.int64)
        labels = np.concatenate([labels for _, labels in documents]).astype(np.int64)
        labels[starts[:-1]] = IGNORED  # what begins a document does not follow from the one before
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
    """The documents of a row: ids and labels, each [tokens]."""
    if "seq_lengths" not in row:
        return [(row["input_ids"], row["labels"])]
    cuts = np.cumsum(row["seq_lengths"])[:-1]
    return list(zip(np.split(row["input_ids"], cuts), np.split(row["labels"], cuts), strict=True))

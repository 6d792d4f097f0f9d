"""Rows to a padded batch; sequences of several documents to one in which no document sees another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IGNORED = -100  # torch's cross entropy skips this label


@dataclass(frozen=True)
class PaddedBatch:
    """Pads rows on the right to the longest of the batch.

    Gives `input_ids` and `attention_mask`, int64 [rows, tokens], and `labels`: int64 [rows, tokens] for language
    models, [rows] for classification. Packed rows (those with `seq_lengths`) have `position_ids` instead of the mask.

    Args:
        pad_token_id: what fills `input_ids` where the mask is 0.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        if "seq_lengths" in rows[0]:
            return self._packed(rows, longest)
        batch = {
            "input_ids": self._pad([row["input_ids"] for row in rows], longest, self.pad_token_id),
            "attention_mask": self._pad([np.ones(len(row["input_ids"])) for row in rows], longest, 0),
        }
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=torch.int64)
        else:
            batch["labels"] = self._pad([row["labels"] for row in rows], longest, IGNORED)
        return batch

    def _packed(self, rows: Sequence[dict[str, Any]], longest: int) -> dict[str, torch.Tensor]:
        # No attention_mask: transformers finds documents by positions that start again, and only if there is none; an
        # all-ones mask makes every document see those before it, silently. Padding is a document of its own.
        positions = np.zeros((len(rows), longest), dtype=np.int64)
        labels = self._pad([row["labels"] for row in rows], longest, IGNORED)
        for line, row in zip(positions, rows, strict=True):
            padding = longest - len(row["input_ids"])
            lengths = [*row["seq_lengths"], *([padding] if padding else [])]
            line[:] = np.concatenate([np.arange(length) for length in lengths])
        positions_of = torch.from_numpy(positions)
        labels[positions_of == 0] = IGNORED  # what begins a document does not follow from the one before
        return {
            "input_ids": self._pad([row["input_ids"] for row in rows], longest, self.pad_token_id),
            "position_ids": positions_of,
            "labels": labels,
        }

    def _pad(self, values: Sequence[Any], longest: int, fill: int) -> torch.Tensor:
        padded = np.full((len(values), longest), fill, dtype=np.int64)
        for line, row in zip(padded, values, strict=True):
            line[: len(row)] = row
        return torch.from_numpy(padded)

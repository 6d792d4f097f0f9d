"""Collation of rows of several texts: all texts of a batch in one padded batch of sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from finetune_trainer.worker.batches.padded import pad

ABSENT = 0  # in `texts`: the row has fewer texts than others


@dataclass(frozen=True)
class PaddedTexts:
    """A collator for rows with an anchor, a positive and any number of negatives.

    Returns `input_ids` and `attention_mask`, int64 [sequences, tokens], first all anchors, then all positives, then the
    negatives, without the absent ones; and `texts`, int64 [rows, texts]: a hash of each text, by which equal texts are
    found on all ranks, or ABSENT.

    Args:
        pad_token_id: fills `input_ids` where the mask is 0.
        texts: most texts of a row.
    """

    pad_token_id: int
    texts: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        parts = [np.split(row["input_ids"], np.cumsum(row["seq_lengths"])[:-1]) for row in rows]
        present = [row[place] for place in range(self.texts) for row in parts if place < len(row)]
        lengths = np.array([len(ids) for ids in present])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        texts = np.full((len(rows), self.texts), ABSENT, np.int64)
        for line, row in zip(texts, parts, strict=True):
            line[: len(row)] = [content(ids) for ids in row]
        return {
            "input_ids": torch.from_numpy(pad(present, int(lengths.max()), self.pad_token_id)),
            "attention_mask": torch.from_numpy(mask),
            "texts": torch.from_numpy(texts),
        }


def content(ids: np.ndarray) -> int:
    """Return 63 bits of a hash of a text's tokens; not ABSENT."""
    digest = blake2b(np.ascontiguousarray(ids, "<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1

"""Views on prepared preference rows: with the sequence of a mismatched completion, with the reference's values, and in
the order of a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.prepared_rows import PreparedRows
from finetune_trainer.worker.sampling import VirtualDataset

Values = npt.NDArray[np.float32]
PAIRED = 0  # seed of the order in which rows lend each other their completions


class InOrder(Dataset[dict[str, Any]]):
    """The rows of a run by the loader's index.

    Args:
        data: the order.
        rows: the rows, by the number of a prepared row.
    """

    def __init__(self, data: VirtualDataset, rows: PreparedRows) -> None:
        self._data = data
        self._rows = rows

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return self._rows[self._data.number(slot)]

    @property
    def lengths(self) -> npt.ArrayLike:
        """Return the number of tokens of each prepared row."""
        return self._data.lengths


class WithReference(Dataset[dict[str, Any]]):
    """Rows with `reference`, float32 [2].

    Args:
        rows: by number.
        values: float32 [rows, 2] by split; filled after the loader is made, before it reads.
    """

    def __init__(self, rows: PreparedRows, values: Mapping[str, Values], split: str) -> None:
        self._rows = rows
        self._values = values
        self._split = split

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._rows[number], "reference": self._values[self._split][number]}

    @property
    def lengths(self) -> npt.ArrayLike:
        """Return the number of tokens of each row."""
        return self._rows.lengths


class Mismatched(Dataset[dict[str, Any]]):
    """Rows of one sequence, with `mismatched`: ids and labels of the row's prompt and another row's completion.

    KTO estimates the divergence from the reference with them (arXiv 2402.01306, section 4.1). Which row lends its
    completion is a function of the prepared rows alone, so the reference's value can be computed ahead.

    Args:
        rows: by number.
        longest: maximum length of a sequence in tokens.
    """

    def __init__(self, rows: ArrowRows, longest: int) -> None:
        self._rows = rows
        self._longest = longest
        self._lenders = lenders(rows.by_shard or [len(rows)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, lender = self._rows[number], self._rows[int(self._lenders[number])]
        start, begin = first_trained(row["labels"]), first_trained(lender["labels"])
        ids = np.concatenate([row["input_ids"][:start], lender["input_ids"][begin:]])[: self._longest]
        labels = np.concatenate([row["labels"][:start], lender["labels"][begin:]])[: self._longest]
        return {**row, "mismatched": (ids, labels)}

    @property
    def lengths(self) -> npt.ArrayLike:
        """Return the number of tokens of each row, without the mismatched sequence."""
        return self._rows.lengths


def lenders(shards: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return, for each row, another row of its shard: the one before it in a fixed random order of the shard.

    In the order of the file, neighbours often have the same prompt.

    Args:
        shards: rows of each shard.
    """
    generator = torch.Generator().manual_seed(PAIRED)
    chosen, start = [], 0
    for count in shards:
        order = torch.randperm(count, generator=generator).numpy()
        lender = np.empty(count, np.int64)
        lender[order] = np.roll(order, 1)
        chosen.append(lender + start)
        start += count
    return np.concatenate(chosen)


def first_trained(labels: npt.NDArray[Any]) -> int:
    """Return the place of the first label of a completion."""
    return int(np.argmax(labels != IGNORED))

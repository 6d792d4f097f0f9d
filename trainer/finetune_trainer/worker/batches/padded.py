"""Collation of rows into a padded batch. Packed documents within a sequence do not see each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_api.messages import ProblemType

IGNORED = -100  # the label of a token without loss
Decoder = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class PaddedTokens:
    """A collator that pads the rows of language models on the right to the longest of the batch.

    Returns `input_ids` and `attention_mask`, int64 [rows, tokens], and the inputs of `losses.head`: `kept`, int64
    [trained], the positions among rows x tokens that predict a token, and `targets`, int64 [trained], those tokens.
    Packed rows (with `seq_lengths`) have `position_ids` instead of the mask.

    Args:
        pad_token_id: fills `input_ids` where the mask is 0.
        shifted: True = a position predicts the next label, as in causal models; False = its own label.
    """

    pad_token_id: int
    shifted: bool = True

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = padded_inputs(rows, self.pad_token_id)
        labels = pad([row["labels"] for row in rows], ids.shape[1], IGNORED)
        positions = None
        if "seq_lengths" in rows[0]:
            # transformers separates documents by positions that restart at 0, but only without an attention_mask: with
            # an all-ones mask every document silently sees those before it. Padding counts as one more document.
            positions = packed_positions(rows, ids.shape[1])
            labels[positions == 0] = IGNORED  # the document before must not predict the first token of a document
        kept, targets = trained_positions(labels, shifted=self.shifted)
        inputs = {"attention_mask": mask} if positions is None else {"position_ids": torch.from_numpy(positions)}
        return {"input_ids": torch.from_numpy(ids), **inputs, "kept": kept, "targets": targets}


@dataclass(frozen=True)
class PaddedPairs:
    """A collator for the rows of encoder-decoders.

    Returns the same as `PaddedTokens`, and `decoder_input_ids`, int64 [rows, target tokens]; `kept` indexes rows x
    target tokens. The decoder needs no mask: it is causal, and its padding comes last.

    Args:
        decoder_inputs: the model's own shift of labels [rows, target tokens].
    """

    pad_token_id: int
    decoder_inputs: Decoder

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = padded_inputs(rows, self.pad_token_id)
        labels = pad([row["labels"] for row in rows], max(len(row["labels"]) for row in rows), IGNORED)
        kept, targets = trained_positions(labels, shifted=False)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": mask,
            "decoder_input_ids": self.decoder_inputs(torch.from_numpy(labels)),
            "kept": kept,
            "targets": targets,
        }


def shifted_right(labels: torch.Tensor, start: int, pad_token_id: int) -> torch.Tensor:
    """Return what a decoder reads for labels [rows, tokens]: each token one place later, after a start token."""
    before = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, pad_token_id)


@dataclass(frozen=True)
class PaddedRows:
    """A collator for the rows of classification.

    Returns the padded inputs, with `token_type_ids`, int64 [rows, tokens], if rows have them, and `labels`: int64
    [rows] of label ids, float32 [rows] of numbers, or float32 [rows, labels] with 1 for each label of a row.

    Args:
        labels: number of labels; used only if a row can have several.
    """

    pad_token_id: int
    problem: ProblemType
    labels: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = padded_inputs(rows, self.pad_token_id)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": mask}
        if "token_type_ids" in rows[0]:
            types = pad([row["token_type_ids"] for row in rows], ids.shape[1], 0)
            inputs["token_type_ids"] = torch.from_numpy(types)
        return {**inputs, "labels": self._labels(rows)}

    def _labels(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        if self.problem is ProblemType.REGRESSION:
            return torch.tensor([row["label"] for row in rows], dtype=torch.float32)
        if self.problem is ProblemType.SINGLE_LABEL:
            return torch.tensor([row["label"] for row in rows], dtype=torch.int64)
        chosen = torch.zeros(len(rows), self.labels)
        for line, row in zip(chosen, rows, strict=True):
            line[np.asarray(row["label"], np.int64)] = 1.0
        return chosen


def padded_inputs(rows: Sequence[dict[str, Any]], pad_token_id: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, both int64 [rows, tokens]."""
    lengths = np.array([len(row["input_ids"]) for row in rows])
    longest = int(lengths.max())
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    return pad([row["input_ids"] for row in rows], longest, pad_token_id), torch.from_numpy(mask)


def pad(values: Sequence[Any], longest: int, fill: int) -> np.ndarray:
    """Return lists as one array, int64 [rows, longest]."""
    padded = np.full((len(values), longest), fill, dtype=np.int64)
    for line, row in zip(padded, values, strict=True):
        line[: len(row)] = row
    return padded


def packed_positions(rows: Sequence[dict[str, Any]], longest: int) -> np.ndarray:
    """Return positions, int64 [rows, longest], that start at 0 in every document and in the padding."""
    positions = np.zeros((len(rows), longest), dtype=np.int64)
    for line, row in zip(positions, rows, strict=True):
        padding = longest - len(row["input_ids"])
        lengths = [*row["seq_lengths"], *([padding] if padding else [])]
        line[:] = np.concatenate([np.arange(length) for length in lengths])
    return positions


def trained_positions(labels: np.ndarray, *, shifted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions among rows x tokens that predict a trained token, and those tokens, of labels [rows,
    tokens].
    """
    if shifted:
        labels = np.concatenate([labels[:, 1:], np.full((len(labels), 1), IGNORED)], axis=1)
    flat = labels.ravel()
    kept = np.flatnonzero(flat != IGNORED)
    return torch.from_numpy(kept), torch.from_numpy(flat[kept])

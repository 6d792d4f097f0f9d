"""Masked language modelling: the choice of the tokens that a row hides, and of their replacements.

The model predicts 15 % of a row's tokens; of these 80 % read [MASK], 10 % another token, 10 % themselves (BERT paper,
arXiv 1810.04805, section 3.1). The choice depends on seed and position alone, so every layout of a run hides the same
tokens. Their number depends on the row's length alone, so the loss of a step can be divided by it before the batch
exists.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from finetune_api.plan import Plan
from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.prepared_rows import PreparedRows

Ids = npt.NDArray[np.int32]

REPLACED, RANDOM = 0.8, 0.1  # shares of the hidden tokens
EVALUATED = 2**64 - 1  # no seed is this high, so every run of a model is evaluated on the same hidden tokens


@dataclass(frozen=True)
class Masking:
    """The masking rule for one tokenizer.

    Attributes:
        probability: share of a row's tokens to be predicted.
        mask_id: id of the mask token.
        vocabulary: ids of random tokens are below it.
        specials: ids that are hidden last: [CLS], [SEP], [UNK] and the like.
        around: number of special tokens that the tokenizer adds to a text; `count` excludes them.
    """

    probability: float
    mask_id: int
    vocabulary: int
    specials: tuple[int, ...]
    around: int

    def count(self, length: int) -> int:
        """Return how many tokens of a row of `length` tokens are predicted: at least one."""
        return max(1, round(self.probability * (length - self.around)))

    def hide(self, ids: npt.ArrayLike, stream: int, position: int) -> tuple[Ids, Ids]:
        """Return input ids [tokens] with hidden tokens, and labels [tokens], -100 where nothing is predicted."""
        whole = np.asarray(ids, np.int32)
        random = np.random.Generator(np.random.Philox(key=np.array([stream, position], np.uint64)))
        order = random.random(len(whole)) + np.isin(whole, self.specials)
        hidden = np.argsort(order, kind="stable")[: self.count(len(whole))]
        kind = random.random(len(hidden))
        others = random.integers(self.vocabulary, size=len(hidden), dtype=np.int32)
        labels = np.full_like(whole, IGNORED)
        labels[hidden] = whole[hidden]
        read = whole.copy()
        read[hidden] = np.where(
            kind < REPLACED, np.int32(self.mask_id), np.where(kind < REPLACED + RANDOM, others, whole[hidden])
        )
        return read, labels


def masking_of(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Masking:
    """Return the masking rule of a run. Prepare has checked that the tokenizer has a mask token."""
    return Masking(
        probability=plan.mlm_probability,
        mask_id=int(tokenizer.mask_token_id),
        vocabulary=len(tokenizer),
        specials=tuple(tokenizer.all_special_ids),
        around=tokenizer.num_special_tokens_to_add(pair=False),
    )


class MaskedRows(Dataset[dict[str, Any]]):
    """Rows with masked `input_ids` and with `labels`, both int32 [tokens], for any collator of tokens.

    Args:
        rows: in training the virtual data set, where an index is a position of the run; in evaluation the rows.
        stream: the run's seed, or EVALUATED.
    """

    def __init__(self, rows: PreparedRows, masking: Masking, stream: int) -> None:
        self._rows = rows
        self._masking = masking
        self._stream = stream

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self._rows[position]
        ids, labels = self._masking.hide(row["input_ids"], self._stream, position)
        return {**row, "input_ids": ids, "labels": labels}

    @property
    def lengths(self) -> npt.ArrayLike:
        """Return the number of tokens of each row."""
        return self._rows.lengths

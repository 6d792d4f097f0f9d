"""Collation of preference rows: each row is one or two sequences, of which the completions are compared.

The sequences of a batch go through the collator of causal language modelling, flat or padded. `Sequences` says which of
the batch's trained tokens belong to which sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_trainer.worker.batches.causal import Tokens
from finetune_trainer.worker.batches.flat import split
from finetune_trainer.worker.batches.padded import IGNORED

Labelled = tuple[np.ndarray, np.ndarray]  # ids and labels of a sequence, each [tokens]


@dataclass(frozen=True)
class Sequences:
    """The trained tokens of each sequence of a batch, on the host.

    Attributes:
        counts: trained tokens of each sequence, in the order of the batch.
        places: place in the batch of each sequence, in the order of the rows.
    """

    counts: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def tokens(self) -> list[int]:
        """Return the trained tokens of each sequence, in the order of the rows."""
        return [self.counts[place] for place in self.places]

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over each sequence, [sequences] in the order of the rows, of values [trained]; it is the same
        to the bit in every run, unlike a scattered addition on a GPU."""
        parts = torch.split(values, list(self.counts))
        return torch.stack([parts[place].sum() for place in self.places])


@dataclass(frozen=True)
class PairBatches:
    """A collator for rows of a chosen and a rejected sequence, with `seq_lengths` [2].

    Returns what `tokens` returns, for twice as many sequences, and `sequences`, on the host: the chosen and the
    rejected one of each row in turn. Rows with `reference`, float32 [2], add `reference`, float32 [sequences].
    """

    tokens: Tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        pairs = [split(row) for row in rows]
        return joined(self.tokens, [one for pair in pairs for one in pair]) | references(rows)


@dataclass(frozen=True)
class TaughtPairBatches:
    """A collator for pairs whose chosen sequence is learned as a whole, with its prompt, as by ORPO.

    Returns the same as `PairBatches`, with all tokens of the chosen sequences among the trained ones; and `completion`,
    float32 [trained], 1 for the tokens of a completion, else 0.
    """

    tokens: Tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sequences, completions = [], []
        for row in rows:
            for place, (ids, labels) in enumerate(split(row)):
                taught = ids if place == 0 else labels
                sequences.append((ids, taught))
                completions.append((labels[1:] != IGNORED)[taught[1:] != IGNORED])
        batch = joined(self.tokens, sequences)
        inverse = np.argsort(batch["sequences"].places)
        marks = np.concatenate([completions[number] for number in inverse]).astype(np.float32)
        return batch | {"completion": torch.from_numpy(marks)}


@dataclass(frozen=True)
class SingleBatches:
    """A collator for rows of one sequence and a `label`, with the sequence of another row's completion.

    Returns what `tokens` returns and `sequences`; `desirable`, float32 [rows]; and `mismatched`, a batch of the
    sequences `mismatched` of the rows, (ids, labels) each. Rows with `reference`, float32 [2], add `reference`, float32
    [rows], to both batches.
    """

    tokens: Tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = joined(self.tokens, [(row["input_ids"], row["labels"]) for row in rows])
        other = joined(self.tokens, [row["mismatched"] for row in rows])
        both = references(rows)
        if both:
            own, others = both["reference"].view(-1, 2).unbind(1)
            batch, other = batch | {"reference": own}, other | {"reference": others}
        desirable = torch.tensor([float(row["label"]) for row in rows])
        return batch | {"desirable": desirable, "mismatched": other}


def joined(tokens: Tokens, sequences: Sequence[Labelled]) -> dict[str, Any]:
    """Return a batch of sequences, the longest first, as `FlatTokens` sorts them."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number][0]), reverse=True)
    batch = dict(tokens([dict(zip(("input_ids", "labels"), sequences[number], strict=True)) for number in order]))
    counts = tuple(int(np.count_nonzero(sequences[number][1][1:] != IGNORED)) for number in order)
    places = tuple(int(place) for place in np.argsort(order))
    return batch | {"sequences": Sequences(counts, places)}


def references(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the log-probabilities of the reference that the rows have, one after the other; empty without."""
    if "reference" not in rows[0]:
        return {}
    return {"reference": torch.from_numpy(np.concatenate([row["reference"] for row in rows]))}

"""Many encoded rows in a few flat arrays: what travels from the processes that tokenise to the one that writes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.observed.encoded import Encoded

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

Types = npt.NDArray[np.int8]

A = TypeVar("A", Ints, Bools, Types)

_NONE = np.zeros(0, np.int32)
_NO = np.zeros(0, np.bool_)
_NO_TYPES = np.zeros(0, np.int8)


@dataclass(frozen=True)
class TokenRows:
    """Rows of one split.

    Attributes:
        ids: int32 [tokens], all rows one after the other.
        lengths: int32 [rows], tokens of each.
        cut: bool [rows], whether it was longer than the limit.
        trained: bool [tokens] for causal models, else empty.
        targets: the targets of the rows, one after the other: int32 [classes], float32 [numbers], int32 [target
            tokens] of an encoder-decoder, int32 [tokens] for labels of words, int32 [sequences] of preference tuning,
            or int32 [texts] with the lengths of texts that are compared; else empty.
        target_lengths: int32 [rows], how much of it each has; else empty.
        types: int8 [tokens] for two texts a row and a model with token types, else empty.
    """

    ids: Ints
    lengths: Ints
    cut: Bools
    trained: Bools
    targets: Ints | Floats
    target_lengths: Ints
    types: Types = field(default_factory=_NO_TYPES.copy)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens in all, of inputs."""
        return len(self.ids)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each row begins in `ids`."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def part(self, start: int, stop: int) -> "TokenRows":
        """Return rows start to stop."""
        if start == 0 and stop >= len(self):
            return self
        tokens = _between(self.lengths, start, stop)
        targets = _between(self.target_lengths, start, stop)
        return TokenRows(
            self.ids[tokens],
            self.lengths[start:stop],
            self.cut[start:stop],
            self.trained[tokens],
            self.targets[targets],
            self.target_lengths[start:stop],
            self.types[tokens],
        )

    @staticmethod
    def joined(parts: Sequence["TokenRows"]) -> "TokenRows":
        """Return all rows of some parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return TokenRows(
            _joined([part.ids for part in parts], _NONE),
            _joined([part.lengths for part in parts], _NONE),
            _joined([part.cut for part in parts], _NO),
            _joined([part.trained for part in parts], _NO),
            _beside([part.targets for part in parts if len(part.targets)]),
            _joined([part.target_lengths for part in parts], _NONE),
            _joined([part.types for part in parts], _NO_TYPES),
        )

    @staticmethod
    def of(rows: Iterable[Encoded]) -> "TokenRows":
        """Return some rows in flat arrays."""
        rows = list(rows)
        targets = [row.target for row in rows if row.target is not None]
        lengths, cut = np.array([len(row.ids) for row in rows], np.int32), np.array([row.cut for row in rows], np.bool_)
        if any(row.parts is not None for row in rows):
            parts = [row.parts if row.parts is not None else lengths[at : at + 1] for at, row in enumerate(rows)]
            lengths = np.concatenate(parts)
            cut = np.array(
                [one for row, part in zip(rows, parts, strict=True) for one in _cuts(row, len(part))], np.bool_
            )
        return TokenRows(
            ids=_joined([row.ids for row in rows], _NONE),
            lengths=lengths,
            cut=cut,
            trained=_joined([row.trained for row in rows if row.trained is not None], _NO),
            targets=_beside(targets),
            target_lengths=np.array([length for row in rows for length in _target_lengths(row)], np.int32),
            types=_joined([row.types for row in rows if row.types is not None], _NO_TYPES),
        )


def _cuts(row: Encoded, parts: int) -> list[bool]:
    """Return whether each part of a row was cut; a pair says so of each of its completions."""
    return [answer.cut for answer in row.answers] if len(row.answers) == parts else [row.cut] * parts


def _target_lengths(row: Encoded) -> list[int]:
    """Return how much of its target each part of a row has."""
    if row.target is None:
        return []
    if row.parts is None:
        return [len(row.target)]
    if row.words is not None:  # each token has one
        return [int(length) for length in row.parts]
    return [len(row.target) // len(row.parts)] * len(row.parts)


def _joined(parts: Sequence[A], none: A) -> A:
    return np.concatenate(parts) if parts else none


def _beside(parts: Sequence[Ints | Floats]) -> Ints | Floats:
    """Return targets, all of one kind."""
    joined: Ints | Floats = np.concatenate(parts) if parts else _NONE  # type: ignore[assignment]
    return joined


def _between(lengths: Ints, start: int, stop: int) -> slice:
    first = int(lengths[:start].sum(dtype=np.int64))
    return slice(first, first + int(lengths[start:stop].sum(dtype=np.int64)))

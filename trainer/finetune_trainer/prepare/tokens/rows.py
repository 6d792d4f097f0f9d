"""Many encoded rows in a few flat arrays: what travels from the processes that tokenise to the one that writes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.tokens.encoded import Encoded

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

A = TypeVar("A", Ints, Bools)

_NONE = np.zeros(0, np.int32)
_NO = np.zeros(0, np.bool_)


@dataclass(frozen=True)
class TokenRows:
    """Rows of one split.

    Attributes:
        ids: int32 [tokens], all rows one after the other.
        lengths: int32 [rows], tokens of each.
        cut: bool [rows], whether it was longer than the limit.
        trained: bool [tokens] for causal models, else empty.
        targets: int32: [rows] the class; or [target tokens] of an encoder-decoder; else empty.
        target_lengths: int32 [rows] for an encoder-decoder, else empty.
    """

    ids: Ints
    lengths: Ints
    cut: Bools
    trained: Bools
    targets: Ints
    target_lengths: Ints

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
        """Rows start to stop."""
        if start == 0 and stop >= len(self):
            return self
        tokens = _between(self.lengths, start, stop)
        apiece = not len(self.target_lengths)  # a class for each row, or nothing
        targets = slice(start, stop) if apiece else _between(self.target_lengths, start, stop)
        return TokenRows(
            self.ids[tokens],
            self.lengths[start:stop],
            self.cut[start:stop],
            self.trained[tokens],
            self.targets[targets],
            self.target_lengths[start:stop],
        )

    @staticmethod
    def joined(parts: Sequence["TokenRows"]) -> "TokenRows":
        """All rows of some parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return TokenRows(
            _joined([part.ids for part in parts], _NONE),
            _joined([part.lengths for part in parts], _NONE),
            _joined([part.cut for part in parts], _NO),
            _joined([part.trained for part in parts], _NO),
            _joined([part.targets for part in parts], _NONE),
            _joined([part.target_lengths for part in parts], _NONE),
        )

    @staticmethod
    def of(rows: Iterable[Encoded], labels: Sequence[int] = ()) -> "TokenRows":
        """Some rows; `labels`: the class of each, for classification."""
        rows = list(rows)
        targets = [row.target for row in rows if row.target is not None]
        return TokenRows(
            ids=_joined([row.ids for row in rows], _NONE),
            lengths=np.array([len(row.ids) for row in rows], np.int32),
            cut=np.array([row.full_length > len(row.ids) for row in rows], np.bool_),
            trained=_joined([row.trained for row in rows if row.trained is not None], _NO),
            targets=np.array(labels, np.int32) if labels else _joined(targets, _NONE),
            target_lengths=np.array([len(target) for target in targets], np.int32),
        )


def _joined(parts: Sequence[A], none: A) -> A:
    return np.concatenate(parts) if parts else none


def _between(lengths: Ints, start: int, stop: int) -> slice:
    first = int(lengths[:start].sum(dtype=np.int64))
    return slice(first, first + int(lengths[start:stop].sum(dtype=np.int64)))

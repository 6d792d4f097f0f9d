"""One example as a model sees it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

IGNORED = -100  # torch's cross entropy skips this label


class RemarkCode(StrEnum):
    """The kinds of remarks on rows that are not wrong; LEARNT_DIFFERS is on a wrong one."""

    NOT_WRITTEN = "FieldNotWritten"
    REASONING_NOT_KEPT = "ReasoningNotKept"
    EMPTY_REASONING = "EmptyReasoning"
    LEARNT_DIFFERS = "LearntTextDiffers"
    SAME_POSITIVE = "PositiveEqualsAnchor"
    SAME_NEGATIVE = "NegativeEqualsPositive"
    INCONSISTENT_TAGS = "InconsistentTags"


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark on a row.

    Attributes:
        subject: what it is about; rows are counted by it.
        found, expected: texts that should be equal and are not.
    """

    code: RemarkCode
    subject: str = ""
    found: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example.

    Attributes:
        ids: int32 [tokens], after the cut.
        trained: bool [tokens], which of them carry loss (the first is never predicted and does not count); None where
            the target is not a token of the row.
        target: int32 [tokens] of an encoder-decoder's output; int32 [labels], the classes of a text; float32 [1], its
            number; int32 [tokens], the class of the word that begins at each token, else -100; int32 [completions], of
            preference tuning the lengths of its sequences, or the label of each completion; int32 [texts], the lengths
            of the texts that are compared; None elsewhere.
        full_length: tokens before the cut; more than `len(ids)` if it was cut.
        full_target: the same for `target`; 0 where it is not cut.
        parts: int32 [rows], the lengths of the rows that a long document, or a pair of completions, becomes; None
            where it is one.
        answers: each completion of a pair, encoded by itself; empty elsewhere.
        remarks: for the report.
        words: int32 [tokens], the labelled word that begins at each token, else -1; None where words have no labels.
        types: int8 [tokens], the text that each token is of, 0 or 1; None where the model takes no token types.
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_] | None = None
    target: npt.NDArray[np.int32] | npt.NDArray[np.float32] | None = None
    full_length: int = 0
    full_target: int = 0
    parts: npt.NDArray[np.int32] | None = None
    answers: "tuple[Encoded, ...]" = ()
    remarks: tuple[Remark, ...] = ()
    types: npt.NDArray[np.int8] | None = None
    words: npt.NDArray[np.int32] | None = None

    @property
    def cut(self) -> bool:
        """Whether something is left out."""
        return self.full_length > len(self.ids) or self.full_target > len(() if self.target is None else self.target)

"""What is counted of each row of preference tuning beside `observation.ROW`: its completions, and which is better."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.observed.fingerprints import digest
from finetune_trainer.prepare.observed.texts import Sides, sides

PAIR = -1  # in `desirable`: the row has two completions
FIRST_CUT, SECOND_CUT = 1, 2  # bits of `cut`

VERDICT = np.dtype(
    [
        ("better", "<u8"),  # hash of the chosen completion, or of the only one
        ("worse", "<u8"),  # hash of the rejected one; 0 where there is only one
        ("chosen", "<i4"),  # tokens of the chosen completion, or of the only one, after the cut
        ("rejected", "<i4"),
        ("longest", "<i4"),  # tokens of the longest sequence, before the cut
        ("cut", "i1"),  # which completions lack their end
        ("desirable", "i1"),  # 1 or 0 of a single completion
    ]
)


def verdict_rows(
    examples: Sequence[Example], encoded: Sequence[Encoded], both: Sequence[Sides]
) -> npt.NDArray[np.void]:
    """Return the counts of some rows, with the fields of `VERDICT`; no row, if they are not of preference tuning.

    Args:
        both: the sides of each example, with its better completion.
    """
    if examples[0].rejected is None and examples[0].desirable is None:
        return np.zeros(0, VERDICT)
    rows = np.zeros(len(examples), VERDICT)
    for row, example, one, side in zip(rows, examples, encoded, both, strict=True):
        answers = one.answers or (one,)
        row["better"] = digest(side.learnt.encode("utf-8", "replace"))
        row["chosen"] = _trained(answers[0])
        row["cut"] = FIRST_CUT * answers[0].cut
        row["longest"] = max(answer.full_length for answer in answers)
        row["desirable"] = PAIR if example.desirable is None else int(example.desirable)
        if example.rejected is not None:
            row["worse"] = digest(rejected_text(example).encode("utf-8", "replace"))
            row["rejected"] = _trained(answers[-1])
            row["cut"] += SECOND_CUT * answers[-1].cut
    return rows


def rejected_text(example: Example) -> str:
    """Return the text of the rejected completion; empty if there is none."""
    return "" if example.rejected is None else sides(example.rejected, labelled=False).learnt


def _trained(answer: Encoded) -> int:
    return 0 if answer.trained is None else int(np.count_nonzero(answer.trained))

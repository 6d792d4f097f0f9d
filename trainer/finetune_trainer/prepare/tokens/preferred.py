"""The completions of one prompt, each encoded by itself, as the tokens of one row of preference tuning."""

from collections.abc import Sequence

import numpy as np

from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.data.formats import Fault
from finetune_trainer.prepare.data.preferences import Completions
from finetune_trainer.prepare.observed.encoded import Encoded


def preferred(example: Example, answers: Sequence[Encoded | Fault], completions: Completions) -> Encoded | Fault:
    """Return the encoded row of an example; its first fault, if one of its completions has nothing to learn.

    Args:
        answers: prompt and completion, encoded, of each of `example.completions`.
    """
    rows = [row for row in answers if isinstance(row, Encoded)]
    if len(rows) < len(answers):
        return next(row for row in answers if isinstance(row, Fault))
    lengths = np.array([len(row.ids) for row in rows], np.int32)
    if completions is Completions.PAIRED:
        target, parts = lengths, None
    else:
        labels = [1, 0] if example.rejected is not None else [int(bool(example.desirable))]
        target, parts = np.array(labels, np.int32), lengths if len(rows) > 1 else None
    trained = [np.zeros(len(row.ids), np.bool_) if row.trained is None else row.trained.copy() for row in rows]
    for one in trained:
        one[:1] = False  # the first token of a sequence is never predicted
    return Encoded(
        ids=np.concatenate([row.ids for row in rows]),
        trained=np.concatenate(trained),
        target=target,
        full_length=sum(row.full_length for row in rows),
        parts=parts,
        answers=tuple(rows) if len(rows) > 1 else (),
        remarks=tuple(dict.fromkeys(remark for row in rows for remark in row.remarks)),
    )

"""What each model did: the values of single rows, texts and answers, before anything is concluded. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from finetune_api.messages import ProblemType, Task
from finetune_trainer.judge.resampling import Reals

NONE: Reals = np.zeros(0)


@dataclass(frozen=True)
class JudgedAnswer:
    """A generated answer. `ended`: whether the model ended it itself, within the limit of tokens."""

    text: str
    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Side:
    """The results of one model.

    Attributes:
        losses, items: summed loss and loss items of each held-out row, [rows].
        predicted: label ids [rows], bools [rows, labels], or numbers [rows]; None without labels.
        answers: to the questions.
        matched, swapped: summed loss of each reference after its own prompt, and after that of another row.
        general: loss of each general text, [texts].
        trained, held: whether the model continued each training row, and each held-out row, verbatim.
        exposures: bits of each canary.
        further: answers to the prompts of the job.
    """

    losses: Reals
    items: Reals
    predicted: npt.NDArray[np.generic] | None = None
    answers: Sequence[JudgedAnswer] = ()
    matched: Reals = field(default_factory=lambda: NONE)
    swapped: Reals = field(default_factory=lambda: NONE)
    general: Reals = field(default_factory=lambda: NONE)
    trained: Sequence[bool] = ()
    held: Sequence[bool] = ()
    exposures: Sequence[float] = ()
    further: Sequence[str] = ()


@dataclass(frozen=True)
class Shared:
    """What both models were asked.

    Attributes:
        problem: of a classification.
        truth: of the held-out rows; as `Side.predicted`.
        prompts, references: of the questions.
        reference_tokens: of each reference.
        limit: maximum length of an answer in tokens, with the token that ends it; 0 = none.
        cut: whether a reference is only the beginning of what follows, so that an answer need not end.
        general_bytes: bytes of each general text.
        canaries: texts.
        further: prompts of the job.
    """

    task: Task
    best_metric: str = "loss"
    problem: ProblemType | None = None
    labels: Sequence[str] = ()
    truth: npt.NDArray[np.generic] | None = None
    prompts: Sequence[str] = ()
    references: Sequence[str] = ()
    reference_tokens: Sequence[Sequence[int]] = ()
    limit: int = 0
    cut: bool = False
    general_bytes: Reals = field(default_factory=lambda: NONE)
    canaries: Sequence[str] = ()
    further: Sequence[str] = ()

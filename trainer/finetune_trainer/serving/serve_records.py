"""What a test on a server asks, and what it finds. The settings come from the job; the result stays in the artifact."""

import hashlib
from typing import Literal

from finetune_api.messages import Message
from finetune_api.plan import Plan
from finetune_api.v1alpha1.serve_spec import ServeTestSpec

RULES_VERSION = 1  # of the comparison: a higher number tests a finished run again at its next export
ROWS, TOKENS, AGREEMENT = 8, 32, 0.9

TRIED_WITH = "serve_tried_with"  # in the manifest of an artifact: the circumstances of a test without a verdict

Outcome = Literal["SameAnswers", "OtherAnswers", "EndsMissed", "ServerFailed", "NotServable", "NotTested"]


class ServeSettings(Message):
    """What a job asks for, with defaults.

    Attributes:
        tokens: maximum length of an answer.
        agreement: share of the tokens that must be equal.
    """

    prompts: tuple[str, ...] = ()
    rows: int = ROWS
    tokens: int = TOKENS
    agreement: float = AGREEMENT

    @classmethod
    def of(cls, spec: ServeTestSpec) -> "ServeSettings":
        """Return the settings of a job."""
        return cls(
            prompts=tuple(spec.prompts),
            rows=spec.rows or ROWS,
            tokens=spec.max_new_tokens or TOKENS,
            agreement=spec.agreement or AGREEMENT,
        )

    @property
    def digest(self) -> str:
        """The same for the same settings and the same version of the rules."""
        return hashlib.sha256(f"{RULES_VERSION}:{self.model_dump_json()}".encode()).hexdigest()[:16]


class ServeQuestion(Message):
    """What the process with transformers is asked.

    Attributes:
        base: folder of the base model, as it was mirrored; empty for a whole model.
        artifact: folder of the artifact, as a user gets it.
        dataset: folder of the prepared rows; empty if the job has prompts.
        chat: whether prompts are users' turns.
    """

    plan: Plan
    settings: ServeSettings
    base: str
    artifact: str
    dataset: str
    chat: bool = False


class GreedyAnswer(Message):
    """An answer as token ids, without the token that ends it.

    Attributes:
        ended: whether it ended by itself.
        passed: the token that should have ended it and did not; None if there was none.
    """

    tokens: tuple[int, ...]
    ended: bool
    passed: int | None = None


class ExpectedAnswers(Message):
    """What transformers answers.

    Attributes:
        prompts: token ids.
        ends: tokens that end an answer.
        dtype: data type of the model, by torch's name without `torch.`.
        turn: the token ids of `TURN` as a user's turn in the chat template; empty without one.
    """

    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[GreedyAnswer, ...]
    ends: tuple[int, ...]
    dtype: str
    turn: tuple[int, ...] = ()


class ServeTestResult(Message):
    """The result of one artifact, kept in its manifest.

    Attributes:
        settings: digest of what was asked; another test is made if it differs.
        served: None = it could not be tested.
        message: what was seen, in a sentence or two.
        share: of the tokens that are equal; None without answers.
    """

    settings: str
    served: bool | None = None
    reason: Outcome
    message: str
    share: float | None = None

    @property
    def undecided(self) -> bool:
        """Whether another server, or one with more memory, may give another result of the same artifact."""
        return self.reason in ("ServerFailed", "NotTested")

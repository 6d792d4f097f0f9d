"""What the judging process is asked: files on this machine, and what to measure."""

import hashlib

from finetune_api.messages import Message
from finetune_api.plan import Plan
from finetune_api.v1alpha1.judge_spec import JudgeSpec
from finetune_trainer.evaluations.records import EvaluationRecord

RULES_VERSION = 1  # of measures and rules: a higher number judges a finished run again at its next export
ROWS = 100
PREFIXES = 50  # rows whose continuation is compared with the data
LONGEST_ANSWER = 256  # tokens


class JudgeSettings(Message):
    """What a job asks for, with defaults.

    Attributes:
        max_new_tokens: 0 = from the references.
        seed: of the sampled rows and of the alternatives of canaries.
    """

    rows: int = ROWS
    max_new_tokens: int = 0
    prompts: tuple[str, ...] = ()
    canaries: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, spec: JudgeSpec) -> "JudgeSettings":
        """Return the settings of a job."""
        return cls(
            rows=spec.rows or ROWS,
            max_new_tokens=spec.max_new_tokens or 0,
            prompts=tuple(spec.prompts),
            canaries=tuple(spec.canaries),
        )

    @property
    def digest(self) -> str:
        """The same for the same settings and the same version of the rules."""
        text = f"{RULES_VERSION}:{self.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class JudgeQuestion(Message):
    """One judgement.

    Attributes:
        step, generation: of the checkpoint.
        form: name of the artifact's folder.
        base: folder of the base model, as it was mirrored.
        artifact: folder of the artifact, as a user gets it.
        dataset: folder of the prepared rows: the eval split, and of the training split what was fetched.
        evaluation: that of the checkpoint; None without one.
        chat: whether the training rows were written in a chat template, so that prompts are users' turns.
    """

    plan: Plan
    settings: JudgeSettings
    step: int
    generation: int
    form: str
    base: str
    artifact: str
    dataset: str
    evaluation: EvaluationRecord | None = None
    chat: bool = False

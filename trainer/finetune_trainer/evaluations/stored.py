"""The evaluations of a run in its storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from finetune_api.contract import File
from finetune_api.messages import Message
from finetune_trainer.evaluations.records import EvaluationRecord, Sample, record_path, samples_path
from finetune_trainer.storage import NotFoundError, ObjectStore

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class StoredEvaluation:
    """The record and the samples of one evaluation, as far as they are in storage.

    Attributes:
        unreadable: a sentence for each object that is in storage and cannot be read.
    """

    record: EvaluationRecord | None = None
    samples: tuple[Sample, ...] = ()
    unreadable: tuple[str, ...] = ()


def load_evaluation(store: ObjectStore, run: str, step: int) -> StoredEvaluation:
    """Return the evaluation of a step.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        StorageError: the store refused.
    """
    outputs, unreadable = f"{run}{File.OUTPUTS}/", list[str]()
    record, samples = _get(store, outputs + record_path(step)), _get(store, outputs + samples_path(step))
    records = _parsed(EvaluationRecord, record_path(step), [record] if record else [], unreadable)
    lines = [line for line in samples.splitlines() if line.strip()]
    parsed = _parsed(Sample, samples_path(step), lines, unreadable)
    return StoredEvaluation(records[0] if records else None, parsed, tuple(unreadable))


def _get(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except NotFoundError:
        return b""


def _parsed(kind: type[M], name: str, texts: Sequence[bytes], unreadable: list[str]) -> tuple[M, ...]:
    """Return all texts as messages; if one cannot be read, return none and add a sentence to `unreadable`."""
    try:
        return tuple(kind.model_validate_json(text) for text in texts)
    except ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        unreadable.append(f"{File.OUTPUTS}/{name} is ignored, it cannot be read: {reason}")
        return ()

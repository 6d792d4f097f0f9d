"""Evaluations of a run as they lie in its storage."""

from dataclasses import dataclass

from finetune_api.contract import File
from finetune_trainer.records import EvaluationRecord, Sample, record_path, samples_path
from finetune_trainer.storage import NotFoundError, ObjectStore


@dataclass(frozen=True)
class Told:
    """What is known of one evaluation beside its metrics; nothing where nothing was stored."""

    record: EvaluationRecord | None = None
    samples: tuple[Sample, ...] = ()


def told(store: ObjectStore, run: str, step: int) -> Told:
    """The evaluation of a step.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        StorageError: the store refused.
    """
    outputs = f"{run}{File.OUTPUTS}/"
    record = _text(store, outputs + record_path(step))
    samples = _text(store, outputs + samples_path(step)) or ""
    return Told(
        EvaluationRecord.model_validate_json(record) if record else None,
        tuple(Sample.model_validate_json(line) for line in samples.splitlines() if line.strip()),
    )


def _text(store: ObjectStore, key: str) -> str | None:
    try:
        return store.get(key).decode()
    except NotFoundError:
        return None

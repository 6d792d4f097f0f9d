"""Writes what an evaluation leaves to be read; see `finetune_trainer.evaluations.records` for what that is."""

from collections.abc import Sequence
from pathlib import Path

from finetune_trainer.evaluations.records import EvaluationRecord, Sample, record_path, samples_path


def write_records(outputs: Path, record: EvaluationRecord, samples: Sequence[Sample]) -> None:
    """The record of an evaluation and, if there are any, its samples."""
    _write(outputs / record_path(record.step), record.to_json())
    if samples:
        _write(outputs / samples_path(record.step), "".join(f"{sample.model_dump_json()}\n" for sample in samples))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}")  # whoever uploads the folder sees no half of a file
    whole.write_text(text, "utf-8")
    whole.rename(path)

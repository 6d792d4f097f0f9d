"""Files of an evaluation in the outputs of a run; see `finetune_trainer.evaluations.records` for their contents."""

from collections.abc import Sequence
from pathlib import Path

from finetune_trainer.evaluations.records import EvaluationRecord, Sample, record_path, samples_path


def write_records(outputs: Path, record: EvaluationRecord, samples: Sequence[Sample]) -> None:
    """Write the record of an evaluation and, if there are any, its samples."""
    _write(outputs / record_path(record.step), record.to_json())
    if samples:
        _write(outputs / samples_path(record.step), "".join(f"{sample.model_dump_json()}\n" for sample in samples))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")  # the rename keeps incomplete files out of the upload
    partial.write_text(text, "utf-8")
    partial.rename(path)

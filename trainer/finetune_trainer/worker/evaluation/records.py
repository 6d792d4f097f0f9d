"""What an evaluation leaves to be read: samples as JSON lines, tables as JSON, in the run's outputs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import checkpoint_name


@dataclass(frozen=True)
class Sample:
    """A generated answer beside the right one.

    Attributes:
        row: position among the documents of the eval split.
    """

    row: int
    prompt: str
    reference: str
    answer: str


def write_records(
    outputs: Path,
    step: int,
    metrics: dict[str, float],
    per_class: list[dict[str, Any]],
    samples: Sequence[Sample],
    generated: int,
) -> None:
    """Writes `evaluation/step-<step>.json` and, if there are any, `samples/step-<step>.jsonl`."""
    name = checkpoint_name(step)
    table = {"step": step, "metrics": metrics, "generated": generated, "per_class": per_class}
    _write(outputs / "evaluation" / f"{name}.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    if samples:
        lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
        _write(outputs / "samples" / f"{name}.jsonl", "".join(lines))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}")  # whoever uploads the folder sees no half of a file
    whole.write_text(text, "utf-8")
    whole.rename(path)

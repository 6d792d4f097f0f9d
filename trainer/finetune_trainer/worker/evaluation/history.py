"""The past of a run as trainer_state.json has it: survives a resume, also under another world size. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LOSS = "eval_loss"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        train_loss: mean of the training losses since the evaluation before; None where none was logged.
    """

    step: int
    metrics: Mapping[str, float]
    train_loss: float | None


def evaluations(log_history: Iterable[Mapping[str, Any]]) -> list[Evaluated]:
    """The evaluations in a Trainer's log, oldest first; one that was made again counts as it was made last."""
    found: dict[int, Evaluated] = {}
    losses: list[float] = []
    for entry in log_history:
        if LOSS in entry:
            metrics = {name: float(value) for name, value in entry.items() if name.startswith("eval_")}
            mean = sum(losses) / len(losses) if losses else None
            found[int(entry["step"])] = Evaluated(int(entry["step"]), metrics, mean)
            losses = []
        elif "loss" in entry:
            losses.append(float(entry["loss"]))
    return [found[step] for step in sorted(found)]

"""Past evaluations of a run, from trainer_state.json. They survive a resume, also under another world size. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LOSS = "eval_loss"


@dataclass(frozen=True)
class Evaluated:
    """One past evaluation.

    Attributes:
        train_loss: mean of the training losses since the previous evaluation; None if none was logged.
    """

    step: int
    metrics: Mapping[str, float]
    train_loss: float | None


def evaluations(log_history: Iterable[Mapping[str, Any]]) -> list[Evaluated]:
    """Return the evaluations in a Trainer's log, oldest first; of several at one step, the last one."""
    by_step: dict[int, Evaluated] = {}
    losses: list[float] = []
    for entry in log_history:
        if LOSS in entry:
            metrics = {name: float(value) for name, value in entry.items() if name.startswith("eval_")}
            mean = sum(losses) / len(losses) if losses else None
            by_step[int(entry["step"])] = Evaluated(int(entry["step"]), metrics, mean)
            losses = []
        elif "loss" in entry:
            losses.append(float(entry["loss"]))
    return [by_step[step] for step in sorted(by_step)]

"""Measurements of a step: seconds, seconds of waiting for data, tokens and samples, memory, share of the GPU's peak.

Only the host's clock is used. A step ends when its loss is read, because host and GPU synchronise there anyway.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from finetune_api.plan import Plan

GIB = 1 << 30


@dataclass(frozen=True)
class StepFigures:
    """The measurements of one step on rank 0, without evaluation and saving.

    Attributes:
        tokens: non-padding tokens of the global batch.
        samples: rows of the global batch.
        seconds: from the request of its batches to the value of its loss.
        data_wait: part of `seconds` until its batches were there.
        memory_bytes: peak so far: GPU memory of tensors; without a GPU, resident memory of the process.
        mfu: model FLOPs utilisation, PaLM paper (arXiv 2204.02311), appendix B; None if the GPU's peak is unknown.
    """

    tokens: int
    samples: int
    seconds: float
    data_wait: float
    memory_bytes: int
    mfu: float | None

    @property
    def logs(self) -> dict[str, float]:
        """Return the figures under the names that trackers show."""
        shown = {
            "tokens_per_second": self.tokens / self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "data_wait_seconds": self.data_wait,
            "memory_gib": self.memory_bytes / GIB,
        }
        return shown if self.mfu is None else {**shown, "mfu": self.mfu}

    @property
    def event(self) -> dict[str, float]:
        """Return the figures of an event for the agent."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "data_wait": self.data_wait,
            "memory_bytes": self.memory_bytes,
        }


class Meter:
    """A timer of the steps of one rank.

    Args:
        plan: has the rows of a step, the operations of a token and the GPU's peak.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the fetch of all batches of a step, which begins the step."""
        self._began = time.perf_counter()
        yield
        self._waited = time.perf_counter() - self._began

    def figures(self, tokens: int) -> StepFigures:
        """Return the figures of the step that has just ended; `tokens`: non-padding tokens of the global batch."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        plan = self._plan
        peak = plan.prediction.peak_flops * plan.world_size
        return StepFigures(
            tokens=tokens,
            samples=plan.layout.global_batch,
            seconds=seconds,
            data_wait=min(self._waited, seconds),
            memory_bytes=peak_memory(),
            mfu=plan.prediction.flops_per_token * tokens / seconds / peak
            if peak and plan.prediction.flops_per_token
            else None,
        )


def peak_memory() -> int:
    """Return the peak in bytes: of tensors on this rank's GPU, or of the process's resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

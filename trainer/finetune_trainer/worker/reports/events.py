"""Events of a worker for its agent: JSON lines on an inherited pipe. A line under PIPE_BUF (4,096 bytes) is written
atomically, so the lines of several workers on one pipe never mix.
"""

import os
from collections.abc import Mapping

from finetune_trainer.process.orders import WorkerEvent

MESSAGE_BYTES = 1500  # with JSON's escapes and the other fields, a line stays below PIPE_BUF


class Reporter:
    """A writer of the events of one rank.

    Args:
        descriptor: the write end of the agent's pipe.
        generation: generation of the gang this worker belongs to.
        rank: global rank.
    """

    def __init__(self, descriptor: int, generation: int, rank: int) -> None:
        self._descriptor = descriptor
        self._generation = generation
        self._rank = rank

    def phase(self, phase: str, step: int = 0) -> None:
        """Report that the worker enters `load`, `reference`, `train`, `eval` or `save`."""
        self._send(WorkerEvent(event="phase", generation=self._generation, rank=self._rank, step=step, phase=phase))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Report a step; `values`: loss, learning_rate, grad_norm, tokens, seconds, data_wait, memory_bytes."""
        self._send(
            WorkerEvent(event="step", generation=self._generation, rank=self._rank, step=step, values=dict(values))
        )

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Report a finished evaluation; `values` by metric name, such as eval_loss."""
        self._send(
            WorkerEvent(event="eval", generation=self._generation, rank=self._rank, step=step, values=dict(values))
        )

    def saved(self, step: int) -> None:
        """Report that this rank's files of the step's checkpoint are on the local disk."""
        self._send(WorkerEvent(event="saved", generation=self._generation, rank=self._rank, step=step))

    def error(self, message: str) -> None:
        """Report the exception that ends this worker, in one line."""
        text = message.encode()[:MESSAGE_BYTES].decode(errors="ignore")
        self._send(WorkerEvent(event="error", generation=self._generation, rank=self._rank, message=text))

    def _send(self, event: WorkerEvent) -> None:
        os.write(self._descriptor, (event.model_dump_json(exclude_defaults=True) + "\n").encode())

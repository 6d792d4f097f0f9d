"""The messages between an agent and its workers: the order that starts a worker, and the events that it sends back."""

from typing import Literal

from pydantic import Field

from finetune_api.messages import Message
from finetune_api.plan import Plan

OVERFITTING_SINCE = "overfitting_since"  # among the values of an evaluation: the step since which the run overfits


class WorkerOrder(Message):
    """Everything that one rank needs; paths are on the node's own disk.

    Attributes:
        threads: intra-op threads; a run is repeatable to the bit on CPU only with the same number.
        adapter: folder of the adapter to start from; None = the plan has none.
        outputs: folder for files for people: rank 0 writes TensorBoard's events, samples and tables there, and its
            agent uploads them.
        resume: folder of the checkpoint to resume from, complete on this node; None = start from the base model.
        checkpoints: folder below which checkpoints are written, one folder each, named by `contract.checkpoint_name`.
    """

    plan: Plan
    generation: int
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int
    master_host: str
    master_port: int
    threads: int
    model: str
    dataset: str
    checkpoints: str
    outputs: str
    adapter: str | None = None
    resume: str | None = None


class WorkerEvent(Message):
    """One line a worker writes to its agent; under 4,096 bytes, so that lines of several workers never mix.

    Attributes:
        values: numbers by name; which ones depends on `event` (see worker/reports/events.py).
    """

    event: Literal["phase", "step", "eval", "saved", "error"]
    generation: int
    rank: int
    step: int = 0
    phase: str = ""
    values: dict[str, float] = Field(default_factory=dict)
    message: str = ""

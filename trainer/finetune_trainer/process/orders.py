"""What the agent hands to a worker, and what the worker tells back: the only things the two sides share."""

from typing import Literal

from pydantic import Field

from finetune_api.messages import Message
from finetune_api.plan import Plan

OVERFITTING_SINCE = "overfitting_since"  # beside the metrics of an evaluation: the step at which the run turned


class WorkerOrder(Message):
    """Everything one rank needs; paths are on the node's own disk.

    Attributes:
        threads: intra-op threads; part of what makes a run repeatable to the bit on CPU.
        adapter: folder of the adapter to start from; None = the plan has none.
        outputs: folder for what people look at beside checkpoints: rank 0 writes TensorBoard's events, samples and
            tables there, its agent keeps the run's prefix in storage up to date with it.
        resume: folder of the checkpoint to go on from, complete on this node; None = start from the base model.
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


class SavedMarker(Message):
    """`rank-<n>.saved`, written by each rank as the last file of its share of a checkpoint.

    Attributes:
        samples: position in the virtual data set.
        metrics: evaluation metrics at this very step, if there was one (rank 0).
    """

    step: int
    generation: int
    rank: int
    samples: int
    metrics: dict[str, float] = Field(default_factory=dict)


def marker_name(rank: int) -> str:
    """File name of a rank's marker within a checkpoint's folder."""
    return f"rank-{rank}.saved"

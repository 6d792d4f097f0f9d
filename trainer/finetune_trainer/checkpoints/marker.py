"""The file by which a worker declares its save complete. Workers write it, agents read it."""

from pydantic import Field

from finetune_api.messages import Message

SUFFIX = ".saved"
PATTERN = f"rank-*{SUFFIX}"


class Marker(Message):
    """`rank-<n>.saved`, the last file that each rank writes of a checkpoint.

    Attributes:
        samples: position in the virtual data set.
        metrics: evaluation metrics at this very step, if there was an evaluation (rank 0).
    """

    step: int
    generation: int
    rank: int
    samples: int
    metrics: dict[str, float] = Field(default_factory=dict)


def marker_name(rank: int) -> str:
    """Return the file name of a rank's marker within a checkpoint's folder."""
    return f"rank-{rank}{SUFFIX}"

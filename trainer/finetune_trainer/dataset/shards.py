"""The files of a prepared data set: the prepare stage writes them, agents fetch them, workers map them into memory.

A split consists of shards, `train-00000.arrow` and so on, in the order of their rows. Each shard has a small index of
its rows. The indexes determine the order of a run, before any shard is fetched.
"""

import hashlib
from pathlib import Path

from finetune_api.contract import File
from finetune_api.messages import Message

WINDOWED_ABOVE = 64  # shards: a larger split (16 GiB, 4 thousand million tokens) is read window by window
WINDOW = 16  # shards whose rows are shuffled together: 4 GiB, which a node's memory holds
LONE = "{split}.arrow"  # one file per split, with labels instead of runs, in data of format 3 and older


class Shard(Message):
    """One file of a split.

    Attributes:
        rows: sequences in it.
        tokens: of all rows; for seq2seq of inputs and targets.
        sha256: over its values, not over the bytes of the file, so that it does not depend on the version of Arrow.
    """

    rows: int
    tokens: int
    sha256: str


class Shards(Message):
    """`shards.json`: the shards of each split in order; written after all of them.

    Attributes:
        packed: whether a row may hold several documents.
    """

    packed: bool = False
    train: tuple[Shard, ...]
    eval: tuple[Shard, ...] = ()

    def of(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of `train` or `eval`."""
        return self.eval if split == "eval" else self.train


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard, counted from 0."""
    return f"{split}-{number:05}.arrow"


def index_name(split: str, number: int) -> str:
    """Return the file name of the index of a shard's rows: `tokens` and `items` (of loss), int32 each."""
    return f"{split}-{number:05}.index.arrow"


def shard_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which an epoch visits the shards of a large split: by a hash, equal on every node."""
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{seed}:{epoch}:{number}".encode()).digest())


def read_shards(folder: Path) -> Shards | None:
    """Return the shards of a prepared data set; None if an older version prepared it without shards."""
    path = folder / File.SHARDS
    return Shards.model_validate_json(path.read_text("utf-8")) if path.is_file() else None

"""The files of a prepared data set: what the prepare stage writes, agents fetch and workers map into memory.

A split is a number of shards, `train-00000.arrow` and so on, in the order of their rows. Beside each lies an index of
its rows, which is small: whoever has all indexes knows the order of a run before a single shard is there.
"""

import hashlib
from pathlib import Path

from finetune_api.contract import File
from finetune_api.messages import Message

WINDOWED_ABOVE = 64  # shards: a larger split (16 GiB, 4 thousand million tokens) is read window by window
WINDOW = 16  # shards whose rows are shuffled together: 4 GiB, which a node's memory holds
LONE = "{split}.arrow"  # one file a split, with labels in place of runs: data that version 3 and older prepared


class Shard(Message):
    """One file of a split.

    Attributes:
        rows: sequences in it.
        tokens: of all rows; of seq2seq inputs and targets.
        sha256: over its values, not over the bytes of the file: another version of Arrow gives the same.
    """

    rows: int
    tokens: int
    sha256: str


class Shards(Message):
    """`shards.json`: the shards of each split in order; written when all of them are there.

    Attributes:
        packed: whether a row may hold several documents.
    """

    packed: bool = False
    train: tuple[Shard, ...]
    eval: tuple[Shard, ...] = ()

    def of(self, split: str) -> tuple[Shard, ...]:
        """The shards of `train` or `eval`."""
        return self.eval if split == "eval" else self.train


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard, counted from 0."""
    return f"{split}-{number:05}.arrow"


def index_name(split: str, number: int) -> str:
    """Return the file name of the index of a shard's rows: `tokens` and `items` (of loss), int32 each."""
    return f"{split}-{number:05}.index.arrow"


def shard_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which an epoch visits the shards of a large split: by a hash, the same everywhere."""
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{seed}:{epoch}:{number}".encode()).digest())


def read_shards(folder: Path) -> Shards | None:
    """Return what a prepared data set consists of; None if it was prepared before there were shards."""
    path = folder / File.SHARDS
    return Shards.model_validate_json(path.read_text("utf-8")) if path.is_file() else None

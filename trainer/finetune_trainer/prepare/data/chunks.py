"""A file in parts: each is read by one process, and small enough to be sent to it."""

from collections.abc import Iterator
from typing import Protocol

from finetune_trainer.prepare.data.formats import DataFile, Fault, Row


class Chunk(Protocol):
    """A part of a file; picklable. The records of all chunks of a file, in order, are the file's."""

    @property
    def file(self) -> DataFile: ...

    def records(self) -> Iterator[Row | Fault]:
        """Parse the part: a Row for each record, or a Fault that says what is wrong with it."""

"""The work items of everything that follows the check: parts of files, and what becomes of each of their good rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest

from finetune_api.errors import DataError
from finetune_trainer.prepare.data.chunks import Chunk
from finetune_trainer.prepare.data.examples import Columns, Example, examples
from finetune_trainer.prepare.data.file_places import source_changed
from finetune_trainer.prepare.data.formats import DataFile

LEFT_OUT = 0
EVALUATED = 255  # any other value: how often the row is trained on


class Split(StrEnum):
    TRAIN = "train"
    EVAL = "eval"


@dataclass(frozen=True, slots=True)
class Portion:
    """One chunk, a few MiB, picklable.

    Attributes:
        source: index of its source, for `CheckedData.add_fault`.
        choice: one byte for each good row: 0 = left out, 255 = for evaluation, n = for training, n times an epoch.
    """

    source: int
    chunk: Chunk
    columns: Columns
    choice: bytes

    @property
    def file(self) -> DataFile:
        """The file it is a part of."""
        return self.chunk.file

    def examples(self) -> Iterator[tuple[Split, int, Example]]:
        """Yield (split, how often, example) of each good row that is chosen; faults were counted before.

        Raises:
            DataError: there are other rows than when they were checked.
        """
        good = (record for record in examples(self.chunk.records(), self.columns) if isinstance(record, Example))
        for choice, example in zip_longest(self.choice, good):
            if choice is None or example is None:
                raise DataError(source_changed(self.file.name, self.file.field))
            if choice == EVALUATED:
                yield Split.EVAL, 1, example
            elif choice != LEFT_OUT:
                yield Split.TRAIN, choice, example

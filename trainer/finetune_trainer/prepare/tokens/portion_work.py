"""What a process does with a portion of the data: it parses, encodes and observes the rows. Picklable."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt

from finetune_api.messages import ProblemType
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.data.formats import DataFile, Fault
from finetune_trainer.prepare.data.portions import Portion, Split
from finetune_trainer.prepare.observed.encoded import IGNORED, Encoded
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.token_rows import TokenRows

BATCH = 500  # examples per call of the tokenizer


@dataclass(frozen=True)
class EncodedPortion:
    """The result of a portion: arrays and counts, which are cheap to send.

    Attributes:
        top: the largest token id.
    """

    source: int
    file: DataFile
    rows: Mapping[Split, TokenRows]
    observed: Mapping[Split, Observation]
    faults: tuple[Fault, ...]
    top: int


@dataclass(frozen=True)
class Classes:
    """How labels become numbers.

    Attributes:
        kind: what a classification predicts; None for the labels of words.
        names: by index; none for regression.
    """

    kind: ProblemType | None
    names: tuple[str, ...]

    def of(self, example: Example, row: Encoded) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
        """Return the target of a row, see `Encoded`; the classes of a text are ascending."""
        if row.words is not None:
            tags = np.array([self._index[tag] for tag in example.tags], np.int32)
            return np.where(row.words < 0, np.int32(IGNORED), tags[row.words])
        if self.kind is ProblemType.REGRESSION:
            return np.array([example.number], np.float32)
        return np.array(sorted(self._index[name] for name in example.names), np.int32)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


@dataclass(frozen=True)
class PortionWork:
    """The work of a process: it tokenises a portion.

    Attributes:
        sizes: rows of each split.
        alone: whether no other process works; then the tokenizer itself may use every core.
    """

    encoder: Encoder
    classes: Classes | None
    sizes: Mapping[Split, int]
    alone: bool

    def __call__(self, portion: Portion) -> EncodedPortion:
        if not self.alone:  # each process has a core already
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        kept: dict[Split, _SplitRows] = {}
        faults: list[Fault] = []
        for batch in _batches(portion.examples()):
            encoded = self.encoder([example for _, _, example in batch])
            for (split, times, example), row in zip(batch, encoded, strict=True):
                if isinstance(row, Fault):
                    faults.append(row)
                    continue
                if split not in kept:
                    kept[split] = _SplitRows(Observation(self.encoder.unk_id, self.sizes[split], portion.file.name))
                if self.classes is not None:
                    row = replace(row, target=self.classes.of(example, row))
                kept[split].add(example, row, times)
            for part in kept.values():
                part.observe()
        rows = {split: TokenRows.of(part.rows) for split, part in kept.items()}
        return EncodedPortion(
            source=portion.source,
            file=portion.file,
            rows=rows,
            observed={split: part.observation for split, part in kept.items()},
            faults=tuple(faults),
            top=max((int(part.ids.max()) for part in rows.values() if part.tokens), default=0),
        )


@dataclass
class _SplitRows:
    """The rows of one split in a portion. A row that is seen several times is observed once."""

    observation: Observation
    rows: list[Encoded] = field(default_factory=list)
    _examples: list[Example] = field(default_factory=list)
    _unseen: list[Encoded] = field(default_factory=list)

    def add(self, example: Example, row: Encoded, times: int) -> None:
        self.rows += [row] * times
        self._examples.append(example)
        self._unseen.append(row)

    def observe(self) -> None:
        self.observation.add(self._examples, self._unseen)
        self._examples, self._unseen = [], []


def _batches(rows: Iterable[tuple[Split, int, Example]]) -> Iterator[list[tuple[Split, int, Example]]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        yield batch

"""What is counted of one split while its rows are tokenised: small, picklable, and the sum of its parts.

About 40 bytes a row, beyond a million rows on disk, and a sample of at most 20,000 rows. Nothing here depends on how
rows were cut into chunks: only on their order.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.data.examples import SYSTEM_ROLES, Example
from finetune_trainer.prepare.observed.encoded import Encoded, Remark, RemarkCode
from finetune_trainer.prepare.observed.fingerprints import SHOWN_CHARACTERS, digest, keys
from finetune_trainer.prepare.observed.leftovers import Leftovers
from finetune_trainer.prepare.observed.sample import KEPT_TOKENS, ROWS, TOKEN_ROWS, RowSample, SampledRow, limit_for
from finetune_trainer.prepare.observed.spill import SpilledColumns, SpilledRows
from finetune_trainer.prepare.observed.texts import Sides, message_text, sides
from finetune_trainer.prepare.observed.verdicts import VERDICT, rejected_text, verdict_rows

NO_TOKENS_TRAINED = -1  # in `trained`: the target is a class, or a separate sequence
MOST_UNKNOWN = 0xFFFF
REJECTED = "[-]"  # stands before the rejected completion, where both are shown
LONGEST_WORD = 40  # an answer longer than that has blanks in it
WITHOUT_BLANKS = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{5}"
)  # more than a word

NUMBER = np.dtype("<f4")
POSITIVE = np.dtype("<u8")  # hash of the text that an anchor belongs to
ROW = np.dtype(
    [
        ("tokens", "<i4"),  # after the cut
        ("full", "<i4"),  # before it
        ("trained", "<i4"),  # of those that are predicted: the first never is
        ("unknown", "<u2"),  # as many at most as it can hold
        ("line", "<i4"),
        ("label", "<i4"),  # index into `labels`; -1 for none
        ("given", "<u8"),  # hash of what the model is given, its system message and tools too
        ("content", "<u8"),  # hash of the whole row
        ("answer", "i1"),  # words of the answer, at most 2; -1 where there is none to be
    ]
)


TABLES = {"rows": ROW, "numbers": NUMBER, "verdicts": VERDICT, "positives": POSITIVE}  # all but rows: of some tasks

Pieces = dict[str, npt.NDArray[Any]]  # by the names of `TABLES`


@dataclass
class Remarked:
    """The number of rows with the same remark, and the first of them."""

    first: Remark
    place: str
    rows: int = 0


@dataclass
class Observation:
    """Counts over some rows of a split; two of them merge into the counts over both.

    Attributes:
        unk_id: the token that stands for unknown characters; None if the tokenizer has none.
        rows: good rows of the whole split, as far as known: a chunk then keeps only rows that the sample may take.
            The same for all parts of a split.
        file: the data file's name, for the report.
        folder: for rows beyond those that memory holds; None = all stay in memory.
        labels: what rows say, by its first appearance: a label, or all labels of a row as one.
        members: the labels that each of them consists of.
        several: whether rows have lists of labels.
        tagged: whether words have labels: `labels` are the types of a row's entities.
    """

    unk_id: int | None = None
    rows: int = 0
    file: str = ""
    folder: str | None = None
    labels: dict[str, int] = field(default_factory=dict)  # name -> index, in the order of first appearance
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    several: bool = False
    tagged: bool = False
    leftovers: Leftovers = field(default_factory=Leftovers)
    unknown_characters: Counter[str] = field(default_factory=Counter)  # of rows with unknown tokens: rows that hold it
    remarks: dict[tuple[RemarkCode, str], "Remarked"] = field(default_factory=dict)
    sample: RowSample = field(init=False)
    files: list[tuple[str, int]] = field(default_factory=list)  # (file, how many rows of it follow)
    _tables: dict[str, SpilledRows] = field(init=False)

    def __post_init__(self) -> None:
        self.sample = RowSample(limit_for(self.rows, ROWS))
        self._tables = _empty_tables(self.folder)

    def __len__(self) -> int:
        return len(self._tables["rows"])

    def add(self, examples: Sequence[Example], encoded: Sequence[Encoded]) -> None:
        """Look at some rows and their tokens; both have the same length and order."""
        if not examples:
            return
        both = [sides(example, example.labelled) for example in examples]
        verdicts = verdict_rows(examples, encoded, both)
        part = np.zeros(len(examples), ROW)
        part["tokens"] = [len(row.ids) for row in encoded]
        part["full"] = np.maximum([row.full_length for row in encoded], part["tokens"])
        part["full"] += [0 if row.target is None else max(0, row.full_target - len(row.target)) for row in encoded]
        part["trained"] = [_trained(row) for row in encoded]
        part["unknown"] = np.minimum(self._unknown(encoded, part["tokens"]), MOST_UNKNOWN)
        part["line"] = [example.line for example in examples]
        part["label"] = [self._label(example) for example in examples]
        part["answer"] = [_answer_words(example, side) for example, side in zip(examples, both, strict=True)]
        wholes = [side.whole for side in both]
        raw = [whole.encode("utf-8", "replace") for whole in wholes]
        part["given"] = [
            digest(_asked(example, side).encode("utf-8", "replace"), side.setting)
            for example, side in zip(examples, both, strict=True)
        ]
        part["content"] = [
            digest(whole, side.setting, example.target_text.encode(), b"%d" % len(side.given), *_judged(example))
            for example, whole, side in zip(examples, raw, both, strict=True)
        ]
        self._keep(examples, encoded, both, part, keys(raw))
        for example, row in zip(examples, encoded, strict=True):
            for remark in row.remarks:
                place = f"{self.file}:{example.line}" if self.file else f"line {example.line}"
                self.remarks.setdefault((remark.code, remark.subject), Remarked(remark, place)).rows += 1
        if len(verdicts):  # what an undesirable completion says is not learnt
            wholes = [
                side.given if example.desirable is False else whole
                for example, side, whole in zip(examples, both, wholes, strict=True)
            ]
            raw = [whole.encode("utf-8", "replace") for whole in wholes]
        self.leftovers.add(self.file, part["line"].tolist(), wholes, raw, [side.system for side in both])
        for index in np.flatnonzero(part["unknown"]):
            self.unknown_characters.update(set(wholes[index][:SHOWN_CHARACTERS]))
        numbers = [example.number for example in examples if example.number is not None and not example.names]
        compared = [example.completion for example in examples if example.negatives is not None]
        positives = [digest(text.encode("utf-8", "replace")) for text in compared]
        self.take_rows(
            {
                "rows": part,
                "verdicts": verdicts,
                "numbers": np.array(numbers, NUMBER),
                "positives": np.array(positives, POSITIVE),
            }
        )
        self._count_file(self.file, len(examples))

    def merge(self, later: "Observation") -> None:
        """Take in what was counted of the rows that follow."""
        renumbered = np.array([self.labels.setdefault(name, len(self.labels)) for name in later.labels], np.int32)
        for name, table in later._tables.items():
            for part in table.parts:
                if name == "rows" and len(renumbered):
                    part = part.copy()
                    part["label"] = np.where(part["label"] < 0, -1, renumbered[part["label"]])
                self._tables[name].append(part)
        self.members.update(later.members)
        self.several |= later.several
        self.tagged |= later.tagged
        for file, count in later.files:
            self._count_file(file, count)
        for about, other in later.remarks.items():
            own = self.remarks.setdefault(about, Remarked(other.first, other.place))
            own.rows += other.rows
        self.leftovers.merge(later.leftovers)
        self.unknown_characters.update(later.unknown_characters)
        self.sample.merge(later.sample)

    def table(self) -> SpilledColumns:
        """Return all rows, in order, with the fields of `ROW`."""
        rows: SpilledColumns = self._tables["rows"].all()
        return rows

    def numbers(self) -> npt.NDArray[np.float32]:
        """Return the number of each row, in order; none where numbers are not what is learnt."""
        numbers: npt.NDArray[np.float32] = self._tables["numbers"].all()
        return numbers

    def verdicts(self) -> SpilledColumns:
        """Return all rows of preference tuning, in order, with the fields of `VERDICT`; none for other tasks."""
        rows: SpilledColumns = self._tables["verdicts"].all()
        return rows

    def positives(self) -> npt.NDArray[np.uint64]:
        """Return a hash of the positive of each row, in order; none for tasks that compare no texts."""
        positives: npt.NDArray[np.uint64] = self._tables["positives"].all()
        return positives

    def lengths(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        return {name: len(table) for name, table in self._tables.items()}

    def rows_since(self, lengths: Mapping[str, int]) -> Pieces:
        """Return what the tables hold from these places on."""
        return {name: table.since(lengths.get(name, 0)) for name, table in self._tables.items()}

    def without_rows(self, folder: str | None = None) -> "Observation":
        """Return all but the tables: it is small for any number of rows. Rows added later go to `folder`."""
        small = copy(self)
        small.folder = folder
        small._tables = _empty_tables(folder)
        return small

    def take_rows(self, pieces: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append rows, such as `rows_since` gave them, to the tables."""
        for name, rows in pieces.items():
            self._tables[name].append(rows)

    def place(self, row: int) -> str:
        """Return `train.jsonl:214` of a row by its index."""
        line = int(self.table()["line"][row])
        for file, count in self.files:
            if row < count:
                return f"{file}:{line}" if file else f"line {line}"
            row -= count
        raise IndexError(row)

    def _label(self, example: Example) -> int:
        if not example.names and example.labels is None:
            return -1
        self.several |= example.labels is not None
        target, members = example.target_text, example.names
        if example.tags:
            self.tagged = True
            members = tuple(sorted({entity.kind for entity in example.entities}))
            target = "; ".join(members) or "(none)"
        self.members.setdefault(target, members)
        return self.labels.setdefault(target, len(self.labels))

    def _count_file(self, file: str, count: int) -> None:
        if self.files and self.files[-1][0] == file:
            self.files[-1] = (file, self.files[-1][1] + count)
        else:
            self.files.append((file, count))

    def _unknown(self, encoded: Sequence[Encoded], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        if self.unk_id is None or not lengths.any():
            return np.zeros(len(encoded), np.int64)
        found = np.concatenate([row.ids for row in encoded]) == self.unk_id
        totals = np.concatenate([[0], np.cumsum(found)])
        ends = np.cumsum(lengths)
        counts: npt.NDArray[np.int64] = totals[ends] - totals[ends - lengths]
        return counts

    def _keep(
        self,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        both: Sequence[Sides],
        part: npt.NDArray[np.void],
        rows_keys: npt.NDArray[np.uint64],
    ) -> None:
        token_limit = limit_for(self.rows, TOKEN_ROWS)
        wanted = np.flatnonzero(rows_keys <= np.uint64(self.sample.limit - 1)).tolist()
        for index in wanted:
            key, content = int(rows_keys[index]), int(part["content"][index])
            if not self.sample.wants(key, content):
                continue
            ids = encoded[index].ids[:KEPT_TOKENS].copy() if key < token_limit else None
            self.sample.take(
                SampledRow(
                    key,
                    content,
                    self.file,
                    examples[index].line,
                    examples[index].target_text,
                    both[index].given[:SHOWN_CHARACTERS],
                    _shown(examples[index], both[index])[:SHOWN_CHARACTERS],
                    int(part["tokens"][index]),
                    int(part["unknown"][index]),
                    ids,
                )
            )


def _asked(example: Example, side: Sides) -> str:
    """Return what is given: of preferences the prompt, as later questions belong to a completion of several turns."""
    if not example.prefers or not example.messages:
        return side.given
    return "\n".join(message_text(one) for one in example.asked if one["role"] not in SYSTEM_ROLES)


def _judged(example: Example) -> tuple[bytes, ...]:
    """Return what tells preferences of one prompt apart; nothing for other tasks."""
    if example.rejected is not None:
        return (rejected_text(example).encode("utf-8", "replace"),)
    return () if example.desirable is None else (b"%d" % example.desirable,)


def _shown(example: Example, side: Sides) -> str:
    """Return what is learnt of a row; of a pair both completions."""
    return side.learnt if example.rejected is None else f"{side.learnt}\n{REJECTED} {rejected_text(example)}"


def _trained(row: Encoded) -> int:
    return NO_TOKENS_TRAINED if row.trained is None else int(np.count_nonzero(row.trained[1:]))


def _answer_words(example: Example, side: Sides) -> int:
    if example.labelled or side.last is None:
        return -1
    if side.acts or len(side.last) > LONGEST_WORD or WITHOUT_BLANKS.search(side.last):
        return 2
    return min(2, len(side.last.split(None, 2)))


def _empty_tables(folder: str | None) -> dict[str, SpilledRows]:
    return {name: SpilledRows(dtype, folder) for name, dtype in TABLES.items()}

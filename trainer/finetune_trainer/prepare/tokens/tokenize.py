"""Examples to token ids in Arrow files, by all cores: each process parses, encodes and observes a part of a file.

The parent only writes and hashes. Nothing depends on how many processes there are, nor on how files are cut into parts.
After each shard all that an interrupted call needs to go on is given to a keeper (`keeping`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_api.contract import File
from finetune_api.errors import DataError, ModelError, Problem
from finetune_api.messages import DatasetFacts, ProblemType, SplitFacts, Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.dataset.shards import Shards
from finetune_trainer.model.files import CHAT_TEMPLATE, TOKENIZER_FILES
from finetune_trainer.prepare.data.dataset import CheckedData
from finetune_trainer.prepare.data.dataset import processes as processes_for
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.data.formats import DataFile, Fault
from finetune_trainer.prepare.data.notices import Notice
from finetune_trainer.prepare.data.portions import EVALUATED, LEFT_OUT, Portion, Split
from finetune_trainer.prepare.pool import map_in_order
from finetune_trainer.prepare.quality.observation import Observation
from finetune_trainer.prepare.tokens.encoded import Encoded
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.keeping import LocalShards, ShardKeeper, TokenizeProgress
from finetune_trainer.prepare.tokens.token_rows import TokenRows
from finetune_trainer.prepare.tokens.writer import SplitWriter, Written

BATCH = 500  # examples per call of the tokenizer
VERSION = 4  # of all that turns examples to tokens: part of every address and index


@dataclass(frozen=True)
class Tokenized:
    """A folder with the shards, unless a keeper has taken them, shards.json, labels.json and chat_template.jinja.

    Attributes:
        observations: what was seen of each split, for its report.
        notes: what a careful reader should know.
        notices: what is to be said of the columns and labels.
        untrained: tokens that it has and whose embeddings were never trained, and their ids.
    """

    folder: Path
    facts: DatasetFacts
    observations: Mapping[Split, Observation] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    untrained: Mapping[str, int] = field(default_factory=dict)


def options_key(spec: DatasetSpec, template: str | None) -> dict[str, Any]:
    """All of a job, beside its data and tokenizer, that the tokens depend on; `template`: the text of a given one."""
    return {
        "version": VERSION,
        "loss_on": spec.loss_on or "completion",
        "packing": bool(spec.packing),
        "template": hashlib.sha256(template.encode()).hexdigest() if template else spec.chat_template,
    }


def tokenize(
    spec: DatasetSpec,
    task: Task,
    data: CheckedData,
    encoder: Encoder,
    folder: Path,
    processes: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    keeper: ShardKeeper | None = None,
) -> Tokenized:
    """Write a data set's Arrow files.

    Args:
        processes: how many tokenise; None = as many as the data is worth.
        report: called with a line as the work goes on.
        keeper: takes the shards and knows what an interrupted call has done; None = the shards stay in the folder.

    Raises:
        DataError: rows in which nothing is left to learn after the cut, or that the chat template refuses.
        ModelError: the tokenizer gives ids that the model has no embedding for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keeper = keeper or LocalShards()
    count = processes_for(data.bytes) if processes is None else processes
    classes = Classes(data.problem_type, data.labels) if data.problem_type else None
    sizes = _sizes(data)
    begun = keeper.begun() or _nothing_done(data, encoder, sizes, folder)
    observed = begun.observed
    for source, tally in zip(data.sources, begun.tallies, strict=True):
        source.tally = tally
    work = _Work(encoder, classes, sizes, alone=count == 1)
    with ExitStack() as files:
        writers = {
            split: files.enter_context(
                SplitWriter(
                    folder,
                    split,
                    task,
                    encoder.limit if spec.packing else None,
                    kind=data.problem_type,
                    added=partial(keeper.added, split),
                    finished=partial(keeper.finished, split),
                    written=begun.written[split],
                )
            )
            for split in begun.written
        }
        for split, parts in begun.pending.items():
            for rows in parts:
                writers[split].add(rows)
        top, portions = begun.top, begun.portions
        watch = _Watch.of(report, data.good, begun)
        for done in map_in_order(work, islice(data.portions(), portions, None), count):
            shards = sum(len(writer.written.shards) for writer in writers.values())
            for fault in done.faults:
                data.add_fault(done.source, done.file, fault)
            for split, rows in done.rows.items():
                writers[split].add(rows)
                observed[split].merge(done.observed[split])
            top = max(top, done.top)
            portions += 1
            watch.add(done)
            written = {split: writer.written for split, writer in writers.items()}
            if sum(len(one.shards) for one in written.values()) > shards:
                keeper.keep(TokenizeProgress(portions, written, {}, observed, data.tallies(), top))
    if problems := data.problems():
        raise DataError(problems)
    if encoder.embeddings is not None and top >= encoder.embeddings:
        raise ModelError(_mismatch(top, encoder.embeddings))
    facts = {split: writer.written.facts for split, writer in writers.items()}
    if missing := [split for split, found in facts.items() if not found.rows]:
        raise DataError(_nothing_left(spec, missing[0]))
    of_split = {str(split): writer.written.shards for split, writer in writers.items()}
    consists_of = Shards.model_validate({"packed": bool(spec.packing), **of_split})
    (folder / File.SHARDS).write_text(consists_of.to_json(), "utf-8")
    if data.labels:
        (folder / File.LABELS).write_text(json.dumps(data.labels, ensure_ascii=False, indent=1) + "\n", "utf-8")
    if encoder.template is not None:
        (folder / CHAT_TEMPLATE).write_text(encoder.template.inference, "utf-8")
    identity = [VERSION, task, data.problem_type, data.labels]
    address = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode())
    if encoder.template is not None:
        address.update(f"template:{encoder.template.inference}".encode())
    if encoder.extended is not None:
        address.update(f"tokenizer:{_keep_tokenizer(encoder.extended, folder)}".encode())
    for split, writer in writers.items():
        address.update(f"{split}:{writer.written.digest}".encode())
    found = _facts(address.hexdigest(), facts, data).model_copy(update={"ends": encoder.ends})
    return Tokenized(folder, found, observed, encoder.notes, data.notices)


def _nothing_done(data: CheckedData, encoder: Encoder, sizes: Mapping[Split, int], folder: Path) -> TokenizeProgress:
    splits = [Split.TRAIN, *([Split.EVAL] if data.has_eval else [])]
    return TokenizeProgress(
        portions=0,
        written={split: Written() for split in splits},
        pending={},
        observed={split: Observation(encoder.unk_id, sizes[split], folder=str(folder)) for split in splits},
        tallies=data.tallies(),
        top=0,
    )


def _keep_tokenizer(extended: Path, folder: Path) -> str:
    """Put the files of a tokenizer with new tokens beside the data (a chat template is there, or the model's stays);
    a hash over them."""
    digest = hashlib.sha256()
    for path in sorted(extended.iterdir()):
        if path.name in TOKENIZER_FILES - {CHAT_TEMPLATE}:
            shutil.copyfile(path, folder / path.name)
            digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def _sizes(data: CheckedData) -> dict[Split, int]:
    """Rows of each split, each counted once however often it is seen."""
    sizes = dict.fromkeys(Split, 0)
    for source in data.sources:
        if source.choice is None:
            sizes[Split.TRAIN] += source.good
        else:
            evaluated = int((source.choice == EVALUATED).sum())
            sizes[Split.EVAL] += evaluated
            sizes[Split.TRAIN] += int((source.choice != LEFT_OUT).sum()) - evaluated
    return sizes


def _facts(address: str, splits: Mapping[Split, SplitFacts], data: CheckedData) -> DatasetFacts:
    return DatasetFacts(
        sha256=address,
        train=splits[Split.TRAIN],
        eval=splits.get(Split.EVAL),
        labels=data.labels,
        problem_type=data.problem_type,
        skipped_rows=sum(tally.faults for tally in data.tallies()),
    )


def _mismatch(top: int, embeddings: int) -> Problem:
    return Problem(
        code="VocabularyMismatch",
        field="spec.model",
        message=f"the tokenizer gives the id {top}, and the model has embeddings for ids below {embeddings} only",
        cure="use the tokenizer that the model was trained with, or a model whose embeddings were resized and saved",
    )


def _nothing_left(spec: DatasetSpec, split: Split) -> Problem:
    field_name = "spec.dataset.eval" if split is Split.EVAL and spec.eval else "spec.dataset.train"
    message = f"no row of {split} is left: nothing can be learnt of any"
    return Problem(code="NoRows", field=field_name, message=message, cure="raise spec.dataset.maxLength, or add rows")


# ---------------------------------------------------------------- in the processes


@dataclass(frozen=True)
class _Done:
    """What became of a portion. Arrays and counts: cheap to send."""

    source: int
    file: DataFile
    rows: Mapping[Split, TokenRows]
    observed: Mapping[Split, Observation]
    faults: tuple[Fault, ...]
    top: int  # the largest id


@dataclass(frozen=True)
class Classes:
    """How labels become numbers.

    Attributes:
        names: by index; none for regression.
    """

    kind: ProblemType
    names: tuple[str, ...]

    def of(self, example: Example) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
        """int32 [labels] the indices, ascending; for regression float32 [1], the number."""
        if self.kind is ProblemType.REGRESSION:
            return np.array([example.number], np.float32)
        return np.array(sorted(self._index[name] for name in example.names), np.int32)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


@dataclass(frozen=True)
class _Work:
    """Tokenises a portion."""

    encoder: Encoder
    classes: Classes | None
    sizes: Mapping[Split, int]  # rows of each split
    alone: bool

    def __call__(self, portion: Portion) -> _Done:
        if not self.alone:  # each process has a core already
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        kept: dict[Split, _Kept] = {}
        faults: list[Fault] = []
        for batch in _batches(portion.examples()):
            encoded = self.encoder([example for _, _, example in batch])
            for (split, times, example), row in zip(batch, encoded, strict=True):
                if isinstance(row, Fault):
                    faults.append(row)
                    continue
                if split not in kept:
                    kept[split] = _Kept(Observation(self.encoder.unk_id, self.sizes[split], portion.file.name))
                if self.classes is not None:
                    row = replace(row, target=self.classes.of(example))
                kept[split].add(example, row, times)
            for part in kept.values():
                part.observe()
        rows = {split: TokenRows.of(part.rows) for split, part in kept.items()}
        return _Done(
            source=portion.source,
            file=portion.file,
            rows=rows,
            observed={split: part.observation for split, part in kept.items()},
            faults=tuple(faults),
            top=max((int(part.ids.max()) for part in rows.values() if part.tokens), default=0),
        )


@dataclass
class _Kept:
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


@dataclass
class _Watch:
    """Says how far it is, at each tenth."""

    report: Callable[[str], None]
    good: int
    seen: int
    tokens: int

    @classmethod
    def of(cls, report: Callable[[str], None], good: int, begun: TokenizeProgress) -> "_Watch":
        """With what an earlier call has done, which is said."""
        pending = [rows for parts in begun.pending.values() for rows in parts]
        facts = [one.facts for one in begun.written.values()]
        seen = sum(one.examples for one in facts) + sum(len(rows) for rows in pending)
        tokens = sum(one.tokens for one in facts) + sum(rows.tokens for rows in pending)
        if begun.portions:
            shards = sum(len(one.shards) for one in begun.written.values())
            report(f"dataset: going on after {shards} files and {tokens / 1e6:.1f} million tokens")
        return cls(report, good, seen, tokens)

    def add(self, done: _Done) -> None:
        before = 10 * self.seen // max(self.good, 1)
        self.seen += len(done.faults) + sum(len(rows) for rows in done.rows.values())
        self.tokens += sum(rows.tokens for rows in done.rows.values())
        tenths = 10 * self.seen // max(self.good, 1)
        if before < tenths < 10:
            self.report(f"dataset: {10 * tenths} % tokenised, {self.tokens / 1e6:.1f} million tokens")


def _batches(rows: Iterable[tuple[Split, int, Example]]) -> Iterator[list[tuple[Split, int, Example]]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        yield batch

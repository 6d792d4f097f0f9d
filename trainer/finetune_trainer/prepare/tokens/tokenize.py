"""Examples to token ids in Arrow files, by all cores: each process parses, encodes and observes a part of a file.

The parent only writes and hashes. Nothing depends on how many processes there are, nor on how files are cut into parts.
After each shard a keeper (`keeping`) gets all that an interrupted call needs to continue.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.contract import File
from finetune_api.errors import DataError, ModelError, Problem
from finetune_api.messages import DatasetFacts, ProblemType, Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.dataset.shards import Shards
from finetune_trainer.model.files import CHAT_TEMPLATE, TOKENIZER_FILES
from finetune_trainer.prepare.data.dataset import CheckedData
from finetune_trainer.prepare.data.dataset import processes as processes_for
from finetune_trainer.prepare.data.portions import EVALUATED, LEFT_OUT, Split
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.pool import map_in_order
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.keeping import LocalShards, ShardKeeper, TokenizeProgress
from finetune_trainer.prepare.tokens.portion_work import Classes, EncodedPortion, PortionWork
from finetune_trainer.prepare.tokens.split_writer import SplitWriter, Written

VERSION = 6  # of all that turns examples to tokens: part of every address and index


@dataclass(frozen=True)
class Tokenized:
    """A folder with the shards, unless a keeper has taken them, shards.json, labels.json and chat_template.jinja.

    Attributes:
        observations: what was seen of each split, for its report.
    """

    folder: Path
    facts: DatasetFacts
    observations: Mapping[Split, Observation] = field(default_factory=dict)


def options_key(spec: DatasetSpec, template: str | None, prompts: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """Return all of a job that the tokens depend on beside data and tokenizer.

    Args:
        template: the text of a given chat template.
        prompts: put before the texts that are compared.
    """
    return {
        **({"prompts": prompts} if any(prompts) else {}),
        "version": VERSION,
        "loss_on": spec.loss_on or "completion",
        "packing": bool(spec.packing),
        "template": hashlib.sha256(template.encode()).hexdigest() if template else spec.chat_template,
    }


@dataclass(frozen=True)
class _Request:
    """What is tokenised, and where its files go."""

    spec: DatasetSpec
    task: Task
    data: CheckedData
    encoder: Encoder
    folder: Path


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
        report: called with lines of progress.
        keeper: takes the shards and knows what an interrupted call has done; None = the shards stay in the folder.

    Raises:
        DataError: rows in which nothing is left to learn after the cut, or that the chat template refuses.
        ModelError: the tokenizer gives ids that the model has no embedding for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keeper, sizes = keeper or LocalShards(), _sizes(data)
    begun = keeper.begun() or _nothing_done(data, encoder, sizes, folder)
    sources = [replace(source, tally=tally) for source, tally in zip(data.sources, begun.tallies, strict=True)]
    request = _Request(spec, task, replace(data, sources=tuple(sources)), encoder, folder)
    count = processes_for(data.bytes) if processes is None else processes
    classes = Classes(data.problem_type, data.labels) if spec_of(task).named else None
    work = PortionWork(encoder, classes, sizes, alone=count == 1)
    portions = map_in_order(work, islice(data.portions(), begun.portions, None), count)
    done = _write(request, portions, begun, keeper, _Watch.of(report, data.good, begun))
    _check(request, done)
    _describe(request, done.written)
    return Tokenized(folder, _facts(request, done.written), done.observed)


def _write(
    request: _Request,
    portions: Iterator[EncodedPortion],
    begun: TokenizeProgress,
    keeper: ShardKeeper,
    watch: "_Watch",
) -> TokenizeProgress:
    """Write the portions in their order; return what is done at the end: everything.

    The keeper gets each shard, and, when shards were finished, all that is done.
    """
    data, observed, top, number = request.data, begun.observed, begun.top, begun.portions
    with ExitStack() as files:
        writers = {split: files.enter_context(_writer(request, split, begun, keeper)) for split in begun.written}
        for split, parts in begun.pending.items():
            for rows in parts:
                writers[split].add(rows)
        for number, portion in enumerate(portions, begun.portions + 1):
            shards = _shards(writers)
            for fault in portion.faults:
                data.add_fault(portion.source, portion.file, fault)
            for split, rows in portion.rows.items():
                writers[split].add(rows)
                observed[split].merge(portion.observed[split])
            top = max(top, portion.top)
            watch.add(portion)
            if _shards(writers) > shards:
                written = {split: writer.written for split, writer in writers.items()}
                keeper.keep(TokenizeProgress(number, written, {}, observed, data.tallies(), top))
    written = {split: writer.written for split, writer in writers.items()}
    return TokenizeProgress(number, written, {}, observed, data.tallies(), top)


def _shards(writers: Mapping[Split, SplitWriter]) -> int:
    return sum(len(writer.written.shards) for writer in writers.values())


def _writer(request: _Request, split: Split, begun: TokenizeProgress, keeper: ShardKeeper) -> SplitWriter:
    return SplitWriter(
        request.folder,
        split,
        request.task,
        request.encoder.limit if request.spec.packing else None,
        kind=ProblemType.SINGLE_LABEL if request.encoder.judged else request.data.problem_type,
        typed=request.encoder.typed and request.encoder.pair_separator is not None,
        added=partial(keeper.added, split),
        finished=partial(keeper.finished, split),
        written=begun.written[split],
    )


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


def _check(request: _Request, done: TokenizeProgress) -> None:
    """Raise what is wrong with the rows, as `tokenize`."""
    if problems := request.data.problems():
        raise DataError(problems)
    embeddings = request.encoder.embeddings
    if embeddings is not None and done.top >= embeddings:
        raise ModelError(_mismatch(done.top, embeddings))
    if missing := [split for split, written in done.written.items() if not written.facts.rows]:
        raise DataError(_nothing_left(request.spec, missing[0]))


def _describe(request: _Request, written: Mapping[Split, Written]) -> None:
    """Write what the shards consist of, the labels, the chat template, and a tokenizer with new tokens."""
    folder, labels, encoder = request.folder, request.data.labels, request.encoder
    of_split = {str(split): one.shards for split, one in written.items()}
    consists_of = Shards.model_validate({"packed": bool(request.spec.packing), **of_split})
    (folder / File.SHARDS).write_text(consists_of.to_json(), "utf-8")
    if labels:
        (folder / File.LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n", "utf-8")
    if encoder.template is not None:
        (folder / CHAT_TEMPLATE).write_text(encoder.template.inference, "utf-8")
    if encoder.extended is not None:
        for path in _tokenizer_files(encoder.extended):
            shutil.copyfile(path, folder / path.name)


def _facts(request: _Request, written: Mapping[Split, Written]) -> DatasetFacts:
    data = request.data
    return DatasetFacts(
        sha256=_address(request, written),
        train=written[Split.TRAIN].facts,
        eval=written[Split.EVAL].facts if Split.EVAL in written else None,
        labels=data.labels,
        problem_type=data.problem_type,
        skipped_rows=sum(tally.faults for tally in data.tallies()),
        ends=request.encoder.ends,
        judged=request.encoder.judged,
        pair_separator=request.encoder.pair_separator,
    )


def _address(request: _Request, written: Mapping[Split, Written]) -> str:
    """Return a hash over all that the folder holds: the address of the data set."""
    data, encoder = request.data, request.encoder
    identity = [VERSION, request.task, data.problem_type, data.labels]
    address = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode())
    if encoder.template is not None:
        address.update(f"template:{encoder.template.inference}".encode())
    if encoder.extended is not None:
        digest = hashlib.sha256()
        for path in _tokenizer_files(encoder.extended):
            digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
        address.update(f"tokenizer:{digest.hexdigest()}".encode())
    if encoder.pair_separator is not None:
        address.update(f"pairs:{encoder.pair_separator}".encode())
    for split, one in written.items():
        address.update(f"{split}:{one.digest}".encode())
    return address.hexdigest()


def _tokenizer_files(extended: Path) -> list[Path]:
    """Return files of a tokenizer with new tokens; a chat template is stored beside them, or the model's stays."""
    return [path for path in sorted(extended.iterdir()) if path.name in TOKENIZER_FILES - {CHAT_TEMPLATE}]


def _sizes(data: CheckedData) -> dict[Split, int]:
    """Return rows of each split, each counted once however often it is seen."""
    sizes = dict.fromkeys(Split, 0)
    for source in data.sources:
        if source.choice is None:
            sizes[Split.TRAIN] += source.good
        else:
            evaluated = int((source.choice == EVALUATED).sum())
            sizes[Split.EVAL] += evaluated
            sizes[Split.TRAIN] += int((source.choice != LEFT_OUT).sum()) - evaluated
    return sizes


def _mismatch(top: int, embeddings: int) -> Problem:
    return Problem(
        code="VocabularyMismatch",
        field="spec.model",
        message=f"the tokenizer gives the id {top}, and the model has embeddings for ids below {embeddings} only",
        cure="use the tokenizer that the model was trained with, or a model whose embeddings were resized and saved",
    )


def _nothing_left(spec: DatasetSpec, split: Split) -> Problem:
    field_name = "spec.dataset.eval" if split is Split.EVAL and spec.eval else "spec.dataset.train"
    message = f"no row of {split} is left: none has a token to learn"
    return Problem(code="NoRows", field=field_name, message=message, cure="raise spec.dataset.maxLength, or add rows")


@dataclass
class _Watch:
    """Reports of every tenth of the rows."""

    report: Callable[[str], None]
    good: int
    seen: int
    tokens: int

    @classmethod
    def of(cls, report: Callable[[str], None], good: int, begun: TokenizeProgress) -> "_Watch":
        """Begin with what an earlier call has done, and report it."""
        pending = [rows for parts in begun.pending.values() for rows in parts]
        facts = [one.facts for one in begun.written.values()]
        seen = sum(one.examples for one in facts) + sum(len(rows) for rows in pending)
        tokens = sum(one.tokens for one in facts) + sum(rows.tokens for rows in pending)
        if begun.portions:
            shards = sum(len(one.shards) for one in begun.written.values())
            report(f"dataset: going on after {shards} files and {tokens / 1e6:.1f} million tokens")
        return cls(report, good, seen, tokens)

    def add(self, done: EncodedPortion) -> None:
        before = 10 * self.seen // max(self.good, 1)
        self.seen += len(done.faults) + sum(len(rows) for rows in done.rows.values())
        self.tokens += sum(rows.tokens for rows in done.rows.values())
        tenths = 10 * self.seen // max(self.good, 1)
        if before < tenths < 10:
            self.report(f"dataset: {10 * tenths} % tokenised, {self.tokens / 1e6:.1f} million tokens")

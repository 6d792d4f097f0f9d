"""Examples to token ids in Arrow files. transformers is imported only inside functions: data is checked before.

A split's hash is over its values, not over Arrow's bytes: another version of Arrow gives the same address.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from finetune_api.contract import File
from finetune_api.errors import DataError, ModelError, Problem
from finetune_api.messages import DatasetFacts, SplitFacts, Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.dataset import CheckedData, invalid
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.data.rows import Example, Layout, Tally

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # torch's cross entropy skips this label
BATCH = 1000  # rows per call of the tokenizer (it spreads them over all cores) and per Arrow batch
VERSION = 1  # of what follows: part of every address and index


@dataclass(frozen=True)
class Encoded:
    """One row: token ids, and which of them carry loss (None = all); `cut` if it was longer than the limit."""

    ids: list[int]
    labels: list[int] | None
    cut: bool


@dataclass(frozen=True)
class Encoder:
    """How examples of one layout become token ids.

    Attributes:
        limit: rows are cut at so many tokens.
        loss_on_prompt: for pairs, whether the prompt carries loss too.
    """

    tokenizer: "PreTrainedTokenizerBase"
    layout: Layout
    limit: int
    loss_on_prompt: bool = False

    def __call__(self, batch: Sequence[Example]) -> list[Encoded]:
        """Encode some examples."""
        if self.layout is Layout.LABELLED:
            return self._with_specials(batch)
        return self._pairs(batch) if self.layout is Layout.PAIR else self._texts(batch)

    def _ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        # verbose=False: rows beyond the limit are expected here, and cut below
        encoded = self.tokenizer(
            texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _with_specials(self, batch: Sequence[Example]) -> list[Encoded]:
        whole = self._ids([example.text for example in batch])
        # the tokenizer cuts before it adds its last special token, such as BERT's [SEP]
        cut = {index for index, ids in enumerate(whole) if len(ids) > self.limit}
        shorter = self._ids([batch[index].text for index in sorted(cut)], **self._truncation()) if cut else []
        for index, ids in zip(sorted(cut), shorter, strict=True):
            whole[index] = ids
        return [Encoded(ids, None, index in cut) for index, ids in enumerate(whole)]

    def _truncation(self) -> dict[str, Any]:
        return {"truncation": True, "max_length": self.limit}

    def _texts(self, batch: Sequence[Example]) -> list[Encoded]:
        rows = [self._ended(ids) for ids in self._ids([example.text for example in batch])]
        # a row that was cut has no end, and none is added: it would teach to stop in mid-sentence
        return [Encoded(ids[: self.limit], ids[: self.limit], len(ids) > self.limit) for ids in rows]

    def _pairs(self, batch: Sequence[Example]) -> list[Encoded]:
        end = self.tokenizer.eos_token_id
        prompts = self._ids([example.text for example in batch])
        completions = self._ids([example.completion for example in batch], add_special_tokens=False)
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            while prompt and prompt[-1] == end:  # a tokenizer that ends each text: the prompt is no end
                prompt.pop()
            ids = self._ended(prompt + completion)
            masked = 0 if self.loss_on_prompt else len(prompt)
            labels = [IGNORED] * masked + ids[masked:]
            rows.append(Encoded(ids[: self.limit], labels[: self.limit], len(ids) > self.limit))
        return rows

    def _ended(self, ids: list[int]) -> list[int]:
        end: int = self.tokenizer.eos_token_id
        return ids if ids and ids[-1] == end else [*ids, end]


def load_tokenizer(folder: Path, task: Task) -> "PreTrainedTokenizerBase":
    """The fast tokenizer in a folder.

    Raises:
        ModelError: there is none, or it lacks the end-of-text token that a language model is taught with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever malformed files make the library raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(_tokenizer_problem(f"the tokenizer cannot be loaded: {reason}")) from error
    if not tokenizer.is_fast:
        raise ModelError(_tokenizer_problem("the tokenizer has no fast version"))
    if task is Task.CAUSAL_LM and tokenizer.eos_token_id is None:
        raise ModelError(_tokenizer_problem("the tokenizer has no end-of-text token (eos_token)"))
    return tokenizer


def _tokenizer_problem(message: str) -> Problem:
    cure = "use a model with tokenizer.json and tokenizer_config.json as transformers saves them"
    return Problem(code="TokenizerUnusable", field="spec.model", message=message, cure=cure)


@dataclass(frozen=True)
class Tokenized:
    """A folder with train.arrow, eval.arrow and labels.json, and what is in it."""

    folder: Path
    facts: DatasetFacts


def tokenize(spec: DatasetSpec, task: Task, data: CheckedData, encoder: Encoder, folder: Path) -> Tokenized:
    """Write a data set's Arrow files.

    Raises:
        DataError: rows in which nothing is left to learn after the cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    label_ids = {label: index for index, label in enumerate(data.labels)}
    eval_tally = data.evaluation.tally if data.evaluation else data.train.tally
    splits = [("train", data.train_examples(), data.train.tally), ("eval", data.eval_examples(), eval_tally)]
    facts: dict[str, SplitFacts] = {}
    address = hashlib.sha256(json.dumps([VERSION, task, data.labels], ensure_ascii=False).encode())
    for name, rows, tally in splits:
        if rows is not None:
            facts[name], digest = _write_split(folder / f"{name}.arrow", rows, encoder, label_ids, tally)
            address.update(f"{name}:{digest}".encode())
    if problems := [problem for tally in data.tallies() for problem in invalid(spec, tally)]:
        raise DataError(problems)
    for name, split in facts.items():
        if not split.rows:
            raise DataError(eval_tally.problems() if name == "eval" else data.train.tally.problems())
    if data.labels:
        (folder / File.LABELS).write_text(json.dumps(data.labels, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return Tokenized(
        folder,
        DatasetFacts(
            sha256=address.hexdigest(),
            train=facts["train"],
            eval=facts.get("eval"),
            labels=data.labels,
            skipped_rows=sum(tally.faults for tally in data.tallies()),
        ),
    )


def _write_split(
    path: Path, rows: Iterable[Example], encoder: Encoder, label_ids: dict[str, int], tally: Tally
) -> tuple[SplitFacts, str]:
    ids_type = pa.list_(pa.int32())
    columns = [("input_ids", ids_type), ("label", pa.int32()) if label_ids else ("labels", ids_type)]
    schema = pa.schema(columns)
    digest = hashlib.sha256()
    count = tokens = trained = longest = cut = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _batches(rows):
            ids: list[list[int]] = []
            targets: list[Any] = []
            for example, row in zip(batch, encoder(batch), strict=True):
                learnt = 1 if label_ids else sum(label != IGNORED for label in (row.labels or [])[1:])
                if not learnt:  # the first token is never predicted
                    tally.add(_nothing(example, encoder.limit))
                    continue
                ids.append(row.ids)
                targets.append(label_ids[example.label] if label_ids else row.labels)
                trained += learnt
                tokens += len(row.ids)
                longest = max(longest, len(row.ids))
                cut += row.cut
                for values in (row.ids, [targets[-1]] if label_ids else targets[-1]):
                    digest.update(len(values).to_bytes(4, "little") + np.asarray(values, "<i4").tobytes())
            count += len(ids)
            arrays = [pa.array(ids, columns[0][1]), pa.array(targets, columns[1][1])]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    facts = SplitFacts(rows=count, tokens=tokens, trained_tokens=trained, longest=longest, truncated_rows=cut)
    return facts, digest.hexdigest()


def _nothing(example: Example, limit: int) -> Fault:
    return Fault(
        example.line, Code.NOTHING_TO_LEARN, f"no token to learn is left of the row when cut at {limit} tokens"
    )


def _batches(rows: Iterable[Example]) -> Iterator[list[Example]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        yield batch

"""Rows of every layout become ids; files and addresses depend on rows alone, not on how the work was cut up."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.errors import DataError, ModelError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data import lines, streams
from finetune_trainer.prepare.data.dataset import CheckedData, check_dataset
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.data.portions import Split
from finetune_trainer.prepare.data.sources import locate_all
from finetune_trainer.prepare.observed.encoded import IGNORED, Encoded
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.split_writer import SplitWriter
from finetune_trainer.prepare.tokens.templates import CHATML
from finetune_trainer.prepare.tokens.token_rows import TokenRows
from finetune_trainer.prepare.tokens.tokenize import Tokenized, tokenize
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, load_fast_tokenizer
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.tasks.causal_lm import trained_following
from tests.support.chats import chat_tokenizer, write_chat_rows
from tests.support.models import CORPUS, make_bert, make_gpt2, make_llama
from tests.support.prepared import plain_table

TEXTS = [*CORPUS, "naïve café, 紙がない 🙂", "x"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def made(
    tmp_path: Path, tokenizer: LoadedTokenizer, layout: ExampleLayout, task: Task, limit: int = 64, **spec: Any
) -> Encoder:
    fields = DatasetSpec.model_validate({"train": "file://train.jsonl", **spec})
    return encoder_for(fields, task, tokenizer, layout, limit, None, tmp_path)


def encoded(encoder: Encoder, *rows: Example) -> list[Encoded]:
    found = encoder(rows)
    assert all(isinstance(row, Encoded) for row in found), found
    return [row for row in found if isinstance(row, Encoded)]


def test_a_loaded_tokenizer_gives_the_ids_of_transformers(bert: Path, llama: Path, tmp_path: Path) -> None:
    for folder, task, layout in [
        (bert, Task.CLASSIFICATION, ExampleLayout.LABELLED),
        (llama, Task.CAUSAL_LM, ExampleLayout.TEXT),
    ]:
        encoder = made(tmp_path, load_fast_tokenizer(folder, task), layout, task, 1000)
        expected = transformers_tokenizer(folder)(TEXTS)["input_ids"]
        rows = encoded(encoder, *(Example(1, text) for text in TEXTS))
        ends = [] if task is Task.CLASSIFICATION else [encoder.eos_id]
        assert [row.ids.tolist() for row in rows] == [[*ids, *ends] for ids in expected]


def test_a_cut_text_of_bert_keeps_its_last_special_token(bert: Path, tmp_path: Path) -> None:
    encoder = made(
        tmp_path, load_fast_tokenizer(bert, Task.CLASSIFICATION), ExampleLayout.LABELLED, Task.CLASSIFICATION, 8
    )
    (row,) = encoded(encoder, Example(1, CORPUS[0]))
    assert len(row.ids) == 8
    assert row.full_length > 8
    assert row.ids.tolist() == transformers_tokenizer(bert)(CORPUS[0], truncation=True, max_length=8)["input_ids"]


def test_a_long_document_becomes_several_rows_and_loses_nothing(llama: Path, tmp_path: Path) -> None:
    encoder = made(tmp_path, load_fast_tokenizer(llama, Task.CAUSAL_LM), ExampleLayout.TEXT, Task.CAUSAL_LM, 8)
    whole = made(tmp_path, load_fast_tokenizer(llama, Task.CAUSAL_LM), ExampleLayout.TEXT, Task.CAUSAL_LM, 999)
    (row,) = encoded(encoder, Example(1, CORPUS[0]))
    (uncut,) = encoded(whole, Example(1, CORPUS[0]))
    assert not row.cut
    rows = TokenRows.of([row, uncut])
    assert rows.lengths.tolist() == [8, 8, 7, 23]
    assert rows.ids[:23].tolist() == uncut.ids.tolist() == rows.ids[23:].tolist()
    assert rows.trained.all()
    assert not rows.cut.any()
    (fault,) = made(tmp_path, load_fast_tokenizer(llama, Task.CAUSAL_LM), ExampleLayout.TEXT, Task.CAUSAL_LM, 1)(
        [Example(4, "a")]
    )
    assert isinstance(fault, Fault)
    assert (fault.line, fault.code) == (4, Code.NOTHING_TO_LEARN)


def test_a_pair_that_is_cut_does_not_end(llama: Path, tmp_path: Path) -> None:
    encoder = made(tmp_path, load_fast_tokenizer(llama, Task.CAUSAL_LM), ExampleLayout.PAIR, Task.CAUSAL_LM, 8)
    (row,) = encoded(encoder, Example(1, "a", completion=CORPUS[0]))
    assert len(row.ids) == 8
    assert encoder.eos_id not in row.ids


def test_a_token_of_another_meaning_is_not_what_the_vocabulary_lacks(tmp_path: Path) -> None:
    """GPT-2's <|endoftext|> is end, beginning and unknown at once."""
    gpt2 = load_fast_tokenizer(make_gpt2(tmp_path / "gpt2"), Task.CAUSAL_LM)
    other = transformers_tokenizer(tmp_path / "gpt2")
    other.unk_token = other.eos_token
    other.save_pretrained(tmp_path / "gpt2")
    assert gpt2.unk_id is None
    assert load_fast_tokenizer(tmp_path / "gpt2", Task.CAUSAL_LM).unk_id is None
    assert load_fast_tokenizer(make_bert(tmp_path / "bert"), Task.MASKED_LM).unk_id == 1


def test_an_encoder_decoder_gets_the_completion_as_its_target(llama: Path, tmp_path: Path) -> None:
    encoder = made(tmp_path, load_fast_tokenizer(llama, Task.SEQ2SEQ), ExampleLayout.PAIR, Task.SEQ2SEQ)
    (row,) = encoded(encoder, Example(1, "One and one?", completion="Two."))
    tokenizer = transformers_tokenizer(llama)
    assert row.ids.tolist() == tokenizer("One and one?")["input_ids"]
    assert row.target is not None
    assert row.target.tolist() == [*tokenizer("Two.")["input_ids"], tokenizer.eos_token_id]
    assert row.trained is None


# ---------------------------------------------------------------- files


def chats(folder: Path, count: int = 60) -> Path:
    return write_chat_rows(folder / "train.jsonl", count)


def run(folder: Path, train: Path, name: str, processes: int = 1, **spec: Any) -> Tokenized:
    fields = DatasetSpec.model_validate({"train": f"file://{train}", "eval": {"split": 0.2}, **spec}, by_alias=True)
    data = checked(fields, folder)
    tokenizer = chat_tokenizer()
    plain = LoadedTokenizer(
        tokenizer.backend_tokenizer.to_str(), dict(tokenizer.special_tokens_map), tokenizer.eos_token_id
    )
    encoder = encoder_for(fields, Task.CAUSAL_LM, plain, data.layout, 96, CHATML, folder)
    return tokenize(fields, Task.CAUSAL_LM, data, encoder, folder / name, processes)


def checked(spec: DatasetSpec, folder: Path) -> CheckedData:
    return check_dataset(spec, Task.CAUSAL_LM, locate_all(spec, {}), folder / "work", seed=1, has_template=True)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def table(folder: Path, split: str = "train") -> pa.Table:
    return plain_table(folder, split)


@pytest.mark.parametrize("packing", [False, True])
def test_processes_and_the_size_of_parts_change_no_byte(
    packing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = chats(tmp_path)
    whole = run(tmp_path, train, "whole", packing=packing)
    monkeypatch.setattr(lines, "PIECE", 700)
    monkeypatch.setattr(streams, "BLOCK", 700)  # else a file of less than a block is one part
    parts = run(tmp_path, train, "parts", packing=packing)
    several = run(tmp_path, train, "several", processes=2, packing=packing)
    assert whole.facts == parts.facts == several.facts
    assert bytes_of(whole.folder) == bytes_of(parts.folder) == bytes_of(several.folder)
    shards = {name for split in ("train", "eval") for name in (f"{split}-00000.arrow", f"{split}-00000.index.arrow")}
    assert set(bytes_of(whole.folder)) == {*shards, "shards.json", "chat_template.jinja"}
    assert {split: len(seen) for split, seen in whole.observations.items()} == {Split.TRAIN: 48, Split.EVAL: 12}
    tables = [np.asarray(done.observations[Split.TRAIN].table()) for done in (whole, several)]
    assert tables[0].tolist() == tables[1].tolist()


def test_the_facts_are_those_of_the_file(tmp_path: Path) -> None:
    done = run(tmp_path, chats(tmp_path), "out")
    facts, rows = done.facts.train, table(done.folder).to_pylist()
    assert facts.rows == facts.examples == len(rows) == 48
    assert done.facts.eval is not None
    assert done.facts.eval.rows == 12
    assert facts.tokens == sum(len(row["input_ids"]) for row in rows)
    assert facts.longest == max(len(row["input_ids"]) for row in rows) <= 96
    assert facts.trained_tokens == sum(label != IGNORED for row in rows for label in row["labels"][1:])
    assert 0 < facts.truncated_rows < facts.rows


def test_packs_hold_every_document_whole_and_hide_its_first_label(tmp_path: Path) -> None:
    train = chats(tmp_path)
    plain, packed = run(tmp_path, train, "plain"), run(tmp_path, train, "packed", packing=True)
    expected = sorted((row["input_ids"], row["labels"]) for row in table(plain.folder).to_pylist())
    found = []
    for row in table(packed.folder).to_pylist():
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) <= 96
        start = 0
        for length in row["seq_lengths"]:
            assert row["labels"][start] == IGNORED
            found.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
    assert sorted(found) == expected  # a conversation's first token is never learnt, packed or not
    assert packed.facts.train.tokens == plain.facts.train.tokens
    assert packed.facts.train.trained_tokens == plain.facts.train.trained_tokens
    assert packed.facts.train.examples == plain.facts.train.rows
    assert packed.facts.train.rows < plain.facts.train.rows
    assert packed.facts.sha256 != plain.facts.sha256
    for done in (plain, packed):  # workers read what stands there
        rows = ArrowRows(done.folder, "train")
        read = [{name: value.tolist() for name, value in rows[index].items()} for index in range(len(rows))]
        assert read == table(done.folder).to_pylist()
        assert rows.items is not None
        assert [trained_following(rows, index) for index in range(len(rows))] == rows.items.tolist()


def test_a_row_with_nothing_to_learn_is_told_with_its_line_or_skipped(tmp_path: Path) -> None:
    train = chats(tmp_path)
    long = {"messages": [{"role": "user", "content": "why? " * 300}, {"role": "assistant", "content": "So."}]}
    train.write_text(train.read_text() + json.dumps(long) + "\n")
    with pytest.raises(DataError) as caught:
        run(tmp_path, train, "failed")
    (problem,) = caught.value.problems
    assert (problem.code, problem.lines) == ("NothingToLearn", (61,))
    skipped = run(tmp_path, train, "skipped", onInvalid="Skip", maxInvalidPercent=5.0)
    assert skipped.facts.skipped_rows == 1


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    spec = DatasetSpec.model_validate({"train": f"file://{chats(tmp_path)}"})
    data = checked(spec, tmp_path)
    tokenizer = chat_tokenizer()
    plain = LoadedTokenizer(tokenizer.backend_tokenizer.to_str(), {}, tokenizer.eos_token_id, embeddings=300)
    encoder = encoder_for(spec, Task.CAUSAL_LM, plain, data.layout, 128, CHATML, tmp_path)
    with pytest.raises(ModelError) as caught:
        tokenize(spec, Task.CAUSAL_LM, data, encoder, tmp_path / "out")
    assert caught.value.problems[0].code == "VocabularyMismatch"
    wide = tokenize(spec, Task.CAUSAL_LM, data, replace(encoder, embeddings=1000), tmp_path / "wide")
    assert wide.facts.train.rows == 60


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    full=st.integers(1, 100),
)
def test_a_writer_gives_the_same_file_however_rows_come(rows: list[int], cuts: list[int], full: int) -> None:
    import tempfile

    made = [Encoded(np.arange(length, dtype=np.int32), np.ones(length, np.bool_), None, length) for length in rows]
    borders = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    with tempfile.TemporaryDirectory() as folder:
        written = []
        for name, parts in (("whole", [(0, len(rows))]), ("parts", list(pairs(borders)))):
            (path := Path(folder) / name).mkdir()
            with SplitWriter(path, "train", Task.CAUSAL_LM, batch_tokens=full, shard_bytes=500) as writer:
                for start, stop in parts:
                    writer.add(TokenRows.of(made[start:stop]))
            written.append((bytes_of(path), writer.written))
        assert written[0] == written[1]
        assert writer.written.facts.tokens == sum(shard.tokens for shard in writer.written.shards) == sum(rows)
        assert writer.written.facts.rows == sum(shard.rows for shard in writer.written.shards) == len(rows)


def pairs(borders: list[int]) -> Iterator[tuple[int, int]]:
    return pairwise(borders)

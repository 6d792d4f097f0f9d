"""A prepare stage that was interrupted goes on after its last finished shard, and ends with the same bytes."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare import values
from finetune_trainer.prepare.data import lines, streams
from finetune_trainer.prepare.data.dataset import check_dataset
from finetune_trainer.prepare.data.portions import Split
from finetune_trainer.prepare.data.sources import locate_all
from finetune_trainer.prepare.observed import spill
from finetune_trainer.prepare.quality.judge import Context, judge
from finetune_trainer.prepare.tokens import split_writer
from finetune_trainer.prepare.tokens import tokenize as tokenizing
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.keeping import DiscardedShards, ShardKeeper, StoredShards, TokenizeProgress
from finetune_trainer.prepare.tokens.templates import CHATML
from finetune_trainer.prepare.tokens.tokenize import Tokenized
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer
from finetune_trainer.storage import FolderStore
from tests.support.chats import chat_tokenizer, write_chat_rows

PREFIX = "run/prepare/"


class _InterruptedError(Exception):
    """Raised in the place of a kill."""


class Interrupted(StoredShards):
    """Ends the stage after it has kept so many times."""

    times = 0

    def keep(self, progress: TokenizeProgress) -> None:
        super().keep(progress)
        self.times -= 1
        if not self.times:
            for upload in self._earlier:
                upload.result()
            raise _InterruptedError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts, batches and shards of a few rows, and observations that do not fit into memory."""
    monkeypatch.setattr(lines, "PIECE", 500)
    monkeypatch.setattr(streams, "BLOCK", 500)
    monkeypatch.setattr(split_writer, "BATCH_TOKENS", 150)
    monkeypatch.setattr(split_writer, "WINDOW_TOKENS", 300)
    monkeypatch.setattr(split_writer, "SHARD_BYTES", 1000)
    monkeypatch.setattr(spill, "IN_MEMORY", 20)
    monkeypatch.setattr(spill, "BUFFERED", 7)


def prepared(folder: Path, keeper: ShardKeeper, **spec: Any) -> Tokenized:
    fields = DatasetSpec.model_validate(
        {"train": f"file://{folder / 'train.jsonl'}", "eval": {"split": 0.3}, "onInvalid": "Skip"} | spec
    )
    (work := folder / "work").mkdir(exist_ok=True)
    data = check_dataset(fields, Task.CAUSAL_LM, locate_all(fields, {}), work, seed=1, has_template=True)
    own = chat_tokenizer()
    tokenizer = LoadedTokenizer(own.backend_tokenizer.to_str(), dict(own.special_tokens_map), own.eos_token_id)
    encoder = encoder_for(fields, Task.CAUSAL_LM, tokenizer, data.layout, 96, CHATML, folder)
    keeper.depends_on("the same")
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    return tokenizing.tokenize(fields, Task.CAUSAL_LM, data, encoder, out, 1, keeper=keeper)


def outcome(done: Tokenized, keeper: StoredShards) -> Any:
    """All that a stage makes of a data set: files with their digests, facts, what was observed."""
    tables = {
        split: {name: np.asarray(seen.table()[name]).tolist() for name in ("line", "content", "trained")}
        for split, seen in done.observations.items()
    }
    report = judge(done.observations[Split.TRAIN], done.observations[Split.EVAL], Context(Task.CAUSAL_LM, 96)).to_json()
    return done.facts, sorted(keeper.publish("datasets/x/"), key=lambda entry: entry.path), tables, report


@pytest.mark.parametrize("packing", [False, True])
def test_an_interrupted_stage_goes_on_after_its_last_shard_and_makes_the_same(packing: bool, tmp_path: Path) -> None:
    write_chat_rows(tmp_path / "train.jsonl", 60)
    whole = StoredShards(FolderStore(tmp_path / "whole"), PREFIX, tmp_path)
    expected = outcome(prepared(tmp_path, whole, packing=packing), whole)
    shards = len(whole.files) // 2
    assert shards > 6
    for times in (1, 3):
        store = FolderStore(tmp_path / f"again-{times}")
        portions = []
        for _ in range(2):  # each attempt is interrupted
            keeper = Interrupted(store, PREFIX, tmp_path)
            keeper.times = times
            with pytest.raises(_InterruptedError):
                prepared(tmp_path, keeper, packing=packing)
            portions.append(len(keeper.files))
        assert portions[1] > portions[0] > 0  # the second did not begin anew
        last = StoredShards(store, PREFIX, tmp_path)
        assert outcome(prepared(tmp_path, last, packing=packing), last) == expected
    last.clear()
    assert list(store.list(PREFIX)) == []


def test_work_on_other_data_is_not_gone_on_with(tmp_path: Path) -> None:
    write_chat_rows(tmp_path / "train.jsonl", 60)
    store = FolderStore(tmp_path / "store")
    keeper = Interrupted(store, PREFIX, tmp_path)
    keeper.times = 2
    with pytest.raises(_InterruptedError):
        prepared(tmp_path, keeper)
    other = StoredShards(store, PREFIX, tmp_path)
    other.depends_on("another tokenizer")
    assert other.begun() is None
    same = StoredShards(store, PREFIX, tmp_path)
    same.depends_on("the same")
    assert same.begun() is not None


def test_a_stage_that_stores_nothing_leaves_no_shards(tmp_path: Path) -> None:
    write_chat_rows(tmp_path / "train.jsonl", 60)
    made = prepared(tmp_path, DiscardedShards())
    assert made.facts.train.rows > 0
    assert not list(made.folder.glob("*.arrow"))


def test_what_is_no_value_of_ours_is_not_read() -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    with pytest.raises(pickle.UnpicklingError, match="not a value of ours"):
        values.loads(pickle.dumps(Code()))


@pytest.mark.parametrize("place", ["finetune_trainer.prepare.moved", "finetune_trainer.prepare.data.tally"])
def test_a_value_of_a_module_or_class_that_is_gone_is_not_read(place: str) -> None:
    """An attempt that starts with a newer image meets the values of an older one, and does its work anew."""
    with pytest.raises(pickle.UnpicklingError, match="not a value of ours"):
        values.loads(b"c" + place.encode() + b"\nGone\n.")

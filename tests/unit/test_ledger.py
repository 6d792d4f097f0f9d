"""Who leads: of two leaders only one can write, commit and delete."""

from pathlib import Path

import pytest

from finetune_api.beats import GenerationRecord
from finetune_api.errors import StateError, StorageError
from finetune_trainer.agent.ledger import NOT_THE_LEADER, Ledger
from finetune_trainer.storage import ChangedError, FolderStore
from finetune_trainer.storage.base import storage_problem


def record(incarnation: str, generation: int = 1) -> GenerationRecord:
    return GenerationRecord(generation=generation, leader=f"{incarnation}:1", incarnation=incarnation)


def leading(store: FolderStore, incarnation: str, generation: int = 1) -> Ledger:
    ledger = Ledger(store, "run/")
    ledger.read()
    ledger.write(record(incarnation, generation))
    return ledger


def test_a_leader_that_was_paused_finds_out_before_it_changes_anything(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    old = leading(store, "old")
    old.confirm()
    new = leading(store, "new", 2)
    for work in (old.confirm, lambda: old.write(record("old", 3))):
        with pytest.raises(StateError, match="generation 2 belongs to another leader, at new:1") as refused:
            work()
        assert refused.value.problems[0].code == NOT_THE_LEADER
    new.confirm()
    assert new.read() == record("new", 2)


def test_of_two_that_take_over_at_once_the_second_reads_again(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    one, two = Ledger(store, "run/"), Ledger(store, "run/")
    for ledger in (one, two):
        assert ledger.read().generation == 0
    one.write(record("one"))
    with pytest.raises(ChangedError):
        two.write(record("two"))
    assert two.read() == record("one")
    two.write(record("two", 2))
    with pytest.raises(StateError):
        one.confirm()


def test_a_write_whose_answer_was_lost_does_not_end_its_leader(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ledger = leading(store, "one")
    swap = store.swap

    def lose_answer(key: str, data: bytes, etag: str | None) -> str:
        swap(key, data, etag)
        store.swap = swap  # type: ignore[method-assign]
        raise StorageError(storage_problem("Unreachable", "no answer", "wait"))

    store.swap = lose_answer  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        ledger.write(record("one", 2))
    ledger.write(record("one", 3))
    assert ledger.read() == record("one", 3)


def test_a_record_of_a_newer_version_can_be_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put(
        "run/generation.json", record("one").to_json().replace('"generation"', '"colour": "x", "generation"').encode()
    )
    assert Ledger(store, "run/").read() == record("one")

"""The order of samples: every row once an epoch, whatever the layout, and grouped by length."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.dealing import before
from finetune_trainer.dataset.shards import shard_order
from finetune_trainer.worker import sampling
from finetune_trainer.worker.sampling import WINDOW_BATCHES, Dealt, VirtualDataset, epoch_order, shuffled_by_shard


class Numbers:
    """Rows that are their own index."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index}


def ordered(lengths: list[int], seed: int, epoch: int, batch: int) -> list[int]:
    order: list[int] = epoch_order(np.array(lengths, np.int32), seed, epoch, batch).tolist()
    return order


LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=300)


@given(LENGTHS, st.integers(0, 5), st.integers(0, 3), st.integers(1, 16))
def test_an_epoch_visits_every_row_once(lengths: list[int], seed: int, epoch: int, batch: int) -> None:
    assert sorted(ordered(lengths, seed, epoch, batch)) == list(range(len(lengths)))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [1 + (index * 7919) % 97 for index in range(500)]
    assert ordered(lengths, 1, 0, 8) == ordered(lengths, 1, 0, 8)
    assert ordered(lengths, 1, 0, 8) != ordered(lengths, 1, 1, 8)
    assert ordered(lengths, 1, 0, 8) != ordered(lengths, 2, 0, 8)


@given(LENGTHS, st.integers(1, 16), st.integers(1, 40))
def test_the_virtual_data_set_repeats_epochs_without_gap_or_overlap(lengths: list[int], batch: int, steps: int) -> None:
    data = VirtualDataset(Numbers(lengths), seed=3, max_steps=steps, global_batch=batch)
    rows = [data[position]["row"] for position in range(len(data))]
    assert len(rows) == steps * batch
    for start in range(0, len(rows) - len(lengths) + 1, len(lengths)):
        assert sorted(rows[start : start + len(lengths)]) == list(range(len(lengths)))


def test_grouping_by_length_saves_padding() -> None:
    lengths = [1 + (index * 7919) % 200 for index in range(4000)]

    def padded(order: list[int]) -> int:
        batches = [order[at : at + 16] for at in range(0, len(order), 16)]
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    real = sum(lengths)
    assert padded(ordered(lengths, 0, 0, 16)) < 1.15 * real
    assert padded(list(range(len(lengths)))) > 1.5 * real


def test_step_tokens_counts_the_rows_of_that_step() -> None:
    data = VirtualDataset(Numbers([5, 6, 7, 8]), seed=0, max_steps=4, global_batch=2)
    assert data.step_tokens(1) + data.step_tokens(2) == 26
    assert data.step_tokens(3) + data.step_tokens(4) == 26


@given(
    st.lists(st.integers(1, 512), min_size=64, max_size=64), st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 16, 32])
)
def test_dealing_keeps_the_rows_of_a_step_and_evens_out_its_micro_batches(
    lengths: list[int], micro: int, batch: int
) -> None:
    dealt = VirtualDataset(Numbers(lengths), seed=1, max_steps=4, global_batch=batch, dealt=Dealt(micro))
    plain = VirtualDataset(Numbers(lengths), seed=1, max_steps=4, global_batch=batch, dealt=Dealt(batch))
    for step in range(1, 5):
        slots = range((step - 1) * batch, step * batch)
        rows = [dealt[slot]["row"] for slot in slots]
        assert sorted(rows) == sorted(dealt.step_rows(step)) == sorted(plain.step_rows(step))
        assert rows == [dealt.row(dealt.position(slot)) for slot in slots]
        tokens = [sum(lengths[row] for row in rows[at : at + micro]) for at in range(0, batch, micro)]
        assert tokens == sorted(tokens, reverse=True), "ranks that work at the same time have about as much to do"
        if micro > 1:
            assert max(tokens) - min(tokens) <= max(lengths), "no micro-batch has more than a row beyond another"


def test_a_step_in_two_epochs_has_rows_of_both() -> None:
    data = VirtualDataset(Numbers([3, 4, 5, 6, 7, 8]), seed=0, max_steps=6, global_batch=4, dealt=Dealt(2))
    rows = [data[slot]["row"] for slot in range(24)]
    for epoch in range(4):
        positions = [data.row(position) for position in range(epoch * 6, epoch * 6 + 6)]
        assert sorted(positions) == list(range(6))
    assert sorted(rows) == sorted(list(range(6)) * 4)


def test_the_items_of_a_step_are_those_of_its_rows() -> None:
    data = VirtualDataset(Numbers([3, 4, 5]), seed=0, max_steps=2, global_batch=3, items=lambda row: 10**row)
    assert data.step_items(1) == data.step_items(2) == 111
    assert VirtualDataset(Numbers([3, 4, 5]), seed=0, max_steps=2, global_batch=3).step_items(1) == 3


# ---------------------------------------------------------------- as it was: slower, and the same to the last row


def ordered_before(lengths: list[int], seed: int, epoch: int, global_batch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    load_split = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    window = WINDOW_BATCHES * global_batch
    for start in range(0, len(load_split), window):
        rows = sorted(load_split[start : start + window], key=lambda row: lengths[row])
        batches = [rows[at : at + global_batch] for at in range(0, len(rows), global_batch)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            order.extend(batches[batch])
    return order


@given(st.data(), st.sampled_from([1, 2, 3, 8]), st.integers(1, 40), st.sampled_from([3, 512]))
def test_rows_are_dealt_as_by_looking_at_every_micro_batch(
    data: st.DataObject, micro: int, batches: int, longest: int
) -> None:
    count = micro * batches
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=count, max_size=count))
    assert Dealt(micro)(np.array(lengths, np.int32)) == before(micro, lengths)


@given(LENGTHS, st.integers(0, 5), st.integers(0, 3), st.integers(1, 16))
def test_an_epoch_has_the_order_that_it_always_had(lengths: list[int], seed: int, epoch: int, batch: int) -> None:
    assert ordered(lengths, seed, epoch, batch) == ordered_before(lengths, seed, epoch, batch)


def test_a_step_that_was_prepared_is_not_dealt_again() -> None:
    dealt: list[int] = []

    class Noted(Dealt):
        def __call__(self, lengths: Any) -> list[int]:
            dealt.append(len(lengths))
            return super().__call__(lengths)

    data = VirtualDataset(Numbers([3, 4, 5, 6]), seed=0, max_steps=3, global_batch=4, dealt=Noted(2))
    for step in (1, 2, 3, 4):
        data.prepare(step)
    assert len(dealt) == 3, "there is no fourth step"
    assert sorted(data[slot]["row"] for slot in range(4, 8)) == [0, 1, 2, 3]
    assert (data.step_tokens(2), data.step_items(2)) == (18, 4)
    assert len(dealt) == 3


@pytest.mark.parametrize("dealt", [None, Dealt(2)], ids=["grouped by length", "dealt"])
def test_rows_of_many_shards_are_read_window_by_window_each_once_an_epoch(
    dealt: Dealt | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WINDOW", 4)
    shards = [150 + 3 * number for number in range(10)]
    rows = sum(shards)
    lengths = np.random.default_rng(0).integers(3, 60, rows).astype(np.int32)
    data = VirtualDataset(Numbers(lengths.tolist()), 5, 2 * rows // 8 + 1, 8, dealt=dealt, shards=shards)
    shard_of = np.repeat(np.arange(10), shards)
    for epoch in range(2):
        order = [data.row(position) for position in range(epoch * rows, (epoch + 1) * rows)]
        assert sorted(order) == list(range(rows))
        visited = shard_order(10, 5, epoch)
        done = 0
        for start in range(0, 10, 4):
            window = set(visited[start : start + 4])
            count = sum(shards[number] for number in window)
            near = (
                order[done : done + count] if dealt else order[done + 128 : done + count - 128]
            )  # lengths are grouped
            assert {int(shard_of[row]) for row in near} <= window
            done += count
        if dealt:
            assert order == shuffled_by_shard(shards, 5, epoch).tolist()
            assert order[: shards[visited[0]]] != sorted(order[: shards[visited[0]]])

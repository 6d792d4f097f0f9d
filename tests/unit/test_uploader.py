"""From a node's disk to storage: the newest first, the newest two kept, whatever storage does meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from finetune_api.beats import AgentState, CheckpointId, PartId
from finetune_api.contract import checkpoint_name
from finetune_api.errors import StorageError
from finetune_trainer.agent.node import NodeState
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.uploader import Uploader
from finetune_trainer.checkpoints.marker import Marker, marker_name
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.storage import FolderStore
from finetune_trainer.storage.base import storage_problem


def part(step: int, node_rank: int = 0) -> PartId:
    return PartId(step=step, generation=3, node_rank=node_rank)


class Disk:
    """A node whose workers train as node rank 0, and a store that can be out of order."""

    def __init__(self, folder: Path, rank: int | None = 0) -> None:
        self.places = Places(folder / "work", 1)
        self.store = FolderStore(folder / "storage")
        self.checkpoints = CheckpointStore(self.store, "run/")
        self.node = NodeState(state=AgentState.RUNNING, generation=3, node_rank=0)
        self.rank = rank
        self.sent: list[PartId] = []
        self.before_upload: Callable[[PartId], None] = lambda saved: None
        best = partial(self.places.best, metric="eval_loss", greater=False)
        self.uploader = Uploader(self.checkpoints, self.places, self.node, lambda: self.rank, lambda: None, best)
        upload = self.checkpoints.upload

        def watched(saved: PartId, folder: Path) -> object:
            self.sent.append(saved)
            self.before_upload(saved)
            return upload(saved, folder)

        self.checkpoints.upload = watched  # type: ignore[assignment, method-assign]

    def save(self, *steps: int, loss: float | None = None) -> None:
        metrics = {} if loss is None else {"eval_loss": loss}
        for step in steps:
            folder = self.places.checkpoints(0) / checkpoint_name(step, 3)
            folder.mkdir(parents=True)
            (folder / "weights").write_text(str(step))
            marker = Marker(step=step, generation=3, rank=0, samples=step, metrics=metrics)
            (folder / marker_name(0)).write_text(marker.to_json())

    def steps(self) -> list[int]:
        return [saved.step for saved in self.places.complete()]

    def refuse(self, saved: PartId) -> None:
        raise StorageError(storage_problem("Unreachable", "cannot connect", "wait"))

    def upload(self) -> bool:
        async def once() -> bool:
            await self.uploader.look()
            return await self.uploader.upload_newest()

        return asyncio.run(once())


def test_through_an_outage_the_disk_holds_the_newest_two_and_the_refusal_is_told(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.before_upload = disk.refuse
    for step in range(10, 100, 10):
        disk.save(step)
        assert disk.upload(), "storage refuses"
        assert disk.steps() == [step - 10, step][-len(disk.steps()) :]
    assert "cannot connect" in disk.node.storage_error
    disk.before_upload = lambda saved: None
    assert not disk.upload()
    assert disk.node.storage_error == ""
    assert disk.node.uploaded == [part(90)], "what is older is superseded"


def test_the_newest_is_uploaded_first_and_older_ones_never_after_it(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.save(10, 20)
    disk.upload()
    assert disk.sent == [part(20)]


def test_once_its_workers_are_gone_a_node_brings_older_parts_too(tmp_path: Path) -> None:
    """The newest may be on this node only."""
    disk = Disk(tmp_path)
    disk.node.state = AgentState.READY
    disk.save(10, 20)
    disk.upload()
    assert disk.sent == [part(20), part(10)]


@pytest.mark.parametrize("rank", [None, 1])
def test_a_node_without_that_rank_in_the_present_rendezvous_uploads_nothing(tmp_path: Path, rank: int | None) -> None:
    disk = Disk(tmp_path, rank)
    disk.save(10)
    assert not disk.upload()
    assert disk.sent == []


def test_before_workers_start_nothing_is_removed_from_the_disk(tmp_path: Path) -> None:
    """The checkpoint that was just fetched may be older than what lies there."""
    disk = Disk(tmp_path)
    disk.node.state = AgentState.READY
    disk.save(10, 20, 30)
    disk.upload()
    assert disk.steps() == [10, 20, 30]


def test_an_upload_slower_than_two_saves_comes_to_an_end_all_the_same(tmp_path: Path) -> None:
    """Its files are removed once. From then on it is one of the two checkpoints that stay."""
    disk = Disk(tmp_path)
    disk.save(10)
    saves = iter([(20, 30), (40, 50), (60, 70)])

    def save_meanwhile(saved: PartId) -> None:
        for step in next(saves, ()):
            disk.save(step)
            look = threading.Thread(target=lambda: asyncio.run(fresh_look(disk)))
            look.start()
            look.join()

    disk.before_upload = save_meanwhile
    disk.upload()
    assert part(10) not in disk.node.uploaded
    assert disk.sent[:2] == [part(10), part(30)]
    assert disk.node.uploaded[0] == part(30)
    assert len(disk.steps()) <= 2


async def fresh_look(disk: Disk) -> None:
    """What the watching task does while an upload is under way, in the loop of another thread."""
    disk.uploader._looking = asyncio.Lock()
    await disk.uploader.look()
    disk.uploader._looking = asyncio.Lock()


def test_a_full_disk_or_a_vanished_file_is_a_sentence_and_not_the_end_of_the_agent(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.save(10)

    def full(saved: PartId) -> None:
        raise OSError(28, "No space left on device")

    disk.before_upload = full
    assert disk.upload()
    assert "No space left on device" in disk.node.storage_error


def test_identities_sort_by_step_then_by_generation() -> None:
    ids = [CheckpointId(step=step, generation=generation) for step, generation in ((20, 5), (10, 9), (20, 10))]
    assert [str(one) for one in sorted(ids)] == ["10 of generation 9", "20 of generation 5", "20 of generation 10"]


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.ENDED])
def test_the_best_goes_before_newer_ones_and_stays_on_the_disk_until_it_is_there(
    state: AgentState, tmp_path: Path
) -> None:
    """It is saved only once, and one that is older than the newest commit is never committed."""
    disk = Disk(tmp_path)
    disk.node.state = state
    disk.before_upload = disk.refuse
    disk.save(10, loss=2.0)
    disk.save(15, loss=1.0)
    for step in (20, 30, 40):
        disk.save(step)
        assert disk.upload(), "storage refuses"
    assert disk.steps() == [15, 30, 40]
    disk.before_upload = lambda saved: None
    assert not disk.upload()
    assert [saved.step for saved in disk.node.uploaded] == [15, 40]
    disk.save(50)
    assert not disk.upload()
    assert disk.steps() == [40, 50]
    assert [saved.step for saved in disk.node.uploaded] == [15, 40, 50]


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.ENDED, AgentState.READY])
def test_a_stop_brings_the_best_first_and_then_the_newest(state: AgentState, tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.node.state = state
    disk.save(15, loss=1.0)
    disk.save(20)
    disk.node.draining = True
    assert not disk.upload()
    assert disk.node.uploaded == [part(15), part(20)]


def test_a_best_one_that_cannot_be_uploaded_does_not_keep_the_newest_back(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.save(15, loss=1.0)
    disk.save(20)
    disk.before_upload = lambda saved: disk.refuse(saved) if saved.step == 15 else None
    assert disk.upload(), "it is tried again later"
    assert disk.node.uploaded == [part(20)]
    assert "cannot connect" in disk.node.storage_error
    disk.before_upload = lambda saved: None
    assert not disk.upload()
    assert disk.node.uploaded == [part(20), part(15)]
    assert disk.node.storage_error == ""

"""Which checkpoints there are in storage, which stay, and what people are told of them."""

import math
from pathlib import Path

import pytest

from finetune_api.beats import CheckpointId, PartId
from finetune_api.contract import File, checkpoint_name, checkpoint_of
from finetune_api.errors import StorageError
from finetune_api.messages import CheckpointInfo, FileEntry, Manifest, MethodType, Task
from finetune_trainer.checkpoints import disk
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.checkpoints.marker import Marker, marker_name
from finetune_trainer.checkpoints.pick import abandoned, checkpoint_facts, superseded
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.storage import CorruptedError, FolderStore
from finetune_trainer.storage.base import storage_problem
from tests.local.harness import make_plan
from tests.support.plans import revised

PLAN = make_plan(Task.CAUSAL_LM, MethodType.LORA, keep_last=2)
ROOT = "run/checkpoints/"


def manifest(step: int, loss: float | None, generation: int = 1) -> Manifest:
    info = CheckpointInfo(
        step=step,
        generation=generation,
        nodes=2,
        processes_per_node=1,
        zero_stage=2,
        samples=step * 8,
        metrics={} if loss is None else {"eval_loss": loss},
    )
    files = tuple(FileEntry(path=f"node-{node}/weights", size=100, sha256="0" * 64) for node in range(2))
    return Manifest(kind="checkpoint", files=files, created="2026-01-01T00:00:00+00:00", info=info.model_dump())


def put(store: FolderStore, one: Manifest, content: bytes | None = None) -> None:
    """A checkpoint in storage: its files, and last its manifest, or what stands in its place."""
    info = CheckpointInfo.model_validate(one.info)
    folder = f"{ROOT}{checkpoint_name(info.step, info.generation)}/"
    for entry in one.files:
        store.put(folder + entry.path, b"w" * entry.size)
    store.put(folder + File.MANIFEST, one.to_json().encode() if content is None else content)


def committed(step: int, loss: float | None) -> Committed:
    one = manifest(step, loss)
    return Committed(f"{ROOT}{checkpoint_name(step, 1)}/", one, CheckpointInfo.model_validate(one.info))


@pytest.mark.parametrize(
    ("losses", "best", "gone"),
    [
        ({10: 0.5, 20: 0.3, 30: 0.4, 40: 0.6}, 20, {10}),
        ({10: 0.3, 20: 0.3, 30: 0.4, 40: 0.6}, 20, {10}),
        ({10: 0.1, 20: None, 30: None, 40: None}, 10, {20}),
        ({10: None, 20: None, 30: None}, None, {10}),
        ({10: 0.5, 20: math.inf, 30: math.nan}, 10, set()),
        ({10: 0.1}, 10, set()),
    ],
)
def test_the_newest_and_the_best_stay(losses: dict[int, float | None], best: int | None, gone: set[int]) -> None:
    there = [committed(step, loss) for step, loss in losses.items()]
    facts = checkpoint_facts({one.id: one for one in there}, PLAN)
    assert [one.step for one in facts if facts[one].best] == ([] if best is None else [best])
    assert {one.size_bytes for one in facts.values()} == {200}
    assert {one.step for one in superseded(facts, PLAN)} == gone


def test_parts_that_no_commit_followed_are_found_once_a_newer_one_is_committed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for name in (checkpoint_name(10), checkpoint_name(10, 1), checkpoint_name(20, 1), checkpoint_name(30, 1)):
        store.put(f"{ROOT}{name}/node-0/weights", b"w")
    assert abandoned(find_checkpoints(store, "run/")) == {}, "any of them may still be committed"
    put(store, manifest(20, 0.1))
    gone = [f"{ROOT}{name}/" for name in (checkpoint_name(10), checkpoint_name(10, 1))]
    assert list(abandoned(find_checkpoints(store, "run/")).values()) == gone
    awaited = CheckpointId(step=10, generation=1)
    assert list(abandoned(find_checkpoints(store, "run/"), {awaited}).values()) == gone[:1], "a node may still bring it"


def test_a_name_has_step_and_generation_or_as_older_versions_wrote_it_the_step_alone() -> None:
    assert checkpoint_of(checkpoint_name(200, 6)) == (200, 6)
    assert checkpoint_of(checkpoint_name(200)) == (200, None)
    for other in (
        "step-1",
        "step-00000200-g",
        "step-00000200-gx",
        "step-000002000",
        "tmp-00000200-g1",
        "step-0000020٣",
    ):
        assert checkpoint_of(other) is None


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff", b'{"kind": "checkpoint", "created": "", "files": [], "info": {"steps": 1}}'],
    ids=["cut short", "empty", "not UTF-8", "of another version"],
)
def test_one_manifest_that_cannot_be_read_is_passed_over_and_told(tmp_path: Path, content: bytes) -> None:
    store = FolderStore(tmp_path)
    for step in (10, 20):
        put(store, manifest(step, 0.1), None if step == 10 else content)
    found = find_checkpoints(store, "run/")
    assert list(found.committed) == [CheckpointId(step=10, generation=1)]
    [sentence] = found.unreadable
    assert "step-00000020-g1" in sentence
    assert abandoned(found) == {}, "nobody knows what it was: it is not deleted"


def test_a_manifest_of_a_newer_version_is_read_without_the_fields_that_are_not_known(tmp_path: Path) -> None:
    store, one = FolderStore(tmp_path), manifest(10, 0.1)
    newer = one.model_copy(update={"info": {**one.info, "universal": True}}).model_dump_json()
    put(store, one, newer.replace('"kind":', '"signature": "x", "kind":').encode())
    assert list(find_checkpoints(store, "run/").committed) == [CheckpointId(step=10, generation=1)]


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_manifest_whose_files_are_not_all_there_is_no_checkpoint(tmp_path: Path, damage: str) -> None:
    """Such as one that a paused leader writes after the next leader has given its files up: nobody takes it, whatever
    score it has, and it goes once a newer one is committed."""
    store = FolderStore(tmp_path)
    for step in (10, 20):
        put(store, manifest(step, 0.1 * step))
    lost = f"{ROOT}{checkpoint_name(10, 1)}/node-1/weights"
    store.put(lost, b"w")
    if damage == "missing":
        store.delete([lost])
    found = find_checkpoints(store, "run/")
    assert list(found.committed) == [CheckpointId(step=20, generation=1)]
    [sentence] = found.unreadable
    assert "step-00000010-g1 is skipped: 1 of 2 files are missing or truncated, such as node-1/weights" in sentence
    assert list(abandoned(found).values()) == [f"{ROOT}{checkpoint_name(10, 1)}/"]


def test_the_parts_of_another_number_of_nodes_make_no_checkpoint(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for rank in range(2):
        store.put(f"{ROOT}{checkpoint_name(10, 1)}/node-{rank}/{File.PART}", b"{}")
    found = find_checkpoints(store, "run/")
    assert {saved.node_rank for saved in found.parts(2)} == {0, 1}
    assert found.parts(1) == set(), "the job was given one node fewer meanwhile"


# ---------------------------------------------------------------- parts, from disk to storage and back

LATER = PartId(step=20, generation=6, node_rank=0)
EARLIER = LATER.model_copy(update={"generation": 5})


def save(root: Path, saved: PartId, name: str | None = None) -> Path:
    """What a worker leaves on its node's disk."""
    folder = root / (name or checkpoint_name(saved.step, saved.generation))
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_text(f"of generation {saved.generation}")
    (folder / "deep" / "shard").write_bytes(b"s")
    marker = Marker(step=saved.step, generation=saved.generation, rank=saved.node_rank, samples=160)
    (folder / marker_name(saved.node_rank)).write_text(marker.to_json())
    return folder


def stored(tmp_path: Path, *parts: PartId, nodes: int = 1) -> tuple[FolderStore, CheckpointStore]:
    store = FolderStore(tmp_path / "storage")
    checkpoints = CheckpointStore(store, "run/")
    plan = revised(PLAN, nodes=nodes)
    for saved in parts:
        root = tmp_path / f"node-{saved.node_rank}"
        checkpoints.upload(saved, save(root, saved))
        checkpoints.commit(saved.checkpoint, plan)
    return store, checkpoints


def test_a_node_that_was_cut_off_cannot_touch_what_a_later_generation_has_committed(tmp_path: Path) -> None:
    store, checkpoints = stored(tmp_path, LATER)
    before = {entry.key: entry.etag for entry in store.list("run/")}
    checkpoints.upload(EARLIER, save(tmp_path / "stale", EARLIER))
    assert {entry.key: entry.etag for entry in store.list("run/") if entry.key in before} == before
    assert checkpoints.fault(LATER) == ""
    checkpoints.fetch(LATER, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "weights").read_text() == "of generation 6"


def test_a_part_that_is_in_storage_is_not_put_again(tmp_path: Path) -> None:
    store, checkpoints = stored(tmp_path, LATER)
    before = {entry.key: entry.etag for entry in store.list("run/")}
    checkpoints.upload(LATER, tmp_path / "node-0" / checkpoint_name(20, 6))
    assert {entry.key: entry.etag for entry in store.list("run/")} == before


def test_a_part_that_is_removed_while_it_is_uploaded_is_no_part_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path / "storage")
    folder = save(tmp_path / "disk", LATER)
    put = store.put_file

    def put_and_remove(key: str, path: Path) -> FileEntry:
        entry = put(key, path)
        disk.retain(tmp_path / "disk", [LATER], [])
        return entry

    monkeypatch.setattr(store, "put_file", put_and_remove)
    with pytest.raises(OSError, match=r"removed while it was uploaded|No such file"):
        CheckpointStore(store, "run/").upload(LATER, folder)
    assert not [entry.key for entry in store.list("run/") if entry.key.endswith(File.PART)]


def test_a_link_that_a_worker_made_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("x")
    folder = save(tmp_path / "disk", LATER)
    (folder / "link").symlink_to(tmp_path / "secret" / "key")
    (folder / "folder").symlink_to(tmp_path / "secret")
    store = FolderStore(tmp_path / "storage")
    CheckpointStore(store, "run/").upload(LATER, folder)
    names = {entry.key.removeprefix(f"{ROOT}{checkpoint_name(20, 6)}/node-0/") for entry in store.list()}
    assert names == {"weights", "deep/shard", marker_name(0), File.PART}


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"step": "x"}', b""])
def test_a_part_whose_description_cannot_be_read_makes_its_checkpoint_broken(tmp_path: Path, content: bytes) -> None:
    """Trying again would not help: the leader goes on with another checkpoint."""
    store, checkpoints = FolderStore(tmp_path / "storage"), CheckpointStore(FolderStore(tmp_path / "storage"), "run/")
    key = f"{ROOT}{checkpoint_name(20, 6)}/node-0/{File.PART}"
    store.put(key, content)
    checkpoints.upload(LATER, save(tmp_path / "disk", LATER))
    assert store.get(key) == content, "nothing is overwritten, and no node tries for ever"
    with pytest.raises(CorruptedError, match=r"node-0/PART.json cannot be read"):
        checkpoints.commit(LATER.checkpoint, PLAN)
    assert not checkpoints.would_be_best(LATER.checkpoint, PLAN)


def test_a_manifest_of_other_facts_is_a_fault_in_words(tmp_path: Path) -> None:
    store, checkpoints = stored(tmp_path, LATER)
    key = f"{ROOT}{checkpoint_name(20, 6)}/{File.MANIFEST}"
    store.put(key, store.get(key).replace(b'"step"', b'"steps"'))
    assert "its manifest cannot be read" in checkpoints.fault(LATER)


def test_states_that_all_nodes_have_in_common_are_stored_once_and_fetched_by_all(tmp_path: Path) -> None:
    """DeepSpeed writes them on every node that saves to a disk of its own: of a model of 8B trained in full, 16 GB."""
    store = FolderStore(tmp_path / "storage")
    checkpoints, common, own = CheckpointStore(store, "run/"), "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00"
    for rank in range(2):
        saved = LATER.model_copy(update={"node_rank": rank})
        folder = save(tmp_path / f"disk-{rank}", saved)
        for name, text in ((common, "the model"), (f"{own}_model_states.pt", f"of rank {rank}")):
            (folder / "global_step20").mkdir(exist_ok=True)
            (folder / "global_step20" / name).write_text(text)
        checkpoints.upload(saved, folder)
    checkpoints.commit(LATER.checkpoint, PLAN)
    keys = [entry.key for entry in store.list() if entry.key.endswith(f"/{common}")]
    assert keys == [f"{ROOT}{checkpoint_name(20, 6)}/node-0/global_step20/{common}"]
    for rank in range(2):
        saved = LATER.model_copy(update={"node_rank": rank})
        fetched = tmp_path / "fetched" / str(rank)
        checkpoints.fetch(saved, fetched)
        assert disk.markers(fetched)
        assert (fetched / "global_step20" / common).read_text() == "the model"
        assert (fetched / "global_step20" / f"{own}_model_states.pt").read_text() == f"of rank {rank}"
    store.put(keys[0], b"the modem")
    assert "manifest says" in checkpoints.fault(saved), "it is part of every node's part"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda store, key: None, ""),
        (lambda store, key: store.put(key, b"of generation 9"), "manifest says"),
        (lambda store, key: store.delete([key]), "there is no"),
        (lambda store, key: store.delete([key.replace("node-0/weights", File.MANIFEST)]), "it has no manifest"),
        (lambda store, key: store.put(key.replace("node-0/weights", File.MANIFEST), b"{"), "is not a manifest"),
    ],
    ids=["nothing", "another file", "a missing file", "no manifest", "half a manifest"],
)
def test_a_checkpoint_is_broken_only_by_what_is_read_of_it(tmp_path: Path, damage: object, fault: str) -> None:
    store, checkpoints = stored(tmp_path, LATER)
    assert callable(damage)
    damage(store, f"{ROOT}{checkpoint_name(20, 6)}/node-0/weights")
    assert (fault in checkpoints.fault(LATER)) if fault else checkpoints.fault(LATER) == ""


def test_a_store_that_refuses_says_nothing_about_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, checkpoints = stored(tmp_path, LATER)

    def refuse(key: str) -> FileEntry:
        raise StorageError(storage_problem("SlowDown", "the server asks for fewer requests", "try again later"))

    monkeypatch.setattr(store, "hash", refuse)
    with pytest.raises(StorageError) as refused:
        checkpoints.fault(LATER)
    assert not isinstance(refused.value, CorruptedError)


def test_a_node_rank_that_the_manifest_lacks_is_an_error(tmp_path: Path) -> None:
    _, checkpoints = stored(tmp_path, LATER)
    with pytest.raises(CorruptedError, match="no files of node rank 1"):
        checkpoints.fetch(LATER.model_copy(update={"node_rank": 1}), tmp_path / "fetched")


def test_checkpoints_of_an_older_version_are_found_and_fetched(tmp_path: Path) -> None:
    """Their folders have the step alone as their name, in storage and on disk; the generation is in their files."""
    store, checkpoints = stored(tmp_path, LATER)
    for entry in list(store.list(ROOT)):
        older = entry.key.replace(checkpoint_name(20, 6), checkpoint_name(20))
        store.put(older, store.get(entry.key))
        store.delete([entry.key])
    found = checkpoints.find()
    assert list(found.committed) == [LATER.checkpoint]
    assert checkpoint_facts(found.committed, PLAN)[LATER.checkpoint].generation is None, (
        "so that its folder can be named"
    )
    assert checkpoints.fault(LATER) == ""
    assert "it has no manifest" in checkpoints.fault(EARLIER), "the same step of another generation"
    checkpoints.fetch(LATER, disk.folder_of(tmp_path / "fetched", LATER.checkpoint))
    assert disk.complete(tmp_path / "fetched", 0, 1) == [LATER]

    older = save(tmp_path / "disk", LATER, checkpoint_name(20))
    assert disk.complete(tmp_path / "disk", 0, 1) == [LATER]
    assert disk.folder_of(tmp_path / "disk", LATER.checkpoint) == older
    assert disk.folder_of(tmp_path / "disk", EARLIER.checkpoint) != older
    disk.prune(tmp_path / "disk", 0, 1, LATER.checkpoint)
    assert older.exists()
    disk.prune(tmp_path / "disk", 0, 1, EARLIER.checkpoint)
    assert not older.exists()

"""What disks do to a run: a node's is full, the store's have changed a checkpoint. Over a real S3 server."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_api.beats import Recovery
from finetune_api.contract import ExitCode
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import StoredCheckpoints, find_checkpoints
from tests.local.agents import STEPS, Agents, wait_for
from tests.local.over_s3 import OverS3, over_s3
from tests.support.plans import revised

NODE_DISK = "64m"
LEFT = 4096  # bytes


@pytest.fixture
def agents(tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path) -> Iterator[OverS3]:
    """A run on one node, which leads and trains."""
    alone = {"nodes": 1, "micro_batch": gang_plan.layout.global_batch}
    with over_s3(tmp_path, revised(gang_plan, **alone), llama, gang_data) as made, made:
        yield made


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """A file system of its own, as large as NODE_DISK."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={NODE_DISK}", "tmpfs", str(folder)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = f"this user may not mount: {tried.stderr.strip()}"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Leaves no room on a disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - LEFT))


def found(agents: Agents, count: int) -> StoredCheckpoints | None:
    """What lies in storage, once so many checkpoints are committed."""
    there = find_checkpoints(agents.store, agents.prefix)
    return there if len(there.committed) >= count else None


def test_a_full_disk_of_a_node_is_told_and_loses_nothing(agents: OverS3) -> None:
    """Its workers cannot save. Once there is room the run goes on."""
    filler = agents.work / "node-0" / "filler"
    with disk(agents.work / "node-0"):
        agents.start()
        before = wait_for("a commit", lambda: found(agents, 1))
        fill(filler)

        def told() -> Recovery | None:
            progress = agents.progress()
            reasons = progress.recoveries if progress else ()
            return next((one for one in reasons if "the node's disk is full" in one.reason), None)

        recovery = wait_for("the full disk, on the status", told)
        assert recovery.node == 0
        assert "increase spec.scratch.size" in recovery.reason
        there = find_checkpoints(agents.store, agents.prefix).committed
        assert not max(there) < max(before.committed), "nothing committed is lost"
        filler.unlink()
        assert agents.wait() == {0: ExitCode.OK}, agents.logs()
        assert agents.done().step == STEPS


def test_a_stored_checkpoint_whose_bytes_have_changed_is_named_and_the_one_before_is_taken(
    agents: OverS3,
) -> None:
    """The node is lost with its disk; of the newest checkpoint one byte is another one."""
    agents.start()
    there = wait_for("two commits", lambda: found(agents, 2))
    agents.lose(0)
    there = find_checkpoints(agents.store, agents.prefix)
    broken = max(there.committed)
    older = max(one for one in there.committed if one != broken)
    files = there.committed[broken].manifest.files
    largest = max((one for one in files if one.path.startswith("node-0/")), key=lambda one: one.size)
    damage(agents.store.path(there.committed[broken].prefix + largest.path))
    agents.start()
    assert agents.wait() == {0: ExitCode.OK}, agents.logs()
    done = agents.done()
    assert f"checkpoint {broken} is broken" in agents.log(0)
    assert [one.resumed_step for one in done.recoveries][-1] == older.step
    assert f"checkpoint {broken} is broken in storage" in done.recoveries[-1].reason
    assert largest.path in done.recoveries[-1].reason
    assert broken not in find_checkpoints(agents.store, agents.prefix).committed


def damage(path: Path) -> None:
    """One bit of a file is flipped; its size stays."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))

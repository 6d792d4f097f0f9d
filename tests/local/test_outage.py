"""A gang whose storage is a real S3 server that stops answering in the middle of the run."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.beats import Progress
from finetune_api.contract import ExitCode
from finetune_api.messages import Plan
from finetune_trainer.checkpoints import find_checkpoints
from finetune_trainer.storage import FolderStore
from tests.local.agents import EVERY, STEPS, Agents, assert_same_bits, children, wait_for
from tests.s3 import S3Server, start_s3

BUCKET = "gang"


class OverS3(Agents):
    """Agents that reach their storage over S3; the tests look at the server's folder."""

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.work / "s3" / "buckets" / BUCKET)


def server_pid() -> int:
    [pid] = [pid for pid in children(os.getpid()) if Path(f"/proc/{pid}/comm").read_text().startswith("versitygw")]
    return pid


@pytest.fixture
def over_s3(tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path) -> Iterator[OverS3]:
    with start_s3(tmp_path / "s3") as server:
        yield prepared(server, tmp_path, gang_plan, llama, gang_data)


def prepared(server: S3Server, work: Path, plan: Plan, model: Path, data: Path) -> OverS3:
    job = {"storage": {"uri": server.make_bucket(BUCKET), "endpoint": server.endpoint}}
    made = OverS3.prepared(work, plan, model, data, server.environ, job)
    assert isinstance(made, OverS3)
    return made


def test_an_outage_of_storage_costs_no_step_no_restart_and_no_bit(over_s3: OverS3, undisturbed_gang: Agents) -> None:
    """It lasts from the first checkpoints until after the last step: training goes on, and waits at its end."""
    with over_s3 as agents:
        agents.start()
        agents.wait_for_step(EVERY + 3)
        server = server_pid()
        os.kill(server, signal.SIGSTOP)
        try:

            def trained() -> Progress | None:
                assert all(process.poll() is None for process in agents.processes.values()), agents.logs()
                progress = agents.progress()
                return progress if progress is not None and progress.step == STEPS else None

            wait_for("the last step, without storage", trained)
            committed = find_checkpoints(agents.store, agents.prefix).committed
            assert max((one.step for one in committed), default=0) < STEPS
        finally:
            os.kill(server, signal.SIGCONT)
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        assert agents.done().recoveries == ()
        assert_same_bits(agents, undisturbed_gang, STEPS)

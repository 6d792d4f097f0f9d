"""A gang of real agent processes whose storage is a real S3 server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.plan import Plan
from finetune_trainer.storage import FolderStore
from tests.local.agents import Agents, children
from tests.support.s3 import start_s3

BUCKET = "gang"


class OverS3(Agents):
    """Agents that reach their storage over S3; the tests look at the server's folder."""

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.work / "s3" / "buckets" / BUCKET)


def server_pid() -> int:
    """Of the one server that this process runs."""
    [pid] = [pid for pid in children(os.getpid()) if Path(f"/proc/{pid}/comm").read_text().startswith("versitygw")]
    return pid


@contextmanager
def over_s3(work: Path, plan: Plan, model: Path, data: Path) -> Iterator[OverS3]:
    """A gang that is not started yet, its server below `work`."""
    with start_s3(work / "s3") as server:
        job = {"storage": {"uri": server.make_bucket(BUCKET), "endpoint": server.endpoint}}
        made = OverS3.prepared(work, plan, model, data, server.environ, job)
        assert isinstance(made, OverS3)
        yield made

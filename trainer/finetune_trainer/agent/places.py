"""Where things lie on a node's disk: model, data, checkpoints and logs; and what a worker is told of them."""

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.beats import CheckpointId, Directive, Saved
from finetune_api.plan import Plan
from finetune_trainer.checkpoints import local as disk
from finetune_trainer.checkpoints.best import best_of
from finetune_trainer.process.orders import WorkerOrder


@dataclass(frozen=True)
class Places:
    """The folders of one node.

    Attributes:
        work: scratch of the node; nobody else writes there.
        local_ranks: workers of the node.
    """

    work: Path
    local_ranks: int

    @property
    def model(self) -> Path:
        """The base model."""
        return self.work / "model"

    @property
    def dataset(self) -> Path:
        """The prepared data set."""
        return self.work / "dataset"

    @property
    def adapter(self) -> Path:
        """The adapter that training starts from."""
        return self.work / "adapter"

    @property
    def outputs(self) -> Path:
        """What rank 0 writes for people."""
        return self.work / "outputs"

    def checkpoints(self, node_rank: int) -> Path:
        """Checkpoints saved as a node of this rank; a node may have had another one."""
        return self.work / "checkpoints" / f"node-{node_rank}"

    def checkpoint(self, node_rank: int, checkpoint: CheckpointId) -> Path:
        """One checkpoint's share."""
        return disk.folder_of(self.checkpoints(node_rank), checkpoint)

    def complete(self) -> list[Saved]:
        """Checkpoints that every local rank has written, of every node rank that the node has had."""
        found = [path for path in self.work.glob("checkpoints/node-*") if path.is_dir()]
        ranks = sorted(int(path.name.removeprefix("node-")) for path in found)
        return [saved for rank in ranks for saved in disk.complete(self.checkpoints(rank), rank, self.local_ranks)]

    def best(self, shares: Iterable[Saved], metric: str, greater: bool) -> CheckpointId | None:
        """The best of some shares by their evaluation, the later of equals; None if none of them has one."""
        scores = [
            (saved.checkpoint, marked[0].metrics.get(metric, math.nan))
            for saved in sorted(shares, key=lambda share: share.checkpoint)
            if (marked := disk.markers(self.checkpoint(saved.node_rank, saved.checkpoint)))
        ]
        return best_of(scores, greater=greater)

    def prune(self, node_rank: int, resume: CheckpointId | None) -> None:
        """Removes what workers of this node rank will not resume from, and all shares of other node ranks."""
        for path in self.work.glob("checkpoints/node-*"):
            if path != self.checkpoints(node_rank):
                shutil.rmtree(path, ignore_errors=True)
        disk.prune(self.checkpoints(node_rank), node_rank, self.local_ranks, resume)

    def logs(self) -> Iterator[tuple[str, Path]]:
        """The log of each rank in each generation: its key below `logs/`, and its file."""
        logs = self.work / "logs"
        for path in disk.regular_files(logs):
            if path.parent.name.startswith("generation-") and path.name.startswith("rank-"):
                yield path.relative_to(logs).as_posix(), path

    def orders(
        self, plan: Plan, directive: Directive, node_rank: int, threads: int, resume: Path | None
    ) -> list[WorkerOrder]:
        """What each worker of this node is to do, as the leader's directive has it.

        Args:
            threads: intra-op threads of each worker.
            resume: folder of the checkpoint to go on from; None = from the start.
        """
        return [
            WorkerOrder(
                plan=plan,
                generation=directive.generation,
                rank=node_rank * self.local_ranks + local_rank,
                local_rank=local_rank,
                node_rank=node_rank,
                world_size=plan.world_size,
                local_world_size=self.local_ranks,
                master_host=directive.master_host,
                master_port=directive.master_port,
                threads=threads,
                model=str(self.model),
                dataset=str(self.dataset),
                checkpoints=str(self.checkpoints(node_rank)),
                outputs=str(self.outputs),
                adapter=str(self.adapter) if plan.adapter else None,
                resume=str(resume) if resume else None,
            )
            for local_rank in range(self.local_ranks)
        ]

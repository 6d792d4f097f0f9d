"""The folders on a node's disk: model, data, checkpoints and logs; and the orders of workers, which name them."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.beats import CheckpointId, Directive, PartId
from finetune_api.plan import Plan
from finetune_trainer.checkpoints import local as disk
from finetune_trainer.checkpoints.best import best_by_metric
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.storage import regular_files


@dataclass(frozen=True)
class Places:
    """The folders of one node.

    Attributes:
        work: scratch of the node; no other process writes there.
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
        """The files that rank 0 writes for people."""
        return self.work / "outputs"

    def checkpoints(self, node_rank: int) -> Path:
        """Return the folder of the checkpoints that were saved for a node rank; a node may have had several ranks."""
        return self.work / "checkpoints" / f"node-{node_rank}"

    def checkpoint(self, node_rank: int, checkpoint: CheckpointId) -> Path:
        """Return the folder of one part."""
        return disk.folder_of(self.checkpoints(node_rank), checkpoint)

    def complete(self) -> list[PartId]:
        """Return the parts that every local rank has written, of every node rank that the node has had."""
        folders = [path for path in self.work.glob("checkpoints/node-*") if path.is_dir()]
        ranks = sorted(int(path.name.removeprefix("node-")) for path in folders)
        return [part for rank in ranks for part in disk.complete(self.checkpoints(rank), rank, self.local_ranks)]

    def best(self, parts: Iterable[PartId], metric: str, greater: bool) -> CheckpointId | None:
        """Return the best of some parts by their evaluation, the later of equals; None if no part has an evaluation."""
        measured = [
            (part.checkpoint, written[0].metrics)
            for part in sorted(parts, key=lambda part: part.checkpoint)
            if (written := disk.markers(self.checkpoint(part.node_rank, part.checkpoint)))
        ]
        return best_by_metric(measured, metric, greater=greater)

    def prune(self, node_rank: int, resume: CheckpointId | None) -> None:
        """Remove the parts that workers of this node rank will not resume from, and all parts of other node ranks."""
        for path in self.work.glob("checkpoints/node-*"):
            if path != self.checkpoints(node_rank):
                shutil.rmtree(path, ignore_errors=True)
        disk.prune(self.checkpoints(node_rank), node_rank, self.local_ranks, resume)

    def logs(self) -> Iterator[tuple[str, Path]]:
        """Yield the log of each rank in each generation: its key below `logs/`, and its file."""
        logs = self.work / "logs"
        for path in regular_files(logs):
            if path.parent.name.startswith("generation-") and path.name.startswith("rank-"):
                yield path.relative_to(logs).as_posix(), path

    def orders(
        self, plan: Plan, directive: Directive, node_rank: int, threads: int, resume: Path | None
    ) -> list[WorkerOrder]:
        """Return the orders of this node's workers, which carry out a directive of the leader.

        Args:
            threads: intra-op threads of each worker.
            resume: folder of the checkpoint to resume from; None = from the start.
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

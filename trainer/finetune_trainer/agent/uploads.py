"""Checkpoints in storage: each node puts its share, the leader verifies all shares and writes the manifest, which is
the commit. Synchronous; the agent runs these in a thread."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.beats import CheckpointFacts, Saved
from finetune_api.contract import File, checkpoint_name, checkpoint_step
from finetune_api.errors import Problem, StorageError
from finetune_api.messages import CheckpointInfo, CheckpointPart, FileEntry, Manifest, Plan
from finetune_trainer.agent.disk import markers
from finetune_trainer.checkpoints import committed
from finetune_trainer.storage import AlreadyExistsError, NotFoundError, ObjectStore, download_files, read_manifest


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        store: the job's storage.
        run: key prefix of the run, with the trailing slash.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self._run = run
        self._root = f"{run}checkpoints/"

    def upload(self, saved: Saved, folder: Path) -> CheckpointPart:
        """Puts one node's share and, last, its PART.json; a share that is there already is not put again."""
        prefix = f"{self._step(saved.step)}node-{saved.node_rank}/"
        with contextlib.suppress(NotFoundError):
            part = self._part(self._step(saved.step), saved.node_rank)
            if part.generation == saved.generation:
                return part
            self._store.delete([prefix + File.PART])  # its files are about to change
        found = markers(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [
            self._store.put_file(prefix + path.relative_to(folder).as_posix(), path).model_copy(
                update={"path": path.relative_to(folder).as_posix()}
            )
            for path in paths
        ]
        part = CheckpointPart(
            step=saved.step,
            generation=saved.generation,
            node_rank=saved.node_rank,
            samples=found[0].samples,
            files=tuple(files),
            metrics=found[0].metrics,
        )
        self._store.put(prefix + File.PART, part.to_json().encode())
        return part

    def commit(self, saved: Saved, plan: Plan) -> Manifest:
        """Writes the manifest of a checkpoint whose shares are all uploaded.

        Raises:
            StorageError: a share is missing, is of another generation, or its objects are not what its PART.json says.
        """
        prefix = self._step(saved.step)
        parts = [self._part(prefix, rank) for rank in range(plan.nodes)]
        stored = {entry.key.removeprefix(prefix): entry.size for entry in self._store.list(prefix)}
        for part in parts:
            if part.generation != saved.generation:
                raise _broken(saved.step, f"node {part.node_rank} stored it in generation {part.generation}")
        files = tuple(
            FileEntry(path=f"node-{part.node_rank}/{entry.path}", size=entry.size, sha256=entry.sha256)
            for part in parts
            for entry in part.files
        )
        for entry in files:
            if stored.get(entry.path) != entry.size:
                raise _broken(saved.step, f"{entry.path} has {stored.get(entry.path)} bytes instead of {entry.size}")
        info = CheckpointInfo(
            step=saved.step,
            generation=saved.generation,
            nodes=plan.nodes,
            processes_per_node=plan.processes_per_node,
            zero_stage=plan.zero_stage,
            samples=parts[0].samples,
            metrics=parts[0].metrics,
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(kind="checkpoint", files=files, created=now, info=info.model_dump())
        try:
            self._store.create(prefix + File.MANIFEST, manifest.to_json().encode())
        except AlreadyExistsError:
            there = read_manifest(self._store, prefix)
            if there is None or there.files != files:
                raise
        return manifest

    def committed(self) -> dict[int, Manifest]:
        """The committed checkpoints by step."""
        return {_info(manifest).step: manifest for manifest in committed(self._store, self._run)}

    def abandoned(self, committed: Collection[int]) -> list[int]:
        """Steps of which there are files but no manifest, and will be none: a newer one is committed."""
        names = {entry.key.removeprefix(self._root).partition("/")[0] for entry in self._store.list(self._root)}
        steps = {step for name in names if (step := checkpoint_step(name)) is not None}
        return sorted(step for step in steps - set(committed) if step < max(committed, default=0))

    def fetch(self, step: int, node_rank: int, folder: Path) -> None:
        """Brings one node rank's share of a committed checkpoint to `folder`, verified; markers come last.

        Raises:
            StorageError: there is no manifest, or a file is not what the manifest says.
        """
        manifest = read_manifest(self._store, self._step(step))
        if manifest is None:
            raise _broken(step, "it has no manifest")
        own = f"node-{node_rank}/"
        entries = [entry for entry in manifest.files if entry.path.startswith(own)]
        local = [entry.model_copy(update={"path": entry.path.removeprefix(own)}) for entry in entries]
        for is_marker in (False, True):
            some = [entry for entry in local if entry.path.endswith(".saved") is is_marker]
            download_files(self._store, self._step(step) + own, some, folder)

    def delete(self, steps: Iterable[int]) -> None:
        """Removes checkpoints, the manifest first: one that is half gone does not exist."""
        for step in steps:
            prefix = self._step(step)
            self._store.delete([prefix + File.MANIFEST])
            self._store.delete([entry.key for entry in self._store.list(prefix)])

    def _part(self, prefix: str, node_rank: int) -> CheckpointPart:
        return CheckpointPart.model_validate_json(self._store.get(f"{prefix}node-{node_rank}/{File.PART}"))

    def _step(self, step: int) -> str:
        return f"{self._root}{checkpoint_name(step)}/"


def superseded(facts: Mapping[int, CheckpointFacts], plan: Plan) -> list[int]:
    """Steps to delete: all but the newest `keep_last` and the best by the plan's metric."""
    keep = {*sorted(facts)[-plan.keep_last :], *(step for step in facts if facts[step].best)}
    return sorted(set(facts) - keep)


def told(committed: Mapping[int, Manifest], plan: Plan) -> dict[int, CheckpointFacts]:
    """What people are told of the committed checkpoints, by step; the later of equally good ones is the best."""
    metrics = {step: _info(manifest).metrics for step, manifest in committed.items()}
    scored = {step: values[plan.best_metric] for step, values in metrics.items() if plan.best_metric in values}
    sign = 1 if plan.greater_is_better else -1
    best = max(scored, key=lambda step: (sign * scored[step], step), default=None)
    return {
        step: CheckpointFacts(
            step=step,
            saved=manifest.created,
            size_bytes=sum(entry.size for entry in manifest.files),
            metrics=metrics[step],
            best=step == best,
        )
        for step, manifest in committed.items()
    }


def _info(manifest: Manifest) -> CheckpointInfo:
    return CheckpointInfo.model_validate(manifest.info)


def _broken(step: int, why: str) -> StorageError:
    return StorageError(
        Problem(
            code="CheckpointInvalid",
            field="spec.storage.uri",
            message=f"checkpoint {step} cannot be used: {why}",
            cure="nothing: the run goes on from an older one; find out who writes below this prefix",
        )
    )

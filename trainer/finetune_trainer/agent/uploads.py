"""Checkpoints in storage: each node puts its share, the leader verifies all shares and writes the manifest, which is
the commit. Synchronous; the agent runs these in a thread.

A folder in storage belongs to one step and one generation, and nothing in it is ever written twice.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.beats import CheckpointFacts, CheckpointId, Saved
from finetune_api.contract import File, checkpoint_name
from finetune_api.errors import Problem
from finetune_api.messages import CheckpointInfo, CheckpointPart, FileEntry, Manifest, Plan
from finetune_trainer.agent.disk import markers, regular_files
from finetune_trainer.checkpoints import Committed, Found, find_checkpoints
from finetune_trainer.storage import (
    AlreadyExistsError,
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    download_files,
    read_manifest,
    verify_files,
)

Wrong = (CorruptedError, ManifestInvalidError, NotFoundError)  # what a store says of an object; all else is of itself


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
        prefix = f"{self._prefix(saved.checkpoint)}node-{saved.node_rank}/"
        with contextlib.suppress(NotFoundError):
            return self._part(self._prefix(saved.checkpoint), saved.node_rank)
        found = markers(folder)
        files = []
        for path in regular_files(folder):
            name = path.relative_to(folder).as_posix()
            files.append(self._store.put_file(prefix + name, path).model_copy(update={"path": name}))
        if not found or markers(folder) != found:  # they go first: some files may have been gone before they were sent
            raise FileNotFoundError(f"checkpoint {saved.checkpoint} was removed while it was uploaded")
        part = CheckpointPart(
            step=saved.step,
            generation=saved.generation,
            node_rank=saved.node_rank,
            samples=found[0].samples,
            files=tuple(files),
            metrics=found[0].metrics,
        )
        try:
            self._store.create(prefix + File.PART, part.to_json().encode())
        except AlreadyExistsError:  # the answer to a first try was lost
            return self._part(self._prefix(saved.checkpoint), saved.node_rank)
        return part

    def commit(self, checkpoint: CheckpointId, plan: Plan) -> Manifest:
        """Writes the manifest of a checkpoint whose shares are all uploaded.

        Raises:
            StorageError: a share is missing, is of another generation, or its objects are not what its PART.json says.
        """
        prefix = self._prefix(checkpoint)
        parts = [self._part(prefix, rank) for rank in range(plan.nodes)]
        stored = {entry.key.removeprefix(prefix): entry.size for entry in self._store.list(prefix)}
        for part in parts:
            if (part.step, part.generation) != (checkpoint.step, checkpoint.generation):
                raise _wrong(checkpoint, f"node {part.node_rank} stored step {part.step} of {part.generation} there")
        files = tuple(
            FileEntry(path=f"node-{part.node_rank}/{entry.path}", size=entry.size, sha256=entry.sha256)
            for part in parts
            for entry in part.files
        )
        for entry in files:
            if stored.get(entry.path) != entry.size:
                raise _wrong(checkpoint, f"{entry.path} has {stored.get(entry.path)} bytes instead of {entry.size}")
        info = CheckpointInfo(
            step=checkpoint.step,
            generation=checkpoint.generation,
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

    def find(self) -> Found:
        """What there is in storage."""
        return find_checkpoints(self._store, self._run)

    def fetch(self, saved: Saved, folder: Path) -> None:
        """Brings one node rank's share of a committed checkpoint to `folder`, verified; markers come last.

        Raises:
            NotFoundError, ManifestInvalidError, CorruptedError: it is not there, or is not what its manifest says.
            StorageError: the store refused, which says nothing about the checkpoint.
        """
        one, entries = self._share(saved)
        prefix = f"{one.prefix}node-{saved.node_rank}/"
        for is_marker in (False, True):
            some = [entry for entry in entries if entry.path.endswith(".saved") is is_marker]
            download_files(self._store, prefix, some, folder)

    def fault(self, saved: Saved) -> str:
        """Why a node rank's share of a committed checkpoint cannot be used, in a sentence; empty if it can. Every byte
        of it is read.

        Raises:
            StorageError: the store refused, which says nothing about the checkpoint.
        """
        try:
            one, entries = self._share(saved)
            verify_files(self._store, f"{one.prefix}node-{saved.node_rank}/", entries)
        except Wrong as error:
            if any(problem.code == "NoSuchBucket" for problem in error.problems):
                raise
            return " ".join(str(error).split())
        return ""

    def delete(self, prefixes: Iterable[str]) -> None:
        """Removes checkpoints, the manifest first: one that is half gone does not exist."""
        for prefix in prefixes:
            self._store.delete([prefix + File.MANIFEST])
            self._store.delete([entry.key for entry in self._store.list(prefix)])

    def clean(self, seconds: float) -> None:
        """Removes what killed uploads of this run have left, if they began long ago."""
        self._store.clean(self._root, seconds)

    def _share(self, saved: Saved) -> tuple[Committed, list[FileEntry]]:
        """A committed checkpoint, and the files of one node rank in it."""
        one = self._committed(saved.checkpoint)
        own = f"node-{saved.node_rank}/"
        entries = [
            entry.model_copy(update={"path": entry.path.removeprefix(own)})
            for entry in one.manifest.files
            if entry.path.startswith(own)
        ]
        if not entries:
            raise _wrong(saved.checkpoint, f"its manifest has no files of node rank {saved.node_rank}")
        return one, entries

    def _committed(self, checkpoint: CheckpointId) -> Committed:
        """Looks where a checkpoint lies: an older version named its folder by the step alone."""
        for prefix in (self._prefix(checkpoint), f"{self._root}{checkpoint_name(checkpoint.step)}/"):
            manifest = read_manifest(self._store, prefix)
            if manifest is not None:
                one = Committed(prefix, manifest, CheckpointInfo.model_validate(manifest.info))
                if one.id == checkpoint:
                    return one
        raise _wrong(checkpoint, "it has no manifest")

    def _part(self, prefix: str, node_rank: int) -> CheckpointPart:
        return CheckpointPart.model_validate_json(self._store.get(f"{prefix}node-{node_rank}/{File.PART}"))

    def _prefix(self, checkpoint: CheckpointId) -> str:
        return f"{self._root}{checkpoint_name(checkpoint.step, checkpoint.generation)}/"


def superseded(facts: Mapping[CheckpointId, CheckpointFacts], plan: Plan) -> set[CheckpointId]:
    """Checkpoints to delete: all but the newest `keep_last` and the best by the plan's metric."""
    keep = {*sorted(facts)[-plan.keep_last :], *(one for one in facts if facts[one].best)}
    return set(facts) - keep


def abandoned(found: Found) -> list[str]:
    """Prefixes of uploads that no commit will follow: a newer checkpoint is committed."""
    newest = max(found.committed, default=None)
    return [prefix for one, prefix in found.open.items() if newest is not None and one < newest]


def facts_of(committed: Mapping[CheckpointId, Committed], plan: Plan) -> dict[CheckpointId, CheckpointFacts]:
    """What people are told of the committed checkpoints; the later of equally good ones is the best."""
    scores = {one: there.info.metrics.get(plan.best_metric, math.nan) for one, there in committed.items()}
    sign = 1 if plan.greater_is_better else -1
    scored = [one for one in sorted(scores) if math.isfinite(scores[one])]
    best = max(scored, key=lambda one: (sign * scores[one], one.step, one.generation), default=None)
    return {
        one: CheckpointFacts(
            step=one.step,
            generation=one.generation if there.prefix.endswith(f"-g{one.generation}/") else None,
            saved=there.manifest.created,
            size_bytes=sum(entry.size for entry in there.manifest.files),
            metrics=there.info.metrics,
            best=one == best,
        )
        for one, there in committed.items()
    }


def _wrong(checkpoint: CheckpointId, why: str) -> CorruptedError:
    return CorruptedError(
        Problem(
            code="CheckpointInvalid",
            field="spec.storage.uri",
            message=f"checkpoint {checkpoint} cannot be used: {why}",
            cure="nothing: the run goes on from an older one; find out who writes below this prefix",
        )
    )

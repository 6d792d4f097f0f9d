"""Checkpoints in storage: each node puts its share, the leader verifies all shares and writes the manifest, which is
the commit. Synchronous; the agent runs these in a thread.

A folder in storage belongs to one step and one generation, and nothing in it is ever written twice.
"""

import contextlib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.beats import CheckpointFacts, CheckpointId, Saved
from finetune_api.contract import File, checkpoint_name
from finetune_api.errors import Problem, StorageError
from finetune_api.messages import CheckpointInfo, CheckpointPart, FileEntry, Manifest
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.best import best_of
from finetune_trainer.checkpoints.committed import Committed, Found, find_checkpoints
from finetune_trainer.checkpoints.local import markers, regular_files
from finetune_trainer.storage import (
    AlreadyExistsError,
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    download_files,
    put_files,
    read_manifest,
    verify_files,
)

FIRST = "node-0/"  # below a checkpoint: the share of node rank 0, which holds what all nodes have in common
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

    def upload(self, saved: Saved, folder: Path) -> None:
        """Puts one node's share and, last, its PART.json; a share that is there already is not put again."""
        prefix = f"{self._prefix(saved.checkpoint)}node-{saved.node_rank}/"
        if self._store.head(prefix + File.PART) is not None:  # the leader reads it, and says so where it is none
            return
        found = markers(folder)
        names = {path.relative_to(folder).as_posix(): path for path in regular_files(folder)}
        own = {name: path for name, path in names.items() if saved.node_rank == 0 or not is_replicated(name)}
        files = put_files(self._store, prefix, own)
        if not found or markers(folder) != found:  # they go first: some files may have been gone before they were sent
            raise FileNotFoundError(f"checkpoint {saved.checkpoint} was removed while it was uploaded")
        part = CheckpointPart(
            step=saved.step,
            generation=saved.generation,
            node_rank=saved.node_rank,
            samples=found[0].samples,
            files=files,
            metrics=found[0].metrics,
        )
        with contextlib.suppress(AlreadyExistsError):  # the answer to a first try was lost
            self._store.create(prefix + File.PART, part.to_json().encode())

    def commit(self, checkpoint: CheckpointId, plan: Plan) -> Manifest:
        """Writes the manifest of a checkpoint whose shares are all uploaded.

        Raises:
            StorageError: a share is missing, is of another generation, or its objects are not what its PART.json says.
        """
        prefix = self._prefix(checkpoint)
        parts = [self._part(checkpoint, rank) for rank in range(plan.layout.nodes)]
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
            nodes=plan.layout.nodes,
            processes_per_node=plan.layout.processes_per_node,
            zero_stage=plan.layout.zero_stage,
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

    def would_be_best(self, checkpoint: CheckpointId, plan: Plan) -> bool:
        """Whether a checkpoint whose shares are all uploaded would be the best of the committed ones.

        Raises:
            StorageError: the store refused.
        """
        try:
            metrics = self._part(checkpoint, 0).metrics
        except CorruptedError:
            return False
        scores = {one: there.info.metrics for one, there in self.find().committed.items()} | {checkpoint: metrics}
        ordered = ((one, scores[one].get(plan.evaluation.best_metric, math.nan)) for one in sorted(scores))
        return best_of(ordered, greater=plan.evaluation.greater_is_better) == checkpoint

    def find(self) -> Found:
        """What there is in storage."""
        return find_checkpoints(self._store, self._run)

    def fetch(self, saved: Saved, folder: Path) -> None:
        """Brings one node rank's share of a committed checkpoint to `folder`, verified; markers come last.

        Raises:
            NotFoundError, ManifestInvalidError, CorruptedError: it is not there, or is not what its manifest says.
            StorageError: the store refused, which says nothing about the checkpoint.
        """
        shares = self._share(saved)
        for is_marker in (False, True):
            for prefix, entries in shares.items():
                some = [entry for entry in entries if entry.path.endswith(".saved") is is_marker]
                download_files(self._store, prefix, some, folder)

    def fault(self, saved: Saved) -> str:
        """Why a node rank's share of a committed checkpoint cannot be used, in a sentence; empty if it can. Every byte
        of it is read.

        Raises:
            StorageError: the store refused, which says nothing about the checkpoint.
        """
        try:
            for prefix, entries in self._share(saved).items():
                verify_files(self._store, prefix, entries)
        except Wrong as error:
            if no_bucket(error):
                raise
            return error.problems[0].message
        return ""

    def delete(self, prefixes: Iterable[str]) -> None:
        """Removes checkpoints, the manifest first: one that is half gone does not exist."""
        for prefix in prefixes:
            self._store.delete([prefix + File.MANIFEST])
            self._store.delete([entry.key for entry in self._store.list(prefix)])

    def clean(self, seconds: float) -> None:
        """Removes what killed uploads of this run have left, if they began long ago."""
        self._store.clean(self._root, seconds)

    def _share(self, saved: Saved) -> dict[str, list[FileEntry]]:
        """The files of one node rank in a committed checkpoint, by the prefix below which they lie."""
        one = self._committed(saved.checkpoint)
        own = _below(one.manifest.files, f"node-{saved.node_rank}/")
        if not own:
            raise _wrong(saved.checkpoint, f"its manifest has no files of node rank {saved.node_rank}")
        shares = {f"{one.prefix}node-{saved.node_rank}/": own}
        if saved.node_rank != 0:
            names = {entry.path for entry in own}  # older versions stored a copy for each node
            first = _below(one.manifest.files, FIRST)
            shares[one.prefix + FIRST] = [e for e in first if is_replicated(e.path) and e.path not in names]
        return shares

    def _committed(self, checkpoint: CheckpointId) -> Committed:
        """Looks where a checkpoint lies: an older version named its folder by the step alone."""
        for prefix in (self._prefix(checkpoint), f"{self._root}{checkpoint_name(checkpoint.step)}/"):
            manifest = read_manifest(self._store, prefix)
            if manifest is None:
                continue
            try:
                info = CheckpointInfo.model_validate(manifest.info)
            except ValidationError as error:
                raise _wrong(checkpoint, f"its manifest cannot be understood: {_first_line(error)}") from error
            if (info.step, info.generation) == (checkpoint.step, checkpoint.generation):
                return Committed(prefix, manifest, info)
        raise _wrong(checkpoint, "it has no manifest")

    def _part(self, checkpoint: CheckpointId, node_rank: int) -> CheckpointPart:
        key = f"{self._prefix(checkpoint)}node-{node_rank}/{File.PART}"
        try:
            return CheckpointPart.model_validate_json(self._store.get(key))
        except NotFoundError as error:
            if no_bucket(error):
                raise
            raise _wrong(checkpoint, f"there is no {key}") from error
        except ValidationError as error:
            raise _wrong(checkpoint, f"{key} cannot be understood: {_first_line(error)}") from error

    def _prefix(self, checkpoint: CheckpointId) -> str:
        return f"{self._root}{checkpoint_name(checkpoint.step, checkpoint.generation)}/"


def is_replicated(name: str) -> bool:
    """Whether a file of a share is the same on every node.

    Where each node saves to a disk of its own, DeepSpeed (0.19) has data-parallel rank 0 of each write the model's
    states, of which a shared file system would hold one file. ZeRO-3's shards of them are named `zero_pp_rank_...`.
    """
    return re.fullmatch(r"mp_rank_\d+_model_states\.pt", name.rpartition("/")[2], re.ASCII) is not None


def _below(files: Iterable[FileEntry], folder: str) -> list[FileEntry]:
    return [
        entry.model_copy(update={"path": entry.path.removeprefix(folder)})
        for entry in files
        if entry.path.startswith(folder)
    ]


def superseded(facts: Mapping[CheckpointId, CheckpointFacts], plan: Plan) -> set[CheckpointId]:
    """Checkpoints to delete: all but the newest `keep_last` and the best by the plan's metric."""
    keep = {*sorted(facts)[-plan.schedule.keep_last :], *(one for one in facts if facts[one].best)}
    return set(facts) - keep


def stored_shares(found: Found, nodes: int) -> set[Saved]:
    """The shares that wait in storage for their commit, of checkpoints that as many nodes have saved."""
    return {
        Saved(step=one.step, generation=one.generation, node_rank=rank)
        for one, there in found.open.items()
        if there.ranks <= frozenset(range(nodes))
        for rank in there.ranks
    }


def abandoned(found: Found, held: Collection[CheckpointId] = ()) -> dict[CheckpointId, str]:
    """Prefixes of uploads that no commit will follow: a newer checkpoint is committed, and no node holds a share that
    may still come.

    Args:
        held: checkpoints of which a node may still bring its share.
    """
    newest = max(found.committed, default=None)
    if newest is None:
        return {}
    return {one: there.prefix for one, there in found.open.items() if one < newest and one not in held}


def facts_of(committed: Mapping[CheckpointId, Committed], plan: Plan) -> dict[CheckpointId, CheckpointFacts]:
    """What people are told of the committed checkpoints; the later of equally good ones is the best."""
    scores = [
        (one, committed[one].info.metrics.get(plan.evaluation.best_metric, math.nan)) for one in sorted(committed)
    ]
    best = best_of(scores, greater=plan.evaluation.greater_is_better)
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


def no_bucket(error: StorageError) -> bool:
    """Whether an error speaks of the whole store, not of the object that was asked for."""
    return any(problem.code == "NoSuchBucket" for problem in error.problems)


def _first_line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200]


def _wrong(checkpoint: CheckpointId, why: str) -> CorruptedError:
    return CorruptedError(
        Problem(
            code="CheckpointInvalid",
            field="spec.storage.uri",
            message=f"checkpoint {checkpoint} cannot be used: {why}",
            cure="nothing: the run goes on from an older one; find out who writes below this prefix",
        )
    )

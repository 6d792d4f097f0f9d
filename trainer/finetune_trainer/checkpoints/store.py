"""Checkpoints in storage: each node uploads its part, the leader verifies all parts and writes the manifest, which is
the commit. Synchronous; the agent runs these in a thread.

A folder in storage belongs to one step and one generation, and no object in it is ever written twice.
"""

import contextlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.beats import CheckpointId, PartId
from finetune_api.contract import File, checkpoint_name
from finetune_api.errors import Problem
from finetune_api.messages import CheckpointInfo, CheckpointPart, FileEntry, Manifest
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import Committed, StoredCheckpoints, find_checkpoints
from finetune_trainer.checkpoints.identity import PREFIX, folder_name, part_prefix
from finetune_trainer.checkpoints.local import markers
from finetune_trainer.checkpoints.marker import SUFFIX
from finetune_trainer.checkpoints.pick import would_be_best
from finetune_trainer.storage import (
    AlreadyExistsError,
    CorruptedError,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    bucket_is_missing,
    download_files,
    put_files,
    read_manifest,
    regular_files,
    verify_files,
)

FIRST = part_prefix(0)  # node rank 0's part holds the files that are the same on every node
OBJECT_ERRORS = (CorruptedError, ManifestInvalidError, NotFoundError)  # about the object; others are about the store


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        store: the job's storage.
        run: key prefix of the run, with the trailing slash.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self._run = run
        self._root = f"{run}{PREFIX}"

    def upload(self, part: PartId, folder: Path) -> None:
        """Upload one part and, last, its PART.json. A part that storage has already is not uploaded again.

        Raises:
            StorageError: the store refused.
            FileNotFoundError: the part was removed from the disk during its upload.
        """
        prefix = f"{self._prefix(part.checkpoint)}{part_prefix(part.node_rank)}"
        if self._store.head(prefix + File.PART) is not None:  # the leader reads it and reports an invalid one
            return
        before = markers(folder)
        names = {path.relative_to(folder).as_posix(): path for path in regular_files(folder)}
        own = {name: path for name, path in names.items() if part.node_rank == 0 or not is_replicated(name)}
        files = put_files(self._store, prefix, own)
        if not before or markers(folder) != before:  # a removal takes the markers first: files may have been missing
            raise FileNotFoundError(f"checkpoint {part.checkpoint} was removed while it was uploaded")
        stored = CheckpointPart(
            step=part.step,
            generation=part.generation,
            node_rank=part.node_rank,
            samples=before[0].samples,
            files=files,
            metrics=before[0].metrics,
        )
        with contextlib.suppress(AlreadyExistsError):  # the response to an earlier attempt was lost
            self._store.create(prefix + File.PART, stored.to_json().encode())

    def commit(self, checkpoint: CheckpointId, plan: Plan) -> Manifest:
        """Write the manifest of a checkpoint whose parts are all uploaded.

        Raises:
            CorruptedError: a part is missing, is of another generation, or differs from its PART.json.
            StorageError: the store refused.
        """
        prefix = self._prefix(checkpoint)
        parts = [self._part(checkpoint, rank) for rank in range(plan.layout.nodes)]
        files = self._verified(checkpoint, parts)
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
        """Return whether a checkpoint whose parts are all uploaded would be the best of the committed ones.

        Raises:
            StorageError: the store refused.
        """
        try:
            metrics = self._part(checkpoint, 0).metrics
        except CorruptedError:
            return False
        return would_be_best(checkpoint, metrics, self.find().committed, plan)

    def find(self) -> StoredCheckpoints:
        """Return the checkpoints in storage.

        Raises:
            StorageError: the store refused.
        """
        return find_checkpoints(self._store, self._run)

    def fetch(self, part: PartId, folder: Path) -> None:
        """Download one part of a committed checkpoint to `folder` and verify it; markers come last.

        Raises:
            NotFoundError, ManifestInvalidError, CorruptedError: the part is missing, or differs from its manifest.
            StorageError: the store refused, which says nothing about the checkpoint.
        """
        sources = self._sources(part)
        for is_marker in (False, True):
            for prefix, entries in sources.items():
                chosen = [entry for entry in entries if entry.path.endswith(SUFFIX) is is_marker]
                download_files(self._store, prefix, chosen, folder)

    def fault(self, part: PartId) -> str:
        """Return why a part of a committed checkpoint cannot be used, in a sentence; empty if it can be used. Every
        byte of the part is read.

        Raises:
            StorageError: the store refused, which says nothing about the checkpoint.
        """
        try:
            for prefix, entries in self._sources(part).items():
                verify_files(self._store, prefix, entries)
        except OBJECT_ERRORS as error:
            if bucket_is_missing(error):
                raise
            return error.problems[0].message
        return ""

    def delete(self, prefixes: Iterable[str]) -> None:
        """Remove checkpoints, the manifest first: a checkpoint that is partly deleted is not committed."""
        for prefix in prefixes:
            self._store.delete([prefix + File.MANIFEST])
            self._store.delete([entry.key for entry in self._store.list(prefix)])

    def clean(self, seconds: float) -> None:
        """Remove unfinished uploads of this run that began more than `seconds` ago."""
        self._store.clean(self._root, seconds)

    def _verified(self, checkpoint: CheckpointId, parts: Iterable[CheckpointPart]) -> tuple[FileEntry, ...]:
        """Return the files of all parts, by path below the checkpoint; their sizes are those that storage lists."""
        prefix = self._prefix(checkpoint)
        stored = {entry.key.removeprefix(prefix): entry.size for entry in self._store.list(prefix)}
        for part in parts:
            if (part.step, part.generation) != (checkpoint.step, checkpoint.generation):
                raise _invalid(checkpoint, f"node {part.node_rank} stored step {part.step} of {part.generation} there")
        files = tuple(
            FileEntry(path=f"{part_prefix(part.node_rank)}{entry.path}", size=entry.size, sha256=entry.sha256)
            for part in parts
            for entry in part.files
        )
        for entry in files:
            if stored.get(entry.path) != entry.size:
                raise _invalid(checkpoint, f"{entry.path} has {stored.get(entry.path)} bytes instead of {entry.size}")
        return files

    def _sources(self, part: PartId) -> dict[str, list[FileEntry]]:
        """Return the files of one node rank in a committed checkpoint, by the key prefix below which they lie."""
        committed = self._committed(part.checkpoint)
        own = _below(committed.manifest.files, part_prefix(part.node_rank))
        if not own:
            raise _invalid(part.checkpoint, f"its manifest has no files of node rank {part.node_rank}")
        sources = {f"{committed.prefix}{part_prefix(part.node_rank)}": own}
        if part.node_rank != 0:
            names = {entry.path for entry in own}  # older versions stored a copy for each node
            first = _below(committed.manifest.files, FIRST)
            sources[committed.prefix + FIRST] = [
                entry for entry in first if is_replicated(entry.path) and entry.path not in names
            ]
        return sources

    def _committed(self, checkpoint: CheckpointId) -> Committed:
        """Return a committed checkpoint. An older version named its folder by the step alone."""
        for prefix in (self._prefix(checkpoint), f"{self._root}{checkpoint_name(checkpoint.step)}/"):
            manifest = read_manifest(self._store, prefix)
            if manifest is None:
                continue
            try:
                info = CheckpointInfo.model_validate(manifest.info)
            except ValidationError as error:
                raise _invalid(checkpoint, f"its manifest cannot be read: {_first_line(error)}") from error
            if (info.step, info.generation) == (checkpoint.step, checkpoint.generation):
                return Committed(prefix, manifest, info)
        raise _invalid(checkpoint, "it has no manifest")

    def _part(self, checkpoint: CheckpointId, node_rank: int) -> CheckpointPart:
        key = f"{self._prefix(checkpoint)}{part_prefix(node_rank)}{File.PART}"
        try:
            return CheckpointPart.model_validate_json(self._store.get(key))
        except NotFoundError as error:
            if bucket_is_missing(error):
                raise
            raise _invalid(checkpoint, f"there is no {key}") from error
        except ValidationError as error:
            raise _invalid(checkpoint, f"{key} cannot be read: {_first_line(error)}") from error

    def _prefix(self, checkpoint: CheckpointId) -> str:
        return f"{self._root}{folder_name(checkpoint)}/"


def is_replicated(name: str) -> bool:
    """Return whether a file of a part is the same on every node.

    With node-local storage, DeepSpeed (0.19) lets data-parallel rank 0 of each node write the model's states, which a
    shared file system would hold once. ZeRO-3's shards of them are named `zero_pp_rank_...` and differ.
    """
    return re.fullmatch(r"mp_rank_\d+_model_states\.pt", name.rpartition("/")[2], re.ASCII) is not None


def _below(files: Iterable[FileEntry], folder: str) -> list[FileEntry]:
    return [
        entry.model_copy(update={"path": entry.path.removeprefix(folder)})
        for entry in files
        if entry.path.startswith(folder)
    ]


def _first_line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200]


def _invalid(checkpoint: CheckpointId, why: str) -> CorruptedError:
    return CorruptedError(
        Problem(
            code="CheckpointInvalid",
            field="spec.storage.uri",
            message=f"checkpoint {checkpoint} cannot be used: {why}",
            cure="none needed: the run continues from an older one; find out who writes below this prefix",
        )
    )

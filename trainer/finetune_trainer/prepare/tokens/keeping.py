"""Where full shards go, and from what an interrupted prepare stage continues.

A stage that stores nothing throws its shards away; one that does puts each into the run's own part of storage, with all
that a later attempt of the same run needs to continue after it. The last of those files is the state: what it names is
there.
"""

import hashlib
import io
import pickle
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from finetune_api.messages import FileEntry, Message, SplitFacts
from finetune_trainer.dataset.shards import Shard
from finetune_trainer.prepare import values
from finetune_trainer.prepare.data.portions import Split
from finetune_trainer.prepare.data.tally import Tally
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.tokens.split_writer import Written
from finetune_trainer.prepare.tokens.token_rows import TokenRows
from finetune_trainer.storage import NotFoundError, ObjectStore

STATE = "state.json"
COPIES = 8  # files at a time


@dataclass
class TokenizeProgress:
    """What is done of a data set, at the end of a portion.

    Attributes:
        portions: how many of them.
        written: of each split, its finished shards.
        pending: of each split, the rows that are in none of them.
        observed: of each split.
        tallies: of each source: faults found by the tokenizer are in them.
        top: the largest id.
    """

    portions: int
    written: Mapping[Split, Written]
    pending: Mapping[Split, list[TokenRows]]
    observed: Mapping[Split, Observation]
    tallies: list[Tally]
    top: int


class ShardKeeper(Protocol):
    """Where shards go."""

    def depends_on(self, key: str) -> None:
        """Name all that the work depends on beside the code: sources, tokenizer and options; before anything else."""

    def begun(self) -> TokenizeProgress | None:
        """Return what an earlier attempt has done; None = nothing."""

    def added(self, split: Split, rows: TokenRows) -> None:
        """Take rows that are in no finished shard yet."""

    def finished(self, split: Split, files: tuple[Path, Path]) -> None:
        """Take a closed shard and its index, with all rows added so far. The files may be removed."""

    def keep(self, progress: TokenizeProgress) -> None:
        """Keep what is done after portions that finished shards; the keeper itself knows `progress.pending`."""


class LocalShards:
    """A keeper that leaves the shards where they are written."""

    def depends_on(self, key: str) -> None:
        """Do nothing: no later call continues."""

    def begun(self) -> TokenizeProgress | None:
        """Return None: nothing is kept."""
        return None

    def added(self, split: Split, rows: TokenRows) -> None:
        """Do nothing: the rows are in the files."""

    def finished(self, split: Split, files: tuple[Path, Path]) -> None:
        """Leave the files."""

    def keep(self, progress: TokenizeProgress) -> None:
        """Do nothing: no later call continues."""


class DiscardedShards(LocalShards):
    """A keeper that throws shards away, for `plan` and `validate`: a disk then holds one at a time."""

    def finished(self, split: Split, files: tuple[Path, Path]) -> None:
        """Remove the files."""
        for path in files:
            path.unlink()


# ---------------------------------------------------------------- in storage


class _SplitState(Message):
    """One split: its shards, and the pieces of what is in none of them.

    Attributes:
        rows: names of pieces with token rows that follow the finished shards.
        observed: names of pieces with what was observed of each row, of all rows so far.
    """

    shards: tuple[Shard, ...]
    facts: SplitFacts
    rows: tuple[str, ...]
    observed: tuple[str, ...]


class _State(Message):
    """`state.json`.

    Attributes:
        key: of all that the work depends on, the code included.
        files: shards and indexes in storage.
        counted: name of the piece with what was counted: `Observation` of each split, without rows, and the tallies.
    """

    key: str
    portions: int
    top: int
    splits: dict[Split, _SplitState]
    files: tuple[FileEntry, ...]
    counted: str


@dataclass
class StoredShards:
    """A keeper that puts shards into storage, below a prefix of the run.

    Args:
        prefix: with the trailing slash.
        folder: for files that are fetched.

    Attributes:
        files: the shards and indexes that are there, by their names below the prefix.
    """

    store: ObjectStore
    prefix: str
    folder: Path
    files: tuple[FileEntry, ...] = ()
    _key: str = ""
    _pending: dict[Split, list[TokenRows]] = field(default_factory=lambda: {split: [] for split in Split})
    _rows: dict[Split, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(Split, ()))
    _observed: dict[Split, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(Split, ()))
    _seen: dict[Split, dict[str, int]] = field(default_factory=lambda: {split: {} for split in Split})
    _uploads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))  # in order: the state last
    _running: "list[Future[None]]" = field(default_factory=list)
    _earlier: "list[Future[None]]" = field(default_factory=list)

    def depends_on(self, key: str) -> None:
        """Set the key: work with another key, or by other code, is not continued."""
        self._key = hashlib.sha256(f"{key} {values.code_hash()}".encode()).hexdigest()

    def begun(self) -> TokenizeProgress | None:
        """Return what an earlier attempt of this run has done with the same data and code.

        Raises:
            StorageError: the store refuses or is unreachable.
        """
        try:
            state = _State.model_validate_json(self.store.get(self.prefix + STATE))
            if state.key != self._key:
                return None
            counted = values.loads(self.store.get(self.prefix + state.counted))
            observed = {split: seen.without_rows(str(self.folder)) for split, seen in counted["observed"].items()}
            for split, own in state.splits.items():
                for name in own.observed:
                    observed[split].take_rows(self._arrays(name))
            pending = {
                split: [TokenRows(**self._arrays(name)) for name in own.rows] for split, own in state.splits.items()
            }
        except (NotFoundError, ValidationError, pickle.UnpicklingError):  # nothing, or of another version
            return None
        self.files = state.files
        for split, own in state.splits.items():
            self._observed[split] = own.observed
            self._seen[split] = observed[split].lengths()
        return TokenizeProgress(
            portions=state.portions,
            written={split: Written(own.shards, own.facts) for split, own in state.splits.items()},
            pending=pending,
            observed=observed,
            tallies=counted["tallies"],
            top=state.top,
        )

    def added(self, split: Split, rows: TokenRows) -> None:
        """Hold rows until they are in a finished shard or kept."""
        self._pending[split].append(rows)

    def finished(self, split: Split, files: tuple[Path, Path]) -> None:
        """Upload a shard and its index, then remove them here."""
        self._pending[split], self._rows[split] = [], ()
        self._running.append(self._uploads.submit(self._upload, files))

    def keep(self, progress: TokenizeProgress) -> None:
        """Store what a later attempt continues from, after the finished shards; the uploads of the keep before
        are waited for, so that no more than two wait for a slow store."""
        _wait(self._earlier)
        pieces: dict[str, bytes] = {}
        for split, observed in progress.observed.items():
            if self._pending[split]:
                rows = TokenRows.joined(self._pending[split])
                name = f"{split}-rows-{progress.portions}.npz"
                pieces[name] = _packed({part: getattr(rows, part) for part in TokenRows.__dataclass_fields__})
                self._rows[split] += (name,)
                self._pending[split] = []
            seen = observed.rows_since(self._seen[split])
            if len(seen["rows"]):
                name = f"{split}-observed-{progress.portions}.npz"
                pieces[name] = _packed(seen)
                self._observed[split] += (name,)
                self._seen[split] = observed.lengths()
        counted = f"counted-{progress.portions}.pickle"
        small = {split: observed.without_rows() for split, observed in progress.observed.items()}
        pieces[counted] = values.dumps({"observed": small, "tallies": progress.tallies})
        splits = {
            split: _SplitState(
                shards=written.shards, facts=written.facts, rows=self._rows[split], observed=self._observed[split]
            )
            for split, written in progress.written.items()
        }
        state = _State(
            key=self._key,
            portions=progress.portions,
            top=progress.top,
            splits=splits,
            files=self.files,
            counted=counted,
        )
        self._earlier = [*self._running, self._uploads.submit(self._put, pieces, state)]
        self._running = []

    def publish(self, prefix: str) -> tuple[FileEntry, ...]:
        """Copy the shards to where the data set lies, within storage; returns them with their names there."""
        _wait([*self._earlier, *self._running])
        with ThreadPoolExecutor(COPIES) as pool:
            for _ in pool.map(lambda entry: self.store.copy(self.prefix + entry.path, prefix + entry.path), self.files):
                pass
        return self.files

    def clear(self) -> None:
        """Remove all that was kept: it is published, or of no use."""
        _wait([*self._earlier, *self._running])
        self.store.delete([self.prefix + STATE])
        self.store.delete([info.key for info in self.store.list(self.prefix)])

    def _upload(self, files: Iterable[Path]) -> None:
        for path in files:
            entry = self.store.put_file(self.prefix + path.name, path)
            self.files = (*self.files, entry.model_copy(update={"path": path.name}))
            path.unlink()

    def _put(self, pieces: Mapping[str, bytes], state: _State) -> None:
        for name, data in pieces.items():
            self.store.put(self.prefix + name, data)
        self.store.put(self.prefix + STATE, state.model_copy(update={"files": self.files}).to_json().encode())

    def _arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        with np.load(io.BytesIO(self.store.get(self.prefix + name)), allow_pickle=False) as arrays:
            return dict(arrays)


def _wait(uploads: "Iterable[Future[None]]") -> None:
    """Wait for uploads; raise the error of one of them."""
    for upload in uploads:
        upload.result()


def _packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    target = io.BytesIO()
    np.savez(target, **cast("Any", arrays))
    return target.getvalue()

"""`finetune run --output DIR`: a copy of each artifact in a folder of the user: DIR/adapter, DIR/merged or DIR/model.

No file in DIR is ever overwritten. An existing folder of that name is accepted only if it holds this very artifact (the
same MANIFEST.json).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import Problem, SpecError
from finetune_trainer.run.local_run import LocalJob
from finetune_trainer.run.output_paths import probe_folder, unwritable
from finetune_trainer.storage import ObjectStore, download_tree, read_manifest

OPTION = "--output"


@dataclass(frozen=True)
class Output:
    """The destination of one of a job's artifacts.

    Attributes:
        target: the folder that will hold its files.
        name: of that folder, and of the artifact's folder in storage.
    """

    target: Path
    name: str
    local: LocalJob

    @classmethod
    def of_job(cls, folder: Path, local: LocalJob) -> "list[Output]":
        """Return the destination of every form in a folder that an option names; create the folder if it is missing.

        Raises:
            SpecError: the folder cannot be written.
        """
        probe_folder(folder, OPTION)
        names = local.job.spec.export.folders(local.job.spec.method.type)
        return [cls(folder.absolute() / name, name, local) for name in names]

    def check(self, uid: str) -> None:
        """Raise SpecError if the destination holds something else; called before training."""
        if self._is_free() or self._holds(uid):
            return
        raise SpecError(
            Problem(
                code="OutputExists",
                field=OPTION,
                message=f"{self.target} exists already and does not hold the {self.name} of this run ({uid})",
                cure="name another folder, or move that one: existing files are never overwritten",
            )
        )

    def deliver(self, uid: str) -> Path:
        """Copy the artifact, whole or not at all, and return its folder.

        Raises:
            SpecError: the destination holds something else by now, or it cannot be written.
            StorageError: the artifact cannot be read.
        """
        self.check(uid)
        if self._holds(uid):
            return self.target
        partial = self.target.with_name(f".{self.name}.partial")
        prefix = self._prefix(uid)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            manifest = download_tree(self._store, prefix, partial)
            (partial / File.MANIFEST).write_text(manifest.to_json(), "utf-8")
            partial.rename(self.target)  # also replaces an empty folder
        except OSError as error:
            raise unwritable(OPTION, self.target, error) from None
        return self.target

    @property
    def _store(self) -> ObjectStore:
        return self.local.store

    def _prefix(self, uid: str) -> str:
        return f"{self.local.run_prefix(uid)}artifacts/{self.name}/"

    def _is_free(self) -> bool:
        return not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir()))

    def _holds(self, uid: str) -> bool:
        """Return whether the folder holds the run's artifact already."""
        manifest = read_manifest(self._store, self._prefix(uid))
        existing = self.target / File.MANIFEST
        return manifest is not None and existing.is_file() and existing.read_text("utf-8") == manifest.to_json()

"""`finetune run --output DIR`: the artifact in a folder of the user's, DIR/adapter or DIR/model.

Nothing in DIR is ever overwritten. A folder of that name that is there already is used again only if it holds this very
artifact (the same MANIFEST.json).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import Problem, SpecError
from finetune_api.messages import Artifact, MethodType
from finetune_trainer.commands.output_paths import probe_folder, unwritable
from finetune_trainer.run.local import LocalJob
from finetune_trainer.storage import ObjectStore, download_tree, read_manifest

OPTION = "--output"


@dataclass(frozen=True)
class Output:
    """Where the artifact of a job goes.

    Attributes:
        target: the folder that will hold its files.
    """

    target: Path
    kind: str
    local: LocalJob

    @classmethod
    def of(cls, folder: Path, local: LocalJob) -> "Output":
        """The place in a folder that an option names, which is made if it is not there.

        Raises:
            SpecError: it cannot be written.
        """
        probe_folder(folder, OPTION)
        kind = "model" if local.job.spec.method.type is MethodType.FULL else "adapter"
        return cls(folder.absolute() / kind, kind, local)

    def check(self, uid: str) -> None:
        """Raise SpecError if something else is there; called before anything is trained."""
        if self._is_free() or self._holds(uid):
            return
        raise SpecError(
            Problem(
                code="OutputExists",
                field=OPTION,
                message=f"{self.target} is there already and does not hold the {self.kind} of this run ({uid})",
                cure="name another folder, or move that one away: nothing is overwritten",
            )
        )

    def deliver(self, uid: str, artifact: Artifact) -> Path:
        """Put the artifact there, whole or not at all, and return its folder.

        Raises:
            SpecError: something else was put there meanwhile, or it cannot be written.
            StorageError: the artifact cannot be read.
        """
        self.check(uid)
        if self._holds(uid):
            return self.target
        partial = self.target.with_name(f".{self.kind}.partial")
        prefix = self._prefix(uid)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            manifest = download_tree(self._store, prefix, partial)
            (partial / File.MANIFEST).write_text(manifest.to_json(), "utf-8")
            partial.rename(self.target)  # takes the place of an empty folder too
        except OSError as error:
            raise unwritable(OPTION, self.target, error) from None
        return self.target

    @property
    def _store(self) -> ObjectStore:
        return self.local.store

    def _prefix(self, uid: str) -> str:
        return f"{self.local.run_prefix(uid)}artifacts/{self.kind}/"

    def _is_free(self) -> bool:
        return not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir()))

    def _holds(self, uid: str) -> bool:
        """Whether the folder holds the run's artifact already."""
        manifest = read_manifest(self._store, self._prefix(uid))
        there = self.target / File.MANIFEST
        return manifest is not None and there.is_file() and there.read_text("utf-8") == manifest.to_json()

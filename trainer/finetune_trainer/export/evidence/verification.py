"""What `finetune verify` checks: every file by its hash, the lineage against the files, and the signature."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import File
from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import FileEntry, Manifest
from finetune_trainer.export.evidence.evidence_paths import EVIDENCE, LINEAGE, SIGNATURE
from finetune_trainer.export.evidence.lineage import PREDICATE, STATEMENT
from finetune_trainer.export.evidence.signature import check_signature
from finetune_trainer.storage import hash_file
from finetune_trainer.storage.base import checked_key

MOST_PROBLEMS = 20
CURE = "do not use the artifact; copy it again from the storage of its run, or export it again"


@dataclass(frozen=True)
class Verified:
    """What was checked of an artifact.

    Attributes:
        materials: number of inputs that the lineage names.
        signed: whether the artifact has a signature.
        key: id of the key whose signature was checked; empty if no public key was given.
    """

    files: int
    size_bytes: int
    materials: int
    signed: bool
    key: str


def verify_artifact(folder: Path, public_key: Path | None = None) -> Verified:
    """Check an artifact on this machine.

    Args:
        public_key: of whoever should have signed it; None = the signature is not checked.

    Raises:
        SpecError: the folder holds no artifact, or the key cannot be read.
        DataError: a file, the lineage or the signature is not what it should be; each problem names its file.
    """
    manifest = _manifest(folder)
    if problems := _file_problems(folder, manifest.files):
        raise DataError(problems[:MOST_PROBLEMS])
    entries = {one.path: one for one in manifest.files}
    materials = _check_lineage(folder, entries)
    key = check_signature(folder, public_key) if public_key else ""
    size = sum(one.size for one in manifest.files)
    return Verified(len(entries), size, materials, (folder / SIGNATURE).is_file(), key)


def _manifest(folder: Path) -> Manifest:
    path = folder / File.MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
        for entry in manifest.files:
            checked_key(entry.path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{folder} is not an artifact: {File.MANIFEST} cannot be read: {reason}"
        cure = "name the folder of an artifact, such as the one that `finetune run` shows at its end"
        raise SpecError(Problem(code="NotAnArtifact", field="artifact", message=message, cure=cure)) from None
    if manifest.kind != "artifact":
        message = f"{path} lists the files of a {manifest.kind}"
        raise SpecError(Problem(code="NotAnArtifact", field="artifact", message=message, cure="name an artifact"))
    return manifest


def _file_problems(folder: Path, entries: Sequence[FileEntry]) -> list[Problem]:
    """Return a problem for each file that is missing, has other bytes, or is in no list."""
    problems, known = [], {File.MANIFEST.value}
    root = folder.resolve()
    for entry in entries:
        known.add(entry.path)
        path = folder / entry.path
        if not _is_file_in(root, path):
            problems.append(_differs(entry.path, "the file is missing"))
            continue
        seen = hash_file(path)
        if (seen.size, seen.sha256) != (entry.size, entry.sha256):
            said = f"{entry.size:,} bytes with sha256 {entry.sha256}"
            found = f"{seen.size:,} bytes with sha256 {seen.sha256}"
            problems.append(_differs(entry.path, f"{File.MANIFEST} says {said}, but the file has {found}"))
    others = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    names = (path.relative_to(folder).as_posix() for path in others)
    problems += [_differs(name, f"{File.MANIFEST} does not list the file") for name in names if name not in known]
    return problems


def _is_file_in(root: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root) and path.is_file()
    except OSError:  # no file system has a name of this length
        return False


def _check_lineage(folder: Path, entries: Mapping[str, FileEntry]) -> int:
    """Compare the lineage with the files, and return the number of materials that it names."""
    if LINEAGE not in entries:
        raise DataError(_differs(LINEAGE, "the artifact has no lineage"))
    try:
        lineage: dict[str, Any] = json.loads((folder / LINEAGE).read_text("utf-8"))
        named = {str(one["name"]): str(one["digest"]["sha256"]) for one in lineage["subject"]}
        materials = len(lineage["predicate"]["buildDefinition"]["resolvedDependencies"])
        kinds = (lineage["_type"], lineage["predicateType"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(_differs(LINEAGE, f"the lineage cannot be read: {error}")) from None
    if kinds != (STATEMENT, PREDICATE):
        raise DataError(_differs(LINEAGE, f"the lineage is of another kind: {kinds[0]}, {kinds[1]}"))
    files = {path: one.sha256 for path, one in entries.items() if not path.startswith(EVIDENCE)}
    if wrong := sorted(path for path in files.keys() | named.keys() if files.get(path) != named.get(path)):
        raise DataError([_differs(path, "the lineage names another file or another hash") for path in wrong])
    return materials


def _differs(path: str, message: str) -> Problem:
    return Problem(code="ArtifactDiffers", field=path, message=message, cure=CURE)

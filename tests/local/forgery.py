"""What a forger does to an artifact whose files were changed: every list of hashes is made to fit."""

import hashlib
import json
from pathlib import Path

from finetune_api.contract import File
from finetune_trainer.export.evidence.evidence_paths import LINEAGE


def rewrite_manifest(folder: Path) -> None:
    """The list of files gets the hashes of the changed files."""
    manifest = json.loads((folder / File.MANIFEST).read_text())
    for one in manifest["files"]:
        raw = (folder / one["path"]).read_bytes()
        one["size"], one["sha256"] = len(raw), hashlib.sha256(raw).hexdigest()
    (folder / File.MANIFEST).write_text(json.dumps(manifest))


def rewrite_lineage(folder: Path) -> None:
    lineage = json.loads((folder / LINEAGE).read_text())
    for one in lineage["subject"]:
        one["digest"]["sha256"] = hashlib.sha256((folder / one["name"]).read_bytes()).hexdigest()
    (folder / LINEAGE).write_text(json.dumps(lineage))


def forge(folder: Path) -> None:
    """Both; only a signature, or the same training, tells."""
    rewrite_lineage(folder)
    rewrite_manifest(folder)

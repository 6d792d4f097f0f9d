"""Whether an artifact in storage is what a job asks for, so that it need not be made again, or has its weights."""

import hashlib
import json

from pydantic import ValidationError

from finetune_api.beats import CheckpointId
from finetune_api.messages import Manifest
from finetune_trainer.checkpoints.own_code import code_digest
from finetune_trainer.export.card import installed_versions
from finetune_trainer.export.evidence.evidence_paths import LINEAGE
from finetune_trainer.export.evidence.signature import key_id
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.serving.circumstances import circumstances_of
from finetune_trainer.serving.serve_records import TRIED_WITH
from finetune_trainer.storage import ManifestInvalidError, ObjectStore, read_manifest

MADE_WITH = "made_with"  # in the manifest of an artifact: a digest of the software that made its weights


def fitting_artifact(
    store: ObjectStore, run: str, form: FormFiles, request: ExportRequest, measured: str
) -> Manifest | None:
    """Return the manifest of a stored artifact that has the settings, the measures, the evidence and the signature of a
    request; None if there is no such artifact, or if its test on a server failed and the server is another one now.

    Args:
        run: key prefix of the run, with the trailing slash.
        measured: digest of the judgement and the suites that there are now.

    Raises:
        SpecError: the key of the request cannot be used.
        StorageError: the store refused.
    """
    signer = key_id(request.signing_key) if request.signing_key else ""
    manifest = _manifest(store, form.prefix(run))
    if manifest is None or not request.fits(form.form, manifest, measured):
        return None
    if all(entry.path != LINEAGE for entry in manifest.files):  # versions up to 0.1.0 made artifacts without evidence
        return None
    tried_with = manifest.info.get(TRIED_WITH)
    if tried_with and tried_with != circumstances_of(form.server, request.served_with):
        return None  # its test gave no verdict, and may give one now
    return manifest if not signer or manifest.info.get("signed_by") == signer else None


def is_made(
    store: ObjectStore, run: str, form: FormFiles, request: ExportRequest, measured: str, checkpoint: CheckpointId
) -> bool:
    """Return whether a fitting artifact, see `fitting_artifact`, was made from a checkpoint."""
    manifest = fitting_artifact(store, run, form, request, measured)
    return manifest is not None and _is_of(manifest, checkpoint)


def _is_of(manifest: Manifest, checkpoint: CheckpointId) -> bool:
    try:
        return CheckpointId.model_validate(manifest.info) == checkpoint
    except ValidationError:
        return False


def stored_weights(
    store: ObjectStore, run: str, form: FormFiles, request: ExportRequest, checkpoint: CheckpointId
) -> Manifest | None:
    """Return the manifest of an artifact in storage whose weights are those that this export would make: of the same
    checkpoint, with the same settings and the same software. None if there is none.

    Raises:
        StorageError: the store refused.
    """
    asked = {"form": form.form, **request.of_weights(form.form), MADE_WITH: made_with()}
    for prefix in (form.prefix(run), form.aside(run)):
        found = _manifest(store, prefix)
        if found and _is_of(found, checkpoint) and {name: found.info.get(name) for name in asked} == asked:
            return found
    return None


def made_with() -> str:
    """Return a digest of the software that makes artifacts."""
    return hashlib.sha256(json.dumps([installed_versions(), code_digest()]).encode()).hexdigest()[:16]


def _manifest(store: ObjectStore, prefix: str) -> Manifest | None:
    try:
        return read_manifest(store, prefix)
    except ManifestInvalidError:
        return None

"""Whether an artifact in storage is what a job asks for, so that it need not be made again."""

from finetune_api.messages import Manifest
from finetune_trainer.export.evidence.evidence_paths import LINEAGE
from finetune_trainer.export.evidence.signature import key_id
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.serving.circumstances import circumstances_of
from finetune_trainer.serving.serve_records import TRIED_WITH
from finetune_trainer.storage import ManifestInvalidError, ObjectStore, read_manifest


def fitting_artifact(store: ObjectStore, run: str, form: FormFiles, request: ExportRequest) -> Manifest | None:
    """Return the manifest of a stored artifact that has the settings, the evidence and the signature of a request; None
    if there is no such artifact, or if its test on a server failed and the server is another one now.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        SpecError: the key of the request cannot be used.
        StorageError: the store refused.
    """
    signer = key_id(request.signing_key) if request.signing_key else ""
    try:
        manifest = read_manifest(store, form.prefix(run))
    except ManifestInvalidError:
        return None
    if manifest is None or not request.fits(form.form, manifest):
        return None
    if all(entry.path != LINEAGE for entry in manifest.files):  # versions up to 0.1.0 made artifacts without evidence
        return None
    tried_with = manifest.info.get(TRIED_WITH)
    if tried_with and tried_with != circumstances_of(form.server, request.served_with):
        return None  # its test gave no verdict, and may give one now
    return manifest if not signer or manifest.info.get("signed_by") == signer else None

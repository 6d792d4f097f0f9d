"""The inputs of a training: each is compared with its digest in the lineage, and copied for the new training."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from finetune_api.contract import File
from finetune_api.errors import DataError, Problem
from finetune_api.messages import Manifest
from finetune_api.plan import Plan
from finetune_trainer.export.evidence.lineage import files_digest
from finetune_trainer.pages.short_texts import sized
from finetune_trainer.reproduction.recorded_run import RecordedInput, RecordedRun
from finetune_trainer.storage import (
    CorruptedError,
    FolderStore,
    ManifestInvalidError,
    NotFoundError,
    ObjectStore,
    bucket_is_missing,
    download_tree,
)


def bring_inputs(
    recorded: RecordedRun, plan: Plan, store: ObjectStore, own: FolderStore, report: Callable[[str], None]
) -> None:
    """Copy every input to the storage of the new training, and check each file. What was copied before is kept.

    Args:
        store: where the inputs are.
        own: storage of the new training.
        report: called with a line for each input.

    Raises:
        DataError: an input is missing or differs from the lineage; all of them are named.
        StorageError: the store refused.
    """
    problems: list[Problem] = []
    for name, prefix in recorded.prefixes(plan).items():
        try:
            manifest = _bring(recorded.inputs.get(name, RecordedInput()), name, prefix, store, own)
        except DataError as error:
            problems += error.problems
        except (CorruptedError, NotFoundError, ManifestInvalidError) as error:
            if bucket_is_missing(error):
                raise
            problems += [_differs(name, one.message) for one in error.problems]
        else:
            size = sized(sum(one.size for one in manifest.files))
            count = f"{len(manifest.files):,} file{'' if len(manifest.files) == 1 else 's'}"
            report(f"{name}: {count}, {size}, as the lineage says")
    if problems:
        raise DataError(problems)


def _bring(known: RecordedInput, name: str, prefix: str, store: ObjectStore, own: FolderStore) -> Manifest:
    """Copy one input, and return the list of its files.

    Raises:
        DataError: the list is not that of the lineage.
        StorageError: a file is missing or differs from the list.
    """
    key = prefix + File.MANIFEST
    raw = store.get(key)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise DataError(
            _differs(name, f"{key} below {store.uri} cannot be read: {str(error).splitlines()[0]}")
        ) from None
    found = hashlib.sha256(raw).hexdigest()
    if found != known.digest and (not known.files or files_digest(manifest.files) != known.files):
        message = f"{key} below {store.uri} has sha256 {found}, and the lineage says {known.digest or 'nothing'}"
        raise DataError(_differs(name, message))
    folder = Path(own.path(prefix.rstrip("/")))
    download_tree(store, prefix, folder)
    own.put(key, raw)
    return manifest


def _differs(name: str, message: str) -> Problem:
    cure = (
        "restore it from a copy; a dry run of the same job (spec.dryRun: true) stores a model or a data set again "
        "that was removed"
    )
    return Problem(code="InputChanged", field=name, message=message, cure=cure)

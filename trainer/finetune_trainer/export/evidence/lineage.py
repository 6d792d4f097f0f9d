"""lineage.json: an in-toto statement with a SLSA provenance predicate. It names the inputs of an artifact by digest.

Statement v1: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
Predicate v1: https://slsa.dev/spec/v1.0/provenance
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from finetune_api.beats import CheckpointId
from finetune_api.contract import File, dataset_prefix
from finetune_api.messages import FileEntry, Manifest
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import Committed
from finetune_trainer.checkpoints.own_code import code_digest
from finetune_trainer.export.run_report.shown_values import shown_text
from finetune_trainer.storage import NotFoundError, ObjectStore

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://finetune.dev/export/v1"
BASE_MODEL, DATA_SET, START_ADAPTER = "base model", "prepared data set", "adapter at the start"
OWN_CODE = "finetune-operator"
INTERNAL_MACHINE = "trainedOn"  # internal parameter: the machine of rank 0
FILES = "filesSha256"  # annotation of a material: `files_digest` of its list of files


@dataclass(frozen=True)
class Material:
    """One input of an artifact.

    Attributes:
        digest: algorithm -> value in hex; empty if it is unknown.
        notes: what helps a reader, such as the commit of a model.
    """

    name: str
    uri: str = ""
    digest: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def descriptor(self) -> dict[str, Any]:
        """Return in-toto's resource descriptor, without what is empty."""
        values = {"name": self.name, "uri": self.uri, "digest": dict(self.digest), "annotations": dict(self.notes)}
        return {name: value for name, value in values.items() if value}


def materials_of(
    store: ObjectStore,
    run: str,
    plan: Plan,
    spec: Mapping[str, Any],
    checkpoints: Mapping[CheckpointId, Committed],
    exported: CheckpointId,
) -> list[Material]:
    """Return every input of a run that is known: model, data, spec, plan, code, image, and checkpoints in storage.

    Args:
        run: key prefix of the run, with the trailing slash.
        checkpoints: those in storage.
        exported: the checkpoint that the artifact is made from.

    Raises:
        StorageError: the store refused.
    """
    model, data = plan.model, dataset_prefix(plan.dataset.sha256)
    mirrored = {"commit": model.commit, "source": shown_text(model.source), "digestOf": File.MANIFEST.value}
    prepared = {"sha256": plan.dataset.sha256, "rows": plan.dataset.train.rows}
    found = [
        _committed(store, BASE_MODEL, model.prefix, mirrored),
        _committed(store, DATA_SET, data, prepared),
    ]
    if plan.adapter:
        notes = {"commit": plan.adapter.commit, "source": shown_text(plan.adapter.source)}
        found.append(_committed(store, START_ADAPTER, plan.adapter.prefix, notes))
    found += [Material(name, *_object(store, run + name)) for name in (File.SPEC.value, File.PLAN.value)]
    found.append(Material(OWN_CODE, "pkg:pypi/finetune-operator", {"sha256": code_digest()}))
    if image := spec.get("image"):
        _, _, pinned = str(image).partition("@sha256:")
        found.append(Material("image of the trainer", str(image), {"sha256": pinned} if pinned else {}))
    for one, there in checkpoints.items():
        notes_of: dict[str, object] = {"step": one.step, "generation": one.generation}
        if one == exported:
            notes_of["exported"] = True
        found.append(_committed(store, f"checkpoint of step {one.step}", there.prefix, notes_of))
    return found


def statement(
    subject: Iterable[FileEntry],
    materials: Sequence[Material],
    *,
    spec: Mapping[str, Any],
    internal: Mapping[str, Any],
    invocation: str,
    versions: Mapping[str, str],
    finished: str,
) -> dict[str, Any]:
    """Return the statement about an artifact.

    Args:
        subject: its files.
        spec: what the user asked.
        internal: values that the product chose.
        invocation: place of the run.
        versions: of the software that made it.
        finished: ISO 8601.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": one.path, "digest": {"sha256": one.sha256}} for one in subject],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"spec": dict(spec)},
                "internalParameters": dict(internal),
                "resolvedDependencies": [one.descriptor for one in materials],
            },
            "runDetails": {
                "builder": {"id": "https://finetune.dev/export", "version": dict(versions)},
                "metadata": {"invocationId": invocation, "finishedOn": finished},
            },
        },
    }


def files_digest(entries: Iterable[FileEntry]) -> str:
    """Return the sha256 over names and hashes of some files: the same for equal files, whenever they were stored."""
    lines = sorted(f"{one.sha256}  {one.path}\n" for one in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _committed(store: ObjectStore, name: str, prefix: str, notes: Mapping[str, object]) -> Material:
    """Return a committed prefix as a material. Its digest is that of its list of files, which has a digest of each."""
    key = prefix + File.MANIFEST
    place = f"{store.uri}/{prefix}"
    try:
        raw = store.get(key)
    except NotFoundError:
        return Material(name, place, {}, notes)
    with contextlib.suppress(ValidationError):
        notes = {**notes, FILES: files_digest(Manifest.model_validate_json(raw).files)}
    return Material(name, place, {"sha256": hashlib.sha256(raw).hexdigest()}, notes)


def _object(store: ObjectStore, key: str) -> tuple[str, dict[str, str]]:
    try:
        digest = {"sha256": hashlib.sha256(store.get(key)).hexdigest()}
    except NotFoundError:
        digest = {}
    return f"{store.uri}/{key}", digest

"""lineage.json: an in-toto statement with a SLSA provenance predicate. It names the inputs of an artifact by digest.

Statement v1: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
Predicate v1: https://slsa.dev/spec/v1.0/provenance
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from finetune_api.contract import File, dataset_prefix
from finetune_api.messages import FileEntry
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import find_checkpoints
from finetune_trainer.export.run_report.shown_values import shown_text
from finetune_trainer.storage import NotFoundError, ObjectStore

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://finetune.dev/export/v1"
CODE = ("finetune_api", "finetune_trainer")
CODE_FILES = (".py", ".jinja", ".toml")


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
    store: ObjectStore, run: str, plan: Plan, spec: Mapping[str, Any], exported: tuple[int, int]
) -> list[Material]:
    """Return every input of a run that is known: model, data, spec, plan, code, image, and checkpoints in storage.

    Args:
        run: key prefix of the run, with the trailing slash.
        exported: step and generation of the checkpoint that the artifact is made from.

    Raises:
        StorageError: the store refused.
    """
    model, data = plan.model, dataset_prefix(plan.dataset.sha256)
    mirrored = {"commit": model.commit, "source": shown_text(model.source), "digestOf": File.MANIFEST.value}
    prepared = {"sha256": plan.dataset.sha256, "rows": plan.dataset.train.rows}
    found = [
        Material("base model", *_committed(store, model.prefix), mirrored),
        Material("prepared data set", *_committed(store, data), prepared),
    ]
    if plan.adapter:
        notes = {"commit": plan.adapter.commit, "source": shown_text(plan.adapter.source)}
        found.append(Material("adapter at the start", *_committed(store, plan.adapter.prefix), notes))
    found += [Material(name, *_object(store, run + name)) for name in (File.SPEC.value, File.PLAN.value)]
    found.append(Material("finetune-operator", "pkg:pypi/finetune-operator", {"sha256": code_digest()}))
    if image := spec.get("image"):
        _, _, pinned = str(image).partition("@sha256:")
        found.append(Material("image of the trainer", str(image), {"sha256": pinned} if pinned else {}))
    for one in find_checkpoints(store, run).committed.values():
        info = one.info
        notes_of = {"step": info.step, "generation": info.generation}
        if (info.step, info.generation) == exported:
            notes_of["exported"] = True
        found.append(Material(f"checkpoint of step {info.step}", *_committed(store, one.prefix), notes_of))
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


def code_digest() -> str:
    """Return the sha256 over the names and hashes of the source files that made the artifact."""
    whole = hashlib.sha256()
    for package in CODE:
        for path, file in sorted(_sources(files(package), package)):
            whole.update(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {path}\n".encode())
    return whole.hexdigest()


def _sources(folder: Traversable, path: str) -> Iterable[tuple[str, Traversable]]:
    for one in folder.iterdir():
        if one.is_dir():
            yield from _sources(one, f"{path}/{one.name}")
        elif one.name.endswith(CODE_FILES):
            yield f"{path}/{one.name}", one


def _committed(store: ObjectStore, prefix: str) -> tuple[str, dict[str, str]]:
    """Return the place of a committed prefix, and the digest of its list of files, which has a digest of each file."""
    uri, digest = _object(store, prefix + File.MANIFEST)
    return uri.removesuffix(File.MANIFEST), digest


def _object(store: ObjectStore, key: str) -> tuple[str, dict[str, str]]:
    try:
        digest = {"sha256": hashlib.sha256(store.get(key)).hexdigest()}
    except NotFoundError:
        digest = {}
    return f"{store.uri}/{key}", digest

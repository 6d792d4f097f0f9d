"""What the evidence of an artifact says of its training: the plan, the inputs with their digests, the machine."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import ExportForm, Manifest, MethodType
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.trained_on import TrainedOn
from finetune_trainer.export.evidence.evidence_paths import LINEAGE, PLAN_COPY
from finetune_trainer.export.evidence.lineage import (
    BASE_MODEL,
    DATA_SET,
    FILES,
    INTERNAL_MACHINE,
    OWN_CODE,
    START_ADAPTER,
)
from finetune_trainer.export.run_report.shown_values import ELSEWHERE
from finetune_trainer.storage import NotFoundError, ObjectStore
from finetune_trainer.storage.base import checked_key

RUN = re.compile(r"(?P<storage>.+?)/(?P<run>jobs/[^/]+/[^/]+/[^/]+/)")
OLDER = "export the run again with this version: `finetune export`, and reproduce the new artifact"


@dataclass(frozen=True)
class RecordedInput:
    """One input as the lineage names it.

    Attributes:
        digest: sha256 of the list of its files, or of the file itself; empty if it is unknown.
        files: digest of the names and hashes of its files, which stays if equal files are stored anew; empty if
            unknown.
    """

    digest: str = ""
    files: str = ""


@dataclass(frozen=True)
class RecordedRun:
    """The training of an artifact, by its evidence.

    Attributes:
        storage: URI of the run's storage; empty if it was a folder of the machine that trained, which the evidence does
            not name.
        run: key prefix of the run in it, with the trailing slash.
        storage_spec: `spec.storage` of the job: endpoint and region.
        step: of the checkpoint that was exported.
        metrics: of that checkpoint.
        trained_on: the machine; None if an older version made the checkpoint.
        generation: of that checkpoint: 1 + the restarts of the training before it.
        source_files: digest of the source files that trained; of those that exported if an older version trained.
        plan_digest: of the run's plan.json.
        plan_copy: the plan in the evidence; empty if there is none.
    """

    storage: str
    run: str
    step: int
    form: ExportForm
    export: Mapping[str, Any]
    metrics: Mapping[str, float]
    inputs: Mapping[str, RecordedInput]
    plan_digest: str
    plan_copy: bytes = b""
    trained_on: TrainedOn | None = None
    generation: int = 1
    source_files: str = ""
    storage_spec: Mapping[str, str] = field(default_factory=dict)

    def storage_around(self, folder: Path) -> str:
        """Return the URI of the run's storage: that of the evidence, else the folder in which the artifact lies.

        Raises:
            SpecError: neither is known.
        """
        if self.storage:
            return self.storage
        path = folder.resolve().as_posix()
        root, found, _ = path.rpartition(f"/{self.run}artifacts/")
        if not found:
            message = f"the training was stored in a folder of the machine that trained, and {folder} lies elsewhere"
            cure = "name the storage of the job with --storage file:///FOLDER"
            raise SpecError(Problem(code="EvidenceUnusable", field="storage", message=message, cure=cure))
        return f"file://{root}"

    def plan(self, store: ObjectStore) -> Plan:
        """Return the plan: from the evidence, else from the storage of the run.

        Raises:
            DataError: neither is the plan that the lineage names.
            SpecError: it is the plan of another version.
            StorageError: the store refused.
        """
        raw = self.plan_copy
        if _sha256(raw) != self.plan_digest:
            try:
                raw = store.get(self.run + File.PLAN)
            except NotFoundError:
                raw = b""
        if not self.plan_digest or _sha256(raw) != self.plan_digest:
            message = f"{self.run}{File.PLAN} below {store.uri} is not the plan of the artifact, or is missing"
            raise DataError(_changed("plan", message))
        try:
            plan = Plan.model_validate_json(raw)
            for prefix in self.prefixes(plan).values():
                checked_key(prefix.rstrip("/"))
            return plan
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise _unusable("plan", f"the plan is of another version of finetune: {reason}") from None

    def prefixes(self, plan: Plan) -> dict[str, str]:
        """Return the key prefix of each input that training reads, by its name in the lineage."""
        found = {BASE_MODEL: plan.model.prefix, DATA_SET: dataset_prefix(plan.dataset.sha256)}
        return found | ({START_ADAPTER: plan.adapter.prefix} if plan.adapter else {})


def read_evidence(folder: Path) -> RecordedRun:
    """Return what the evidence of an artifact says. The folder is verified already.

    Raises:
        SpecError: the evidence lacks something; artifacts of older versions do.
    """
    try:
        manifest = Manifest.model_validate_json((folder / File.MANIFEST).read_bytes())
        lineage = json.loads((folder / LINEAGE).read_text("utf-8"))
        definition = lineage["predicate"]["buildDefinition"]
        details = lineage["predicate"]["runDetails"]
        place = RUN.fullmatch(str(details["metadata"]["invocationId"]))
        materials = {str(one["name"]): one for one in definition["resolvedDependencies"]}
        internal = definition["internalParameters"]
        spec = definition["externalParameters"]["spec"]
        machine = internal.get(INTERNAL_MACHINE)
        trained_on = TrainedOn.model_validate(machine) if machine else None
        copy = folder / PLAN_COPY
        if place is None:
            raise ValueError("invocationId is not the place of a run")
        checked_key(place["run"].rstrip("/"))
        return RecordedRun(
            storage="" if place["storage"] == ELSEWHERE else place["storage"],
            run=place["run"],
            step=int(internal["step"]),
            form=_form(manifest, str(internal["method"])),
            export=manifest.info,
            metrics={str(name): float(value) for name, value in (manifest.info.get("metrics") or {}).items()},
            inputs={name: _input(one) for name, one in materials.items()},
            plan_digest=_input(materials[File.PLAN]).digest,
            plan_copy=copy.read_bytes() if copy.is_file() else b"",
            trained_on=trained_on,
            generation=int(internal.get("generation", 1)),
            source_files=(trained_on.source_files if trained_on else "") or _input(materials.get(OWN_CODE, {})).digest,
            storage_spec={name: str(value) for name, value in (spec.get("storage") or {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _unusable(LINEAGE, f"the evidence does not say how the artifact was trained: {reason}") from None


def _form(manifest: Manifest, method: str) -> ExportForm:
    """Return the form of an artifact; versions that knew no forms wrote the kind alone."""
    if form := manifest.info.get("form"):
        return ExportForm(form)
    merged = manifest.info["kind"] == "model" or method == MethodType.FULL
    return ExportForm.MERGED if merged else ExportForm.ADAPTER


def _input(material: Mapping[str, Any]) -> RecordedInput:
    digest, notes = material.get("digest") or {}, material.get("annotations") or {}
    return RecordedInput(str(digest.get("sha256") or ""), str(notes.get(FILES) or ""))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest() if raw else ""


def _changed(field: str, message: str) -> Problem:
    cure = "restore it from a copy, or name another storage of the run with --storage"
    return Problem(code="InputChanged", field=field, message=message, cure=cure)


def _unusable(field: str, message: str) -> SpecError:
    return SpecError(Problem(code="EvidenceUnusable", field=field, message=message, cure=OLDER))

"""The evidence is added to an artifact last: its lineage has the digests of all other files, and the signature covers
the lineage too. Only MANIFEST.json is written later."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.beats import CheckpointId
from finetune_api.contract import File
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.checkpoints.naming import part_prefix
from finetune_trainer.checkpoints.trained_on import TRAINED_ON, TrainedOn
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.card import installed_versions
from finetune_trainer.export.energy_figures import energy_facts
from finetune_trainer.export.evidence.annex import annex
from finetune_trainer.export.evidence.evidence_paths import ANNEX, BILL, EVIDENCE, LINEAGE, PLAN_COPY
from finetune_trainer.export.evidence.lineage import INTERNAL_MACHINE, materials_of, statement
from finetune_trainer.export.evidence.signature import sign_artifact
from finetune_trainer.export.evidence.software import bill_of_materials
from finetune_trainer.export.run_report.run_facts import shown_spec
from finetune_trainer.export.run_report.shown_values import portable_text, portable_value, shown_value
from finetune_trainer.storage import NotFoundError, ObjectStore, hash_file


def add_evidence(source: ExportSource, run: str, folder: Path, key: Path | None) -> dict[str, str]:
    """Add the evidence to an artifact that is complete otherwise. Return what its manifest says of the signature.

    Args:
        run: key prefix of the run, with the trailing slash.
        key: private key to sign with; None = no signature.

    Raises:
        SpecError: the key cannot be used.
        StorageError: the store refused.
    """
    plan, store, info = source.plan, source.store, source.info
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    subject = [
        hash_file(paths[name]).model_copy(update={"path": name})
        for name in sorted(paths)
        if not name.startswith(EVIDENCE) and name != File.MANIFEST
    ]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    spec, versions = shown_spec(store, run), installed_versions()
    checkpoints = find_checkpoints(store, run).committed
    exported = CheckpointId(step=info.step, generation=info.generation)
    lineage = statement(
        subject,
        materials_of(store, run, plan, spec, checkpoints, exported),
        spec=spec,
        internal=_internal(source, _trained_on(store, checkpoints.get(exported))),
        invocation=f"{store.uri}/{run}",
        versions=versions,
        finished=created,
    )
    (folder / EVIDENCE).mkdir(exist_ok=True)
    _write(folder / LINEAGE, portable_value(lineage, store.uri))
    _write_plan(store, run, folder)
    _write(folder / BILL, bill_of_materials(f"{plan.model.name}, fine-tuned", created))
    draft = annex(plan, step=info.step, metrics=info.metrics, versions=versions, created=created, energy=source.energy)
    (folder / ANNEX).write_text(portable_text(draft, store.uri), "utf-8")
    return {"signed_by": sign_artifact(folder, key)} if key else {}


def _internal(source: ExportSource, trained_on: TrainedOn | None) -> dict[str, Any]:
    """Return what the product chose and what it trained on."""
    plan, info = source.plan, source.info
    machine = {INTERNAL_MACHINE: trained_on.model_dump(mode="json")} if trained_on else {}
    return {
        "task": plan.task,
        "method": plan.method,
        "ranks": plan.world_size,
        "seed": plan.schedule.seed,
        "step": info.step,
        "generation": info.generation,
        "maxSteps": plan.schedule.max_steps,
        "flopsPerToken": plan.prediction.flops_per_token or "not measured",
        "energy": energy_facts(source.energy),
        **machine,
    }


def _trained_on(store: ObjectStore, checkpoint: Committed | None) -> TrainedOn | None:
    """Return the machine of rank 0; None for a checkpoint of an older version."""
    if checkpoint is None:
        return None
    try:
        return TrainedOn.model_validate_json(store.get(checkpoint.prefix + part_prefix(0) + TRAINED_ON))
    except (NotFoundError, ValidationError):
        return None


def _write_plan(store: ObjectStore, run: str, folder: Path) -> None:
    """Copy the plan, so that the training can be repeated after the run's own files are gone. What may hold a
    credential is hidden, and no folder of this machine is named; then the copy differs from the plan that the lineage
    names, and the storage of the run has that one."""
    try:
        raw = store.get(run + File.PLAN)
        plan = json.loads(raw)
    except (NotFoundError, ValueError):
        return
    shown = {**shown_value(plan), "prediction": plan.get("prediction")}  # its flops_per_token is no secret
    shown = portable_value(shown, store.uri)
    if shown == plan:
        (folder / PLAN_COPY).write_bytes(raw)
    else:
        _write(folder / PLAN_COPY, shown)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")

"""The evidence is added to an artifact last: its lineage has the digests of all other files, and the signature covers
the lineage too. Only MANIFEST.json is written later."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.contract import File
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.card import installed_versions
from finetune_trainer.export.evidence.annex import annex
from finetune_trainer.export.evidence.evidence_paths import ANNEX, BILL, EVIDENCE, LINEAGE
from finetune_trainer.export.evidence.lineage import materials_of, statement
from finetune_trainer.export.evidence.signature import sign_artifact
from finetune_trainer.export.evidence.software import bill_of_materials
from finetune_trainer.export.run_report.run_facts import shown_spec
from finetune_trainer.export.run_report.shown_values import portable_text, portable_value
from finetune_trainer.storage import hash_file


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
    lineage = statement(
        subject,
        materials_of(store, run, plan, spec, (info.step, info.generation)),
        spec=spec,
        internal={
            "task": plan.task,
            "method": plan.method,
            "ranks": plan.world_size,
            "seed": plan.schedule.seed,
            "step": info.step,
            "maxSteps": plan.schedule.max_steps,
            "flopsPerToken": plan.prediction.flops_per_token or "not measured",
            "energy": "not measured",
        },
        invocation=f"{store.uri}/{run}",
        versions=versions,
        finished=created,
    )
    (folder / EVIDENCE).mkdir(exist_ok=True)
    _write(folder / LINEAGE, portable_value(lineage, store.uri))
    _write(folder / BILL, bill_of_materials(f"{plan.model.name}, fine-tuned", created))
    draft = annex(plan, step=info.step, metrics=info.metrics, versions=versions, created=created)
    (folder / ANNEX).write_text(portable_text(draft, store.uri), "utf-8")
    return {"signed_by": sign_artifact(folder, key)} if key else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")

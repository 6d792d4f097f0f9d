"""The suites of a run in its storage, and as a section of a model card."""

import os
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_trainer.judge.gating import gates_in
from finetune_trainer.process.trial_circumstances import asked_of_stage
from finetune_trainer.storage import NotFoundError, ObjectStore
from finetune_trainer.suites.container_suites import runnable_suites
from finetune_trainer.suites.definitions import definitions_digest
from finetune_trainer.suites.suite_process import suite_circumstances
from finetune_trainer.suites.suite_records import SUITES, SuiteRecord

QUICK_BYTES = 64 << 20  # of definitions that are read to see whether a complete run has to be exported again


def load_suites(store: ObjectStore, run: str) -> SuiteRecord | None:
    """Return the suites of the last export of a run; None if there are none that can be read.

    Args:
        run: key prefix of the run, with the trailing slash.
    """
    try:
        return SuiteRecord.model_validate_json(store.get(run + SUITES))
    except (NotFoundError, ValidationError):
        return None


def is_evaluated(store: ObjectStore, run: str, spec: FineTuneJobSpec, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the last export of a run has the suites of a job that run on this machine, and its gates if no
    judgement has them. A suite that failed counts, as long as its circumstances are the same.

    Args:
        environ: that of the export stage.
    """
    asked = runnable_suites(spec.evaluation.suites, environ)
    if not asked:
        return True
    found = load_suites(store, run)
    if found is None or len(found.suites) != len(asked):
        return False
    stage = asked_of_stage(spec.export)
    for result, settings in zip(found.suites, asked, strict=True):
        there = definitions_digest(settings.definitions, environ, QUICK_BYTES)
        if not result.stands(settings, there, suite_circumstances(settings, there, stage, environ)):
            return False
    return spec.export.judge is not None or gates_in(spec.export.gates) == [
        (one.metric, one.rule) for one in found.gates
    ]


def suites_section(record: SuiteRecord) -> str:
    """Return a section of Markdown: every value, and the suites that have none."""
    versions = sorted({one.harness for one in record.suites if one.harness and not one.image})
    by = f" {', '.join(versions)}" if versions else ""
    parts = ["## Benchmarks\n"]
    if any(not one.image for one in record.suites):
        parts.append(f"By lm-evaluation-harness{by}, on CPUs.\n")
    parts += [f"{one.name} by a program of `{one.image}`.\n" for one in record.suites if one.image]
    parts += _table(record)
    parts += [f"\n* {one.name} has no values: {one.problem}" for one in record.suites if one.problem]
    return "\n".join(parts) + "\n"


def _table(record: SuiteRecord) -> Sequence[str]:
    rows = [
        f"| {suite.name} | {one.name} | {one.value:.4g} | {'' if one.error is None else f'{one.error:.2g}'} "
        f"| {f'{one.rows:,}' if one.rows else ''} |"
        for suite in record.suites
        for one in suite.values
    ]
    return ["| suite | value | | standard error | rows |", "|---|---|---|---|---|", *rows] if rows else []

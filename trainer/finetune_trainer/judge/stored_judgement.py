"""The judgement of a run in its storage."""

from collections.abc import Mapping

from pydantic import ValidationError

from finetune_api.contract import File
from finetune_api.v1alpha1.run_specs import ExportSpec
from finetune_trainer.judge.gating import gates_in
from finetune_trainer.judge.judge_question import JudgeSettings
from finetune_trainer.judge.judgement_records import NOT_JUDGED, FailedJudgement, Judgement
from finetune_trainer.process.trial_circumstances import asked_of_stage, trial_circumstances
from finetune_trainer.storage import NotFoundError, ObjectStore


def load_judgement(store: ObjectStore, run: str) -> Judgement | None:
    """Return the last judgement of a run; None if there is none that can be read.

    Args:
        run: key prefix of the run, with the trailing slash.
    """
    try:
        return Judgement.model_validate_json(store.get(run + File.JUDGEMENT))
    except (NotFoundError, ValidationError):
        return None


def load_failed_judgement(store: ObjectStore, run: str) -> FailedJudgement | None:
    """Return why the last judgement of a run failed; None if none failed, or if the record cannot be read."""
    try:
        return FailedJudgement.model_validate_json(store.get(run + NOT_JUDGED))
    except (NotFoundError, ValidationError):
        return None


def is_judged(store: ObjectStore, run: str, asked: ExportSpec, environ: Mapping[str, str]) -> bool:
    """Return whether the last judgement of a run has the settings and the gates that a job asks for. A judgement that
    failed counts as one, as long as its circumstances are the same.

    Args:
        environ: that of the export stage.
    """
    if asked.judge is None:
        return True
    settings, gates = JudgeSettings.of(asked.judge).digest, gates_in(asked.gates)
    failed = load_failed_judgement(store, run)
    if failed is not None and failed.stands(settings, trial_circumstances(asked_of_stage(asked), environ=environ)):
        return list(failed.gates) == gates
    found = load_judgement(store, run)
    if found is None or found.settings != settings:
        return False
    return [(one.metric, one.rule) for one in found.gates] == gates

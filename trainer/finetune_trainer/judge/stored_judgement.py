"""The judgement of a run in its storage."""

from pydantic import ValidationError

from finetune_api.contract import File
from finetune_api.v1alpha1.run_specs import ExportSpec
from finetune_trainer.judge.gating import gates_in
from finetune_trainer.judge.judge_question import JudgeSettings
from finetune_trainer.judge.judgement_records import Judgement
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


def is_judged(store: ObjectStore, run: str, asked: ExportSpec) -> bool:
    """Return whether the last judgement of a run has the settings and the gates that a job asks for."""
    found = load_judgement(store, run)
    if found is None or asked.judge is None or found.settings != JudgeSettings.of(asked.judge).digest:
        return False
    return gates_in(asked.gates) == [(one.metric, one.rule) for one in found.gates]

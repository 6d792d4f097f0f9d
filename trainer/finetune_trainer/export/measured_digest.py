"""What was measured of a run's model, as a digest in the manifest of each artifact: an artifact that holds another
judgement or other suites is written again."""

import hashlib

from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.judge.judgement_records import Judgement
from finetune_trainer.judge.stored_judgement import load_judgement
from finetune_trainer.storage import ObjectStore
from finetune_trainer.suites.stored_suites import load_suites
from finetune_trainer.suites.suite_records import SuiteRecord


def measured_digest(judgement: Judgement | None, suites: SuiteRecord | None) -> str:
    """Return a digest of what an artifact holds. Gates belong to the run, and circumstances change no artifact."""
    whole = hashlib.sha256()
    if judgement is not None:
        whole.update(judgement.model_copy(update={"gates": ()}).to_json().encode())
    for one in suites.suites if suites else ():
        whole.update(one.model_dump_json(exclude={"tried_with", "definitions"}).encode())
    return whole.hexdigest()[:16]


def stored_measures(store: ObjectStore, run: str, request: ExportRequest) -> str:
    """Return the digest of what the last export of a run has measured, as far as a request asks for it.

    Args:
        run: key prefix of the run, with the trailing slash.
    """
    judgement = load_judgement(store, run) if request.judge else None
    if judgement is not None and judgement.settings != request.judged:
        judgement = None
    return measured_digest(judgement, load_suites(store, run) if request.suites else None)

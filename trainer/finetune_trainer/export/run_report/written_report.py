"""The report of a run in its storage."""

from collections.abc import Sequence

from finetune_api.contract import File
from finetune_api.messages import Artifact
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.export.run_report.run_facts import read_run
from finetune_trainer.export.run_report.run_page import render_run
from finetune_trainer.storage import ObjectStore


def write_report(
    store: ObjectStore, run: str, plan: Plan, job: FineTuneJob, uid: str, artifacts: Sequence[Artifact]
) -> str:
    """Write the page beside the run's other files, over an older one; return its URI.

    Args:
        run: key prefix of the run, with the trailing slash.
        artifacts: that the export has made or found.

    Raises:
        StorageError: the store refused.
    """
    budget = job.spec.budget
    price = (budget.gpu_hour_price if budget else None) or ""
    facts = read_run(store, run, plan, artifacts, name=job.metadata.name, uid=uid, price=price)
    store.put(run + File.RUN_REPORT, render_run(facts).encode())
    return f"{store.uri}/{run}{File.RUN_REPORT}"

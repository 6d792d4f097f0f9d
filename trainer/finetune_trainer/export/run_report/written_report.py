"""The report of a run in its storage. It is written before the pushes, which may take hours, and again after them with
the facts that were read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from finetune_api.contract import File
from finetune_api.messages import Artifact
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.export.push.copies import PushOutcome
from finetune_trainer.export.run_report.run_facts import RunFacts, read_run
from finetune_trainer.export.run_report.run_page import render_run
from finetune_trainer.storage import ObjectStore


@dataclass
class ReportWriter:
    """Writes the page beside the run's other files, over an older one.

    Whatever fails, the artifacts are committed, and the export is good without the page: a fault is told and ends
    nothing.

    Attributes:
        run: key prefix of the run, with the trailing slash.
        report: called with a line.
        facts: of the run, after the first page.
    """

    store: ObjectStore
    run: str
    plan: Plan
    job: FineTuneJob
    uid: str
    report: Callable[[str], None]
    facts: RunFacts | None = None

    def begin(self, artifacts: Sequence[Artifact]) -> None:
        """Read the facts of a run, and write the page before any push.

        Args:
            artifacts: that the export has made or found.
        """
        try:
            budget = self.job.spec.budget
            price = (budget.gpu_hour_price if budget else None) or ""
            name, pushes = self.job.metadata.name, len(self.job.spec.export.push)
            facts = read_run(self.store, self.run, self.plan, artifacts, name=name, uid=self.uid, price=price)
            self.facts = replace(facts, waiting=pushes)
            self._write(self.facts)
            self.report(f"report: {self.store.uri}/{self.run}{File.RUN_REPORT}")
        except Exception as error:
            self.report(f"report: not written: {type(error).__name__}: {error}")

    def add_copies(self, copies: Sequence[PushOutcome]) -> None:
        """Write the page again, with what became of the pushes."""
        if self.facts is None:
            return
        try:
            self._write(replace(self.facts, copies=copies, waiting=self.facts.waiting - len(copies)))
        except Exception as error:
            self.report(f"report: has no copies: {type(error).__name__}: {error}")

    def _write(self, facts: RunFacts) -> None:
        self.store.put(self.run + File.RUN_REPORT, render_run(facts).encode())

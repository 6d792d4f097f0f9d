"""The run's own files: the spec and the plan it began with. A run keeps its plan, and continues only with that."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.contract import File, run_prefix
from finetune_api.errors import Problem, StateError
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.field_facts import run_identity
from finetune_trainer.storage import AlreadyExistsError, NotFoundError, ObjectStore


@dataclass(frozen=True)
class RunFiles:
    """The files of one run in storage."""

    job: FineTuneJob
    store: ObjectStore
    uid: str

    @property
    def prefix(self) -> str:
        """Key prefix of the run, with the trailing slash."""
        return run_prefix(self.job.metadata.namespace, self.job.metadata.name, self.uid)

    def key(self, name: File) -> str:
        """Return key of one of its files."""
        return self.prefix + name

    def keep(self, chosen: Plan) -> tuple[Plan, bool]:
        """Store the plan of this run, or find the one that it began with; return it, and whether there was one.

        Raises:
            StateError: the run began with another data set, model or spec.
        """
        kept = self._kept(chosen)
        if kept is not None:
            return kept, True
        spec = json.dumps(_fixed(self.job), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.store.put(self.key(File.SPEC), spec.encode())
        try:
            self.store.create(self.key(File.PLAN), chosen.to_json().encode())
        except AlreadyExistsError:
            return self._kept(chosen) or chosen, True
        return chosen, False

    def _kept(self, new: Plan) -> Plan | None:
        try:
            raw = self.store.get(self.key(File.PLAN))
            began = run_identity(json.loads(self.store.get(self.key(File.SPEC))))
        except NotFoundError:
            return None
        try:
            stored = Plan.model_validate_json(raw)
        except ValidationError as error:
            raise _changed("plan.json", "is of another version of finetune", "PlanUnreadable") from error
        if stored.dataset.sha256 != new.dataset.sha256:
            raise _changed("spec.dataset", "the data changed since this run began", "DataChanged")
        if stored.model.commit != new.model.commit:
            raise _changed("spec.model", "the model changed since this run began", "ModelChanged")
        spec = _fixed(self.job)
        fields = sorted(name for name in began.keys() | spec.keys() if began.get(name) != spec.get(name))
        if fields:
            raise _changed(f"spec.{fields[0]}", f"changed since this run began: {', '.join(fields)}", "SpecChanged")
        return stored


def _fixed(job: FineTuneJob) -> dict[str, Any]:
    return run_identity(job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True))


def _changed(field: str, message: str, code: str) -> StateError:
    cure = "start a new run (locally with --fresh), or restore the old values"
    return StateError(Problem(code=code, field=field, message=message, cure=cure))

"""The facts of a run, read from its storage for the report. What is missing or unreadable is left out of the page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.beats import CheckpointFacts, EvalMetrics, Progress
from finetune_api.contract import File
from finetune_api.messages import Artifact, Manifest, Message
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.checkpoints.pick import checkpoint_facts
from finetune_trainer.evaluations.stored import load_evaluation
from finetune_trainer.export.push.copies import PushOutcome
from finetune_trainer.export.run_report.shown_values import shown_text, shown_value
from finetune_trainer.judge.stored_judgement import load_judgement
from finetune_trainer.storage import NotFoundError, ObjectStore
from finetune_trainer.suites.stored_suites import load_suites
from finetune_trainer.suites.suite_records import SuiteResult

TRAINER_STATE = "trainer_state.json"  # transformers' own record, in every checkpoint
MOST_LOG_BYTES = 100_000_000  # of trainer_state.json; in memory it takes several times as much
MOST_NUMBER = 1e300  # of a value of the log
HIDDEN_PARTS = frozenset({"podTemplate"})  # parts of the spec that may hold values of a user's secrets

M = TypeVar("M", bound=Message)


class DataWarning(Message):
    """A finding of the report on the data, as far as this page shows it."""

    severity: str = ""
    code: str = ""
    split: str = ""
    message: str = ""
    cure: str = ""


class DataFindings(Message):
    """The findings in `dataset-report.json`."""

    findings: tuple[DataWarning, ...] = ()


class ShownAnswer(Message):
    """An answer to a held-out row.

    Attributes:
        base: of the model before training; None if it was not asked.
    """

    prompt: str
    tuned: str
    base: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """Everything that the report shows.

    Attributes:
        spec: of the job, as the run began with it, without parts that may hold secrets.
        progress: at the end of training; None if DONE.json is missing.
        losses: training loss by step, ascending.
        large_log: bytes of the log if it is too large to be read for the curve, else 0.
        evaluations: ascending.
        checkpoints: those in storage, ascending.
        price: of a GPU hour, as the job gives it; empty without one.
        suites: that the artifacts ran through.
        copies: of the artifacts in other places, as far as they were tried.
        waiting: number of places that were not tried when the page was written.
    """

    name: str
    uid: str
    plan: Plan
    artifacts: Sequence[Artifact]
    spec: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    losses: Sequence[tuple[int, float]] = ()
    large_log: int = 0
    evaluations: Sequence[EvalMetrics] = ()
    checkpoints: Sequence[CheckpointFacts] = ()
    warnings: Sequence[DataWarning] = ()
    answers: Sequence[ShownAnswer] = ()
    price: str = ""
    suites: Sequence[SuiteResult] = ()
    copies: Sequence[PushOutcome] = ()
    waiting: int = 0

    @property
    def step(self) -> int:
        """The step of the exported checkpoint."""
        return self.artifacts[0].step if self.artifacts else 0


def read_run(
    store: ObjectStore, run: str, plan: Plan, artifacts: Sequence[Artifact], *, name: str, uid: str, price: str = ""
) -> RunFacts:
    """Return the facts of a run whose artifacts are made.

    Args:
        run: key prefix of the run, with the trailing slash.

    Raises:
        StorageError: the store refused.
    """
    committed = find_checkpoints(store, run).committed
    progress = _read(store, run + File.DONE, Progress)
    history, large_log = _log_history(store, list(committed.values()))
    facts = checkpoint_facts(committed, plan)
    step = artifacts[0].step if artifacts else 0
    findings = _read(store, run + File.DATASET_REPORT, DataFindings) or DataFindings()
    return RunFacts(
        name=name,
        uid=uid,
        plan=plan,
        artifacts=artifacts,
        spec=shown_spec(store, run),
        progress=progress,
        losses=[(entry["step"], float(entry["loss"])) for entry in history if _is_number(entry.get("loss"))],
        large_log=large_log,
        evaluations=progress.evals if progress and progress.evals else _evaluations(history),
        checkpoints=list(facts.values()),
        warnings=[
            one.model_copy(update={"message": shown_text(one.message)})
            for one in findings.findings
            if one.severity in {"error", "warning"}
        ],
        answers=_answers(store, run, step, artifacts),
        price=price,
        suites=_suites(store, run, step),
    )


def _suites(store: ObjectStore, run: str, step: int) -> Sequence[SuiteResult]:
    found = load_suites(store, run)
    return found.suites if found and found.step == step else ()


def _answers(store: ObjectStore, run: str, step: int, artifacts: Sequence[Artifact]) -> Sequence[ShownAnswer]:
    """Return the answers of both models if this checkpoint was judged, else the samples of the evaluation."""
    judged = load_judgement(store, run)
    if judged and judged.answers and artifacts:
        folder = artifacts[0].uri.rpartition("/")[2]
        exported = _read(store, f"{run}artifacts/{folder}/{File.MANIFEST}", Manifest)
        if exported and (judged.step, judged.generation) == (step, exported.info.get("generation")):
            return [
                ShownAnswer(prompt=one.prompt, tuned=one.tuned, base=one.base, reference=one.reference)
                for one in judged.answers
            ]
    samples = load_evaluation(store, run, step).samples
    return [ShownAnswer(prompt=one.prompt, tuned=one.answer, reference=one.reference) for one in samples]


def shown_spec(store: ObjectStore, run: str) -> dict[str, Any]:
    """Return the spec that a run began with, without parts that may hold secrets; empty if it is not in storage."""
    try:
        spec = json.loads(store.get(run + File.SPEC))
    except (NotFoundError, ValueError):
        return {}
    if not isinstance(spec, dict):
        return {}
    return {name: shown_value(value, name) for name, value in spec.items() if name not in HIDDEN_PARTS}


def _log_history(store: ObjectStore, committed: Sequence[Committed]) -> tuple[list[dict[str, Any]], int]:
    """Return the log of the newest checkpoint, which goes back to the first step of the run, over all restarts; or no
    log and its bytes if it is too large."""
    for checkpoint in reversed(committed):
        logs = {one.path: one.size for one in checkpoint.manifest.files if one.path.rpartition("/")[2] == TRAINER_STATE}
        for path in sorted(logs)[:1]:
            if logs[path] > MOST_LOG_BYTES:
                return [], logs[path]
            try:
                history = json.loads(store.get(checkpoint.prefix + path))["log_history"]
            except (NotFoundError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(history, list):
                entries = [one for one in history if isinstance(one, dict) and isinstance(one.get("step"), int)]
                return entries, 0
    return [], 0


def _evaluations(history: Sequence[Mapping[str, Any]]) -> list[EvalMetrics]:
    values: dict[int, dict[str, float]] = {}
    for entry in history:
        if "eval_loss" in entry:
            numbers = {name: float(value) for name, value in entry.items() if _is_metric(name, value)}
            values[entry["step"]] = numbers
    return [EvalMetrics(step=step, values=values[step]) for step in sorted(values)]


def _is_metric(name: str, value: object) -> bool:
    """Return whether an entry of the log describes the model, and not the speed of the machine."""
    measured = name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time"))
    return measured and _is_number(value)


def _is_number(value: object) -> bool:
    """Return whether a value can be drawn: a diverged run logs null, NaN or Infinity."""
    return isinstance(value, int | float) and abs(value) < MOST_NUMBER


def _read(store: ObjectStore, key: str, kind: type[M]) -> M | None:
    try:
        return kind.model_validate_json(store.get(key))
    except (NotFoundError, ValidationError):
        return None

"""The prepare stage: every mistake is found here, before training is paid for.

In order, cheapest first: the files and the model's configuration, every row, the model's weights, tokens, the plan. An
index by fingerprint leads to data and model that an earlier job prepared; then neither is read again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.contract import MUTABLE_FIELDS, File, dataset_prefix, run_prefix
from finetune_api.errors import FineTuneError, Problem, StateError
from finetune_api.messages import DatasetFacts, Message, Plan, Stage, Task
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import EvalSplit, FineTuneJob
from finetune_trainer.prepare.data.dataset import Sources, check, locate_all
from finetune_trainer.prepare.models import (
    BaseModel,
    ModelSource,
    find_mirrored,
    locate_model,
    mirror,
    read_model,
    resolve_task,
)
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.summary import summary
from finetune_trainer.prepare.tokens.tokenize import VERSION, Encoder, Tokenized, load_tokenizer, tokenize
from finetune_trainer.storage import AlreadyExistsError, NotFoundError, ObjectStore, read_manifest, upload_tree

Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What the stage made: the plan as stored, and the result that it reports."""

    plan: Plan
    result: StageResult


class _DatasetIndex(Message):
    """`datasets/index/<fingerprint>.json`: leads from sources and options to a prepared data set."""

    facts: DatasetFacts
    limit: int


@dataclass(frozen=True)
class _Found:
    """The inputs of a job: they exist, and the model's architecture can do the task."""

    sources: Sources
    model: ModelSource
    task: Task


def prepare(
    job: FineTuneJob, store: ObjectStore, uid: str, work: Path, environ: Mapping[str, str], report: Report = print
) -> Prepared:
    """Check, tokenise and mirror what a job names, plan it, and store all of it.

    Args:
        store: the job's storage.
        uid: identity of the run; a second call with the same one keeps its plan.
        work: folder for downloads and unfinished files.
        environ: credentials and endpoints of stores and of the hub.
        report: called with a line for each phase.

    Raises:
        SpecError: a field of the job cannot be used with this data or model.
        DataError: the data breaks rules; all that is wrong, grouped.
        ModelError: the model cannot be had or used.
        StorageError: the store refused or is unreachable.
        StateError: the run began with another data set, model or spec.
    """
    work.mkdir(parents=True, exist_ok=True)
    found = _find(job, work, environ)
    base = find_mirrored(found.model, store, work / "model")
    index = _find_dataset(job, found, base, store) if base else None
    notes = []
    if base is not None and index is not None:
        report("dataset: prepared by an earlier job, not read again")
        notes.append("data set reused, not read again")
    else:
        notes += ["model reused"] if base else []
        base, made = _build(job, found, base, work, report)
        index = _DatasetIndex(facts=made.facts, limit=_limit(job, found.task, base))
        _publish(job, found, store, base, made, index, report)
    chosen = _choose(job, found, base, index.facts, index.limit)
    kept = _stored_plan(job, store, uid, chosen)
    if kept is None:
        chosen = _store_plan(job, store, uid, chosen)
    else:
        chosen = kept
        notes.append("the plan of this run is kept")
    report(
        f"plan: {chosen.max_steps} steps of {chosen.global_batch} rows on {chosen.world_size} ranks, "
        f"learning rate {chosen.learning_rate:g}"
    )
    result = StageResult(
        stage=Stage.PREPARE,
        succeeded=True,
        dataset=chosen.dataset,
        plan=summary(chosen, base.architecture),
        note="; ".join(notes),
    )
    return Prepared(chosen, result)


def validate(job: FineTuneJob, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Everything that is wrong with a job's data and model; an empty list if nothing is. Stores nothing."""
    try:
        plan(job, environ)
    except FineTuneError as error:
        return list(error.problems)
    return []


def plan(job: FineTuneJob, environ: Mapping[str, str] | None = None) -> Plan:
    """The plan a job would get. Reads data and model, stores nothing; errors as of `prepare`."""
    environ = os.environ if environ is None else environ
    with tempfile.TemporaryDirectory(prefix="finetune-plan-") as folder:
        work = Path(folder)
        found = _find(job, work, environ)
        base, made = _build(job, found, None, work, lambda line: None)
        return _choose(job, found, base, made.facts, _limit(job, found.task, base))


def _choose(job: FineTuneJob, found: _Found, base: BaseModel, facts: DatasetFacts, limit: int) -> Plan:
    return planner.plan(job, found.task, base.facts, base.architecture, facts, limit)


def _find(job: FineTuneJob, work: Path, environ: Mapping[str, str]) -> _Found:
    model_error: FineTuneError | None = None
    try:
        model = locate_model(job.spec.model, environ)
        task = resolve_task(model.config(work / "model"), job.spec.task)
    except FineTuneError as error:
        model_error = error
    try:
        sources = locate_all(job.spec.dataset, environ)
    except FineTuneError as error:
        raise _with(error, model_error) from error
    if model_error is not None:
        raise model_error
    return _Found(sources, model, task)


def _with(error: FineTuneError, other: FineTuneError | None) -> FineTuneError:
    """The first error with the problems of both: one run of prepare tells all."""
    return type(error)([*error.problems, *(other.problems if other else ())])


def _build(
    job: FineTuneJob, found: _Found, mirrored: BaseModel | None, work: Path, report: Report
) -> tuple[BaseModel, Tokenized]:
    spec = job.spec.dataset
    report(f"dataset: checking {spec.train}")
    data = check(spec, found.task, found.sources, work / "data", planner.seed_of(job))
    rows = data.train.good + (data.evaluation.good if data.evaluation else 0)
    report(f"dataset: {rows} good rows, {sum(tally.faults for tally in data.tallies())} invalid")
    base = mirrored
    if base is None:
        report(f"model: reading {found.model.source}")
        base = read_model(found.model, work / "model")
    tokenizer = load_tokenizer(base.folder, found.task)
    report("dataset: tokenising")
    encoder = Encoder(tokenizer, data.layout, _limit(job, found.task, base), spec.loss_on == "all")
    fresh = Path(tempfile.mkdtemp(prefix="tokenized-", dir=work))  # all that is in it is uploaded
    made = tokenize(spec, found.task, data, encoder, fresh)
    found.sources.check_unchanged()
    return base, made


def _publish(
    job: FineTuneJob,
    found: _Found,
    store: ObjectStore,
    base: BaseModel,
    made: Tokenized,
    index: _DatasetIndex,
    report: Report,
) -> None:
    prefix = dataset_prefix(made.facts.sha256)
    if read_manifest(store, prefix) is None:
        report(f"dataset: storing {prefix}")
        upload_tree(store, made.folder, prefix, "dataset", made.facts.model_dump(mode="json"))
    if base.files:
        report(f"model: mirroring to {base.facts.prefix}")
        mirror(base, found.model, store)
    store.put(_dataset_key(job, found, base), index.to_json().encode())  # last: what it leads to is there


def _limit(job: FineTuneJob, task: Task, base: BaseModel) -> int:
    return planner.length_limit(job, task, base.facts.max_positions)


def _dataset_key(job: FineTuneJob, found: _Found, base: BaseModel) -> str:
    """Key of the index object: all that the prepared data depends on, except the code (which VERSION stands for)."""
    spec = job.spec.dataset
    evaluation = found.sources.evaluation
    split = [spec.eval.split, planner.seed_of(job)] if isinstance(spec.eval, EvalSplit) else None
    inputs: dict[str, Any] = {
        "version": VERSION,
        "task": found.task,
        "train": found.sources.train.fingerprint,
        "eval": evaluation.fingerprint if evaluation else split,
        "format": spec.format,
        "delimiter": spec.delimiter,
        "columns": spec.columns,
        "loss_on": spec.loss_on,
        "skipped_percent": spec.max_invalid_percent if spec.on_invalid == "Skip" else None,
        "tokenizer": base.facts.commit,
        "limit": _limit(job, found.task, base),
    }
    return f"datasets/index/{hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()}.json"


def _find_dataset(job: FineTuneJob, found: _Found, base: BaseModel, store: ObjectStore) -> _DatasetIndex | None:
    try:
        index = _DatasetIndex.model_validate_json(store.get(_dataset_key(job, found, base)))
    except (NotFoundError, ValidationError):
        return None
    return index if read_manifest(store, dataset_prefix(index.facts.sha256)) else None


# ---------------------------------------------------------------- the run's own files


def _run_key(job: FineTuneJob, uid: str, name: File) -> str:
    return run_prefix(job.metadata.namespace, job.metadata.name, uid) + name


def _fixed_spec(job: FineTuneJob) -> dict[str, Any]:
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {name: value for name, value in spec.items() if name not in MUTABLE_FIELDS}


def _store_plan(job: FineTuneJob, store: ObjectStore, uid: str, chosen: Plan) -> Plan:
    spec = json.dumps(_fixed_spec(job), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    store.put(_run_key(job, uid, File.SPEC), spec.encode())
    try:
        store.create(_run_key(job, uid, File.PLAN), chosen.to_json().encode())
    except AlreadyExistsError:
        return _stored_plan(job, store, uid, chosen) or chosen
    return chosen


def _stored_plan(job: FineTuneJob, store: ObjectStore, uid: str, new: Plan) -> Plan | None:
    try:
        raw = store.get(_run_key(job, uid, File.PLAN))
        began = json.loads(store.get(_run_key(job, uid, File.SPEC)))
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
    spec = _fixed_spec(job)
    fields = sorted(name for name in began.keys() | spec.keys() if began.get(name) != spec.get(name))
    if fields:
        raise _changed(f"spec.{fields[0]}", f"changed since this run began: {', '.join(fields)}", "SpecChanged")
    return stored


def _changed(field: str, message: str, code: str) -> StateError:
    cure = "start a new run (locally with --fresh), or restore what was"
    return StateError(Problem(code=code, field=field, message=message, cure=cure))

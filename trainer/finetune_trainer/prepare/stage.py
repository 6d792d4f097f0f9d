"""The prepare stage: every mistake is found here, before training is paid for.

In order, cheapest first: what the job names, every row, the model's weights, tokens, the plan, the report. What an
earlier job prepared is found by a fingerprint; then neither data nor model is read again.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import DataError, FineTuneError, Problem
from finetune_api.messages import DatasetFacts, Stage
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.model.files import CONFIG, parse_json
from finetune_trainer.prepare.check_keeper import CheckKeeper
from finetune_trainer.prepare.data.dataset import check_dataset
from finetune_trainer.prepare.data.portions import Split
from finetune_trainer.prepare.embeddings import untrained_tokens
from finetune_trainer.prepare.job_inputs import Inputs, find_inputs
from finetune_trainer.prepare.models import BaseModel, fetch, find_mirrored, mirror, read_model
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.here import hint_of
from finetune_trainer.prepare.plan.measured_pace import PaceQuestion, cache_file, pace_of
from finetune_trainer.prepare.plan.plan_summary import summary
from finetune_trainer.prepare.quality.judge import Context, Examined, examine
from finetune_trainer.prepare.quality.page import render
from finetune_trainer.prepare.quality.report import QualityReport
from finetune_trainer.prepare.quality.warning_lines import warning_lines
from finetune_trainer.prepare.reuse import PreparedData, find_prepared, index_key, remember
from finetune_trainer.prepare.run_files import RunFiles
from finetune_trainer.prepare.start_adapter import mirror_adapter
from finetune_trainer.prepare.tokens import templates
from finetune_trainer.prepare.tokens.encoder import encoder_for
from finetune_trainer.prepare.tokens.expiry import KEPT_DAYS, expire_daily
from finetune_trainer.prepare.tokens.keeping import DiscardedShards, ShardKeeper, StoredShards
from finetune_trainer.prepare.tokens.tokenize import Tokenized, tokenize
from finetune_trainer.prepare.tokens.tokenizer import added_tokens, load_tokenizer
from finetune_trainer.prepare.weights import trained_labels
from finetune_trainer.storage import ObjectStore, check_conditional_writes, read_manifest, upload_tree

Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What the stage made: the plan as stored, and the result that it reports."""

    plan: Plan
    result: StageResult


@dataclass(frozen=True)
class Inspected:
    """What the stage would make of a job: its plan, and the report on its data."""

    plan: Plan
    report: QualityReport


def prepare(
    job: FineTuneJob, store: ObjectStore, uid: str, work: Path, environ: Mapping[str, str], report: Report = print
) -> Prepared:
    """Check, tokenise and mirror what a job names, plan it, and store all of it.

    Args:
        store: the job's storage.
        uid: identity of the run; a second call with the same one keeps its plan.
        work: folder for downloads and unfinished files.
        environ: credentials and endpoints of stores and of the hub, and what is known of the nodes' GPUs.
        report: called with a line for each phase, and now and then in a long one.

    Raises:
        SpecError: a field of the job cannot be used with this data or model.
        DataError: the data breaks rules; all that is wrong, grouped.
        ModelError: the model cannot be had or used.
        StorageError: the store refused or is unreachable.
        StateError: the run began with another data set, model or spec.
    """
    work.mkdir(parents=True, exist_ok=True)
    run = RunFiles(job, store, uid)
    found = find_inputs(job, work, environ)
    check_conditional_writes(store, run.prefix)  # before anybody pays for a GPU
    base = find_mirrored(found.model, store, work / "model")
    data = find_prepared(store, index_key(job, found, base)) if base else None
    notes = []
    keeper = StoredShards(store, run.prefix + "prepare/", work)
    if base is not None and data is not None:
        keeper.clear()  # an earlier attempt may have stopped in the middle
        report("dataset: prepared by an earlier job, not read again")
        notes.append("data set reused, not read again")
        chosen = _plan(job, found, base, data.facts, environ)
    else:
        notes += ["model reused"] if base else []
        checks = CheckKeeper(store, run.prefix + "prepare/checked", _depends_on(job, found))
        try:
            base, made = _build(job, found, base, work, report, keeper, checks)
            notes += made.notes
            chosen = _plan(job, found, base, made.facts, environ)
            examined = _examine(job, found, made, chosen)
            data = PreparedData(made.facts, examined.report)
            if problems := data.report.problems():
                _show(run, data.report, report)
                raise DataError(problems)
        except DataError:  # no later attempt goes on with this data
            keeper.clear()
            raise
        if base.shapes:
            report(f"model: reading the weights of {found.model.source}")
        base = fetch(base, found.model, work / "model")
        chosen = chosen.model_copy(update={"model": base.facts})
        _publish(found, store, base, made, examined, report, keeper)
    if found.adapter:
        mirror_adapter(found.adapter, store)
    now = datetime.now(UTC)
    remember(store, index_key(job, found, base), data.facts, now)
    for address in expire_daily(store, now):
        report(f"dataset: {dataset_prefix(address)} was not used for {KEPT_DAYS} days and is removed")
    chosen, kept = run.keep(chosen)
    notes += ["the plan of this run is kept"] if kept else []
    warnings = warning_lines(data.report)
    for warning in warnings:
        report(f"warning: {warning}")
    _show(run, data.report, report)
    report(
        f"plan: {chosen.schedule.max_steps} steps of {chosen.layout.global_batch} rows on {chosen.world_size} ranks, "
        f"learning rate {chosen.schedule.learning_rate:g}"
    )
    result = StageResult(
        stage=Stage.PREPARE,
        succeeded=True,
        dataset=chosen.dataset.model_copy(update={"ends": ()}),  # of use to workers only, which read the plan
        plan=summary(chosen),
        warnings=warnings,
        note="; ".join(notes),
    )
    return Prepared(chosen, result)


def validate(job: FineTuneJob, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Everything that is wrong with a job's data and model; an empty list if nothing is. Stores nothing."""
    try:
        return inspect(job, environ).report.problems()
    except FineTuneError as error:
        return list(error.problems)


def inspect(
    job: FineTuneJob, environ: Mapping[str, str] | None = None, report: Report = lambda line: None
) -> Inspected:
    """The plan a job would get and the report on its data, which may hold errors. Reads data and model, stores nothing.

    Raises:
        FineTuneError: as of `prepare`.
    """
    environ = os.environ if environ is None else environ
    with tempfile.TemporaryDirectory(prefix="finetune-plan-") as folder:
        work = Path(folder)
        found = find_inputs(job, work, environ)
        base, made = _build(job, found, None, work, report, DiscardedShards())
        chosen = _plan(job, found, base, made.facts, environ)
        return Inspected(chosen, _examine(job, found, made, chosen).report)


def _plan(job: FineTuneJob, found: Inputs, base: BaseModel, facts: DatasetFacts, environ: Mapping[str, str]) -> Plan:
    hint = hint_of(environ)
    how = planner.counting(job, found.task, hint, found.start)
    architecture = base.counted(found.task, how, len(facts.labels))
    limit = _limit(job, found, base)
    chosen = planner.plan(job, found.task, base.facts, architecture, facts, limit, hint, found.start)
    if hint.here is None or how.device == "gpu":
        return chosen
    asked = PaceQuestion(
        base.config,
        found.task,
        len(facts.labels),
        how.lora,
        how.weight_bytes == 2,
        chosen.layout.micro_batch,
        min(chosen.max_length, max(1, facts.train.tokens // max(1, facts.train.rows))),
        int(hint.here.cores) // chosen.world_size,
    )
    pace = pace_of(asked, architecture, cache_file(environ))
    clocked = replace(hint, pace=pace)
    return planner.plan(job, found.task, base.facts, architecture, facts, limit, clocked, found.start)


def _limit(job: FineTuneJob, found: Inputs, base: BaseModel) -> int:
    return planner.length_limit(job, found.task, base.facts.max_positions)


def _build(
    job: FineTuneJob,
    found: Inputs,
    mirrored: BaseModel | None,
    work: Path,
    report: Report,
    keeper: ShardKeeper,
    checks: CheckKeeper | None = None,
) -> tuple[BaseModel, Tokenized]:
    spec = job.spec.dataset
    report(f"dataset: checking {_name(found)}")
    small = found.model.small_files(work / "model")
    config = parse_json(CONFIG, small[CONFIG].read_bytes()) if CONFIG in small else {}
    chats = spec.chat_template != templates.NONE and (found.template is not None or templates.has_template(small))
    data = checks.found(spec, found.task, found.sources, work / "data", chats, report) if checks else None
    if data is None:
        data = check_dataset(
            spec,
            found.task,
            found.sources,
            work / "data",
            planner.seed_of(job),
            has_template=chats,
            problem_type=job.spec.problem_type,
            known_labels=trained_labels(config, found.task),
            report=report,
        )
        if checks:
            checks.keep(data)
    report(f"dataset: {data.good} good rows, {sum(tally.faults for tally in data.tallies())} invalid")
    base = mirrored
    if base is None:
        report(f"model: reading {found.model.source}")
        base = read_model(found.model, work / "model")
    base.check(found.task, data.labels)
    tokenizer = load_tokenizer(base.folder, found.task, job.spec.model.new_tokens, work / "tokenizer")
    encoder = encoder_for(spec, found.task, tokenizer, data.layout, _limit(job, found, base), found.template, work)
    report("dataset: tokenising")
    fresh = Path(tempfile.mkdtemp(prefix="tokenized-", dir=work))  # all that is in it is uploaded
    keeper.depends_on(index_key(job, found, base))
    made = tokenize(spec, found.task, data, encoder, fresh, report=report, keeper=keeper)
    weights = [path for name, path in base.files.items() if name.endswith(".safetensors")]
    # the end of a text is known from pre-training, also where its row is not, as it pads, too
    marks = set(encoder.marks) - {tokenizer.eos_id, base.config.get("pad_token_id")}
    untrained = untrained_tokens(job.spec.method, weights, added_tokens(tokenizer), marks)
    made = replace(made, untrained=untrained)
    found.sources.check_unchanged()
    if any(file.columns.from_pairs for file in data.files):
        note = f"prompts and answers are written as conversations; {templates.FIELD}: none trains them as bare text"
        made = replace(made, notes=(*made.notes, note))
    return base, made


def _depends_on(job: FineTuneJob, found: Inputs) -> dict[str, Any]:
    """All that the check of the data depends on, beside the code."""
    return {
        "dataset": job.spec.dataset.model_dump_json(),
        "sources": found.sources.fingerprint,
        "task": str(found.task),
        "problem_type": str(job.spec.problem_type),
        "seed": planner.seed_of(job),
        "model": found.model.source,  # whether it has a chat template
    }


def _name(found: Inputs) -> str:
    return ", ".join(source.uri for source in found.sources.all())


def _examine(job: FineTuneJob, found: Inputs, made: Tokenized, chosen: Plan) -> Examined:
    return examine(
        made.observations[Split.TRAIN],
        made.observations.get(Split.EVAL),
        Context(
            task=found.task,
            max_length=chosen.max_length,
            longest=chosen.model.max_positions,
            method=job.spec.method.type,
            completion_only=job.spec.dataset.loss_on != "all",
            micro_batch=chosen.layout.micro_batch,
            name=_name(found),
            notices=made.notices,
            packed=bool(job.spec.dataset.packing),
            untrained=made.untrained,
        ),
    )


def _show(run: RunFiles, judged: QualityReport, report: Report) -> None:
    """The run gets the report on its data, and the log says where it lies."""
    run.store.put(run.key(File.DATASET_REPORT), judged.to_json().encode())
    run.store.put(run.key(File.DATASET_PAGE), render(judged).encode())
    report(f"report: {run.store.uri}/{run.key(File.DATASET_PAGE)}")


def _publish(
    found: Inputs,
    store: ObjectStore,
    base: BaseModel,
    made: Tokenized,
    examined: Examined,
    report: Report,
    keeper: StoredShards,
) -> None:
    prefix = dataset_prefix(made.facts.sha256)
    if read_manifest(store, prefix) is None:
        report(f"dataset: storing {prefix}")
        (made.folder / File.DATASET_REPORT).write_text(examined.report.to_json(), "utf-8")
        if examined.eval_groups:
            (made.folder / File.EVAL_GROUPS).write_text(examined.eval_groups.model_dump_json(), "utf-8")
        shards = keeper.publish(prefix)
        upload_tree(store, made.folder, prefix, "dataset", made.facts.model_dump(mode="json"), there=shards)
    keeper.clear()
    if base.files:
        report(f"model: mirroring to {base.facts.prefix}")
        mirror(base, found.model, store)

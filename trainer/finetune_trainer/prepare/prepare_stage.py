"""The prepare stage: every mistake is found here, before training is paid for.

In order, cheapest first: what the job names, every row, the model's weights, tokens, the plan, the report. What an
earlier job prepared is found by a fingerprint; then neither data nor model is read again.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import DataError, FineTuneError, Problem
from finetune_api.messages import DatasetFacts, Stage
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.model.files import CONFIG, parse_json
from finetune_trainer.prepare.architecture_probe import AnswerStore, answer_folder
from finetune_trainer.prepare.check_keeper import CheckKeeper, check_identity
from finetune_trainer.prepare.completion_rows import completions_of
from finetune_trainer.prepare.data.dataset import CheckedData, check_dataset
from finetune_trainer.prepare.data.portions import Split
from finetune_trainer.prepare.embeddings import untrained_tokens
from finetune_trainer.prepare.headers import Header
from finetune_trainer.prepare.job_inputs import Inputs, find_inputs
from finetune_trainer.prepare.models import BaseModel, fetch, find_mirrored, mirror, read_model
from finetune_trainer.prepare.observed.untrained import UntrainedTokens
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.draft import Workload
from finetune_trainer.prepare.plan.measured_pace import cache_file, measured_pace
from finetune_trainer.prepare.plan.plan_summary import summary
from finetune_trainer.prepare.quality.judge import Context, Examined, examine
from finetune_trainer.prepare.quality.page import render
from finetune_trainer.prepare.quality.report import QualityReport
from finetune_trainer.prepare.quality.warning_lines import warning_lines
from finetune_trainer.prepare.reuse import PreparedData, find_prepared, index_key, remember
from finetune_trainer.prepare.run_files import RunFiles
from finetune_trainer.prepare.start_adapter import mirror_adapter
from finetune_trainer.prepare.tokens import templates
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.expiry import KEPT_DAYS, expire_daily
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.keeping import DiscardedShards, ShardKeeper, StoredShards
from finetune_trainer.prepare.tokens.tokenize import Tokenized, tokenize
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, added_tokens, load_fast_tokenizer
from finetune_trainer.prepare.weights import trained_labels
from finetune_trainer.storage import ObjectStore, check_conditional_writes, read_manifest, upload_tree

Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The plan as stored, and the result that the stage reports."""

    plan: Plan
    result: StageResult


@dataclass(frozen=True)
class Inspected:
    """The plan that a job would get, and the report on its data."""

    plan: Plan
    report: QualityReport


@dataclass(frozen=True)
class _Order:
    """What every step of the stage needs.

    Attributes:
        work: folder for downloads and unfinished files.
        environ: credentials and endpoints of stores and of the hub, and what is known of the nodes' GPUs.
        report: called with a line of progress.
    """

    job: FineTuneJob
    inputs: Inputs
    work: Path
    environ: Mapping[str, str]
    report: Report

    @property
    def data_name(self) -> str:
        """The URIs of the data, for people."""
        return ", ".join(source.uri for source in self.inputs.sources.all())


@dataclass(frozen=True)
class _Built:
    """Data and model, read, but not stored.

    Attributes:
        untrained: tokens that the chat template writes and whose embeddings were never trained.
        notes: what the result of the stage reports of the tokens.
    """

    base: BaseModel
    data: CheckedData
    tokenized: Tokenized
    untrained: UntrainedTokens
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Made:
    """Everything that the job trains with; all of it is in storage.

    Attributes:
        notes: what the result of the stage reports beside the plan.
    """

    plan: Plan
    base: BaseModel
    data: PreparedData
    notes: tuple[str, ...]


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
    answers = AnswerStore(answer_folder(environ), store)
    order = _Order(job, find_inputs(job, work, environ, answers, report), work, environ, report)
    check_conditional_writes(store, run.prefix)  # before anybody pays for a GPU
    base = find_mirrored(order.inputs.model, store, work / "model")
    data = find_prepared(store, index_key(job, order.inputs, base)) if base else None
    keeper = StoredShards(store, run.prefix + "prepare/", work)
    made = _reused(order, base, data, keeper) if base and data else _made(order, run, base, keeper)
    if order.inputs.adapter:
        mirror_adapter(order.inputs.adapter, store)
    _renew_index(order, store, made)
    plan, kept = run.keep(made.plan)
    notes = (*made.notes, "the plan of this run is kept") if kept else made.notes
    return Prepared(plan, _reported(run, plan, made.data.report, notes, report))


def validate(job: FineTuneJob, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Return everything that is wrong with a job's data and model; an empty list if nothing is. Store nothing."""
    try:
        return inspect(job, environ).report.problems()
    except FineTuneError as error:
        return list(error.problems)


def inspect(
    job: FineTuneJob, environ: Mapping[str, str] | None = None, report: Report = lambda line: None
) -> Inspected:
    """Return the plan that a job would get and the report on its data, which may hold errors. Store nothing.

    Raises:
        FineTuneError: as of `prepare`.
    """
    environ = os.environ if environ is None else environ
    with tempfile.TemporaryDirectory(prefix="finetune-plan-") as folder:
        work = Path(folder)
        inputs = find_inputs(job, work, environ, AnswerStore(answer_folder(environ)), report)
        order = _Order(job, inputs, work, environ, report)
        built = _build(order, None, DiscardedShards())
        plan = _plan(order, built.base, built.tokenized.facts)
        return Inspected(plan, _examine(order, built, plan).report)


# ---------------------------------------------------------------- what an earlier job prepared, or anew


def _reused(order: _Order, base: BaseModel, data: PreparedData, keeper: StoredShards) -> _Made:
    """Plan with the model and the data that an earlier job stored."""
    keeper.clear()  # an earlier attempt may have stopped in the middle
    order.report("dataset: prepared by an earlier job, not read again")
    return _Made(_plan(order, base, data.facts), base, data, ("data set reused, not read again",))


def _made(order: _Order, run: RunFiles, mirrored: BaseModel | None, keeper: StoredShards) -> _Made:
    """Read and store data and model; `mirrored` is the model, where an earlier job stored it."""
    checks = CheckKeeper(run.store, run.prefix + "prepare/checked", check_identity(order.job, order.inputs))
    try:
        built = _build(order, mirrored, keeper, checks)
        plan = _plan(order, built.base, built.tokenized.facts)
        examined = _examine(order, built, plan)
        if problems := examined.report.problems():
            _show(run, examined.report, order.report)
            raise DataError(problems)
    except DataError:  # no later attempt continues with this data
        keeper.clear()
        raise
    if built.base.headers:
        order.report(f"model: reading the weights of {order.inputs.model.source}")
    base = fetch(built.base, order.inputs.model, order.work / "model")
    _publish_data(order, run.store, built.tokenized, examined, keeper)
    if base.files:
        order.report(f"model: mirroring to {base.facts.prefix}")
        mirror(base, order.inputs.model, run.store)
    notes = ("model reused", *built.notes) if mirrored else built.notes
    plan = plan.model_copy(update={"model": base.facts})
    return _Made(plan, base, PreparedData(built.tokenized.facts, examined.report), notes)


def _renew_index(order: _Order, store: ObjectStore, made: _Made) -> None:
    """Lead later jobs to the data set; remove data sets that no job has used for long."""
    now = datetime.now(UTC)
    remember(store, index_key(order.job, order.inputs, made.base), made.data.facts, now)
    for address in expire_daily(store, now):
        order.report(f"dataset: {dataset_prefix(address)} was not used for {KEPT_DAYS} days and is removed")


def _reported(run: RunFiles, plan: Plan, judged: QualityReport, notes: tuple[str, ...], report: Report) -> StageResult:
    """Show the warnings, the report and the plan; return the result of the stage."""
    warnings = warning_lines(judged)
    for warning in warnings:
        report(f"warning: {warning}")
    _show(run, judged, report)
    report(
        f"plan: {plan.schedule.max_steps} steps of {plan.layout.global_batch} rows on {plan.world_size} ranks, "
        f"learning rate {plan.schedule.learning_rate:g}"
    )
    return StageResult(
        stage=Stage.PREPARE,
        succeeded=True,
        dataset=plan.dataset.reported(),
        plan=summary(plan),
        warnings=warnings,
        note="; ".join(notes),
    )


def _show(run: RunFiles, judged: QualityReport, report: Report) -> None:
    """Store the report on the data with the run, and log where it lies."""
    run.store.put(run.key(File.DATASET_REPORT), judged.to_json().encode())
    run.store.put(run.key(File.DATASET_PAGE), render(judged).encode())
    report(f"report: {run.store.uri}/{run.key(File.DATASET_PAGE)}")


# ---------------------------------------------------------------- data and model


def _build(order: _Order, mirrored: BaseModel | None, keeper: ShardKeeper, checks: CheckKeeper | None = None) -> _Built:
    """Check the data, read the model, tokenise."""
    job, inputs, work = order.job, order.inputs, order.work
    order.report(f"dataset: checking {order.data_name}")
    data = _checked(order, checks)
    order.report(f"dataset: {data.good} good rows, {sum(tally.faults for tally in data.tallies())} invalid")
    for sentence in data.recognised:
        order.report(f"dataset: {sentence}")
    if mirrored is None:
        order.report(f"model: reading {inputs.model.source}")
    base = mirrored or read_model(inputs.model, work / "model", inputs.positions)
    base.check(inputs.task, data.labels)
    tokenizer = load_fast_tokenizer(base.folder, inputs.task, job.spec.model.new_tokens, work / "tokenizer")
    encoder = encoder_for(
        job.spec.dataset,
        inputs.task,
        tokenizer,
        data.layout,
        inputs.setting.limit,
        inputs.template,
        work,
        completions_of(job, inputs.task, data),
        inputs.setting.prompts,
    )
    order.report("dataset: tokenising")
    fresh = Path(tempfile.mkdtemp(prefix="tokenized-", dir=work))  # all that is in it is uploaded
    keeper.depends_on(index_key(job, inputs, base))
    tokenized = tokenize(job.spec.dataset, inputs.task, data, encoder, fresh, report=order.report, keeper=keeper)
    untrained = _untrained(order, base, tokenizer, encoder)
    inputs.sources.check_unchanged()
    return _Built(base, data, tokenized, untrained, _notes(data, encoder))


def _checked(order: _Order, checks: CheckKeeper | None) -> CheckedData:
    """Check every row, unless an earlier attempt of this run did."""
    inputs, spec, folder = order.inputs, order.job.spec.dataset, order.work / "data"
    small = inputs.model.small_files(order.work / "model")
    chats = spec.chat_template != templates.NONE and (inputs.template is not None or templates.has_template(small))
    if checks and (data := checks.load(spec, inputs.task, inputs.sources, folder, chats, order.report)):
        return data
    config = parse_json(CONFIG, small[CONFIG].read_bytes()) if CONFIG in small else {}
    data = check_dataset(
        spec,
        inputs.task,
        inputs.sources,
        folder,
        planner.seed_of(order.job),
        has_template=chats,
        problem_type=order.job.spec.problem_type,
        known_labels=trained_labels(config, inputs.task),
        report=order.report,
    )
    if checks:
        checks.keep(data)
    return data


def _untrained(order: _Order, base: BaseModel, tokenizer: LoadedTokenizer, encoder: Encoder) -> UntrainedTokens:
    """Return the tokens that the chat template writes and whose embeddings were never trained."""
    model, method = order.inputs.model, order.job.spec.method
    # the end of a text is trained in pre-training; its row may look untrained, as it pads, too
    marks = set(encoder.marks) - {tokenizer.eos_id, base.config.get("pad_token_id")}

    def headers() -> Mapping[str, Header]:
        return base.headers or model.headers(order.work / "model")

    return untrained_tokens(method, headers, model.read_weights, added_tokens(tokenizer), marks)


def _notes(data: CheckedData, encoder: Encoder) -> tuple[str, ...]:
    recognised = tuple(data.recognised)
    if not any(file.columns.from_pairs for file in data.files):
        return (*recognised, *encoder.notes)
    note = f"prompts and answers are written as conversations; {templates.FIELD}: none trains them as bare text"
    return (*recognised, *encoder.notes, note)


def _publish_data(
    order: _Order, store: ObjectStore, tokenized: Tokenized, examined: Examined, keeper: StoredShards
) -> None:
    """Store the data set with its report, unless it is there."""
    prefix = dataset_prefix(tokenized.facts.sha256)
    if read_manifest(store, prefix) is None:
        order.report(f"dataset: storing {prefix}")
        (tokenized.folder / File.DATASET_REPORT).write_text(examined.report.to_json(), "utf-8")
        if examined.eval_groups:
            (tokenized.folder / File.EVAL_GROUPS).write_text(examined.eval_groups.model_dump_json(), "utf-8")
        shards = keeper.publish(prefix)
        upload_tree(store, tokenized.folder, prefix, "dataset", tokenized.facts.model_dump(mode="json"), there=shards)
    keeper.clear()


# ---------------------------------------------------------------- plan and report


def _plan(order: _Order, base: BaseModel, facts: DatasetFacts) -> Plan:
    setting = order.inputs.setting
    workload = Workload(base.facts, base.counted(setting, len(facts.labels)), facts)
    draft = planner.lay_out(setting, workload)
    order.inputs.probe.ask(draft.layout.load.zero_stage)
    return planner.plan(draft, measured_pace(draft, base.config, cache_file(order.environ)))


def _examine(order: _Order, built: _Built, plan: Plan) -> Examined:
    observations, spec = built.tokenized.observations, order.job.spec
    context = Context(
        task=order.inputs.task,
        max_length=plan.max_length,
        longest=plan.model.max_positions,
        method=spec.method.type,
        completion_only=spec.dataset.loss_on != "all",
        micro_batch=plan.layout.micro_batch,
        name=order.data_name,
        notices=built.data.notices,
        packed=bool(spec.dataset.packing),
        untrained=built.untrained,
        preference=plan.preference,
    )
    return examine(observations[Split.TRAIN], observations.get(Split.EVAL), context)

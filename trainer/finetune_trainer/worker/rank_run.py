"""The whole run of one rank. It imports all slow libraries at the top, so that the zygote loads them once."""

import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase, set_seed

from finetune_api import errors
from finetune_api.contract import ExitCode
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.agreement import StopAgreement
from finetune_trainer.worker.arguments import training_arguments, weight_dtype
from finetune_trainer.worker.arrow_rows import load_split
from finetune_trainer.worker.batches.masking import EVALUATED
from finetune_trainer.worker.compiled_layers import compile_layers
from finetune_trainer.worker.embedding_noise import noise_of
from finetune_trainer.worker.evaluation.evaluator import Evaluator
from finetune_trainer.worker.evaluation.owed import OwedEvaluation, RunEndedError
from finetune_trainer.worker.evaluation.stopping import EarlyStopping, past_of, stops
from finetune_trainer.worker.losses.router import with_balance
from finetune_trainer.worker.models.load import load_model, load_padding_tokenizer
from finetune_trainer.worker.models.new_token_rows import new_ids
from finetune_trainer.worker.optimizer_classes import optimizer_of
from finetune_trainer.worker.rendezvous import join
from finetune_trainer.worker.reports.cadence import Cadence, Reports
from finetune_trainer.worker.reports.diverged import loss_alone
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.reports.meter import Meter
from finetune_trainer.worker.reports.trackers import Trackers
from finetune_trainer.worker.sampling import VirtualDataset
from finetune_trainer.worker.tasks import task_of
from finetune_trainer.worker.tasks.worker_task import Batching, WorkerTask
from finetune_trainer.worker.trainer import FineTuneTrainer


def run_rank(order: WorkerOrder, events: int) -> ExitCode:
    """Train one rank to the end, to an agreed stop, or to an error, and return the exit code for it.

    Args:
        order: the rank, the plan, and the folders.
        events: descriptor of the agent's pipe.
    """
    reporter = Reporter(events, order.generation, order.rank)
    try:
        return train(order, reporter)
    except Exception as error:  # the agent must learn the reason, whatever the exception
        traceback.print_exc(file=sys.stderr)
        reporter.error(f"{type(error).__name__}: {error}")
        return worker_exit_code(error)


def train(order: WorkerOrder, reporter: Reporter) -> ExitCode:
    """Train one rank; see `run_rank`."""
    plan = order.plan
    reporter.phase("load")
    torch.set_num_threads(order.threads)
    join(order)
    if stops(plan, past_of(order.resume)):  # the run had already ended when a node was lost
        return ExitCode.OK
    args = training_arguments(order)
    set_seed(plan.schedule.seed)  # before the adapter is initialised

    task = task_of(plan)
    model, tokenizer = load_parts(order, task, weight_dtype(args))
    further = task.further_models(Path(order.model), weight_dtype(args))
    further = {name: one.to(args.device).eval().requires_grad_(False) for name, one in further.items()}
    batching = task.batching(model, int(tokenizer.pad_token_id))
    data = samples_in_order(order, task, batching)
    if plan.engine.compilation is not None:
        compile_layers(model, plan.engine.compilation)
    agreement, evaluator = StopAgreement(), None
    if plan.dataset.eval:
        eval_rows = task.viewed(load_split(order, "eval"), EVALUATED)
        batch_rows = args.per_device_eval_batch_size
        evaluator = Evaluator(
            order, task, tokenizer, eval_rows, batching.collate, batch_rows, agreement.interrupts_evaluation
        )

    def loss_of(position: int) -> float:
        return loss_alone(trainer, position)

    meter, trackers, owed = Meter(plan), Trackers(order), OwedEvaluation(plan)
    reports = Reports(reporter, plan, data, meter, loss_of)
    trainer = FineTuneTrainer(
        order,
        reporter,
        model,
        args,
        task=task,
        head=with_balance(plan, model, task.loss(model, further)),
        data=data,
        evaluator=evaluator,
        meter=meter,
        noise=noise_of(plan, model),
        train_dataset=task.viewed(data, plan.schedule.seed),
        data_collator=batching.collate,
        optimizer_cls_and_kwargs=optimizer_of(plan, model),
        callbacks=[Cadence(plan), reports, *trackers.callbacks, EarlyStopping(plan), owed, agreement],
    )
    owed.evaluate, owed.save = trainer.evaluate, trainer.save_checkpoint
    try:
        trainer.resume(order.resume)
    except RunEndedError:
        trainer.callback_handler.on_train_end(args, trainer.state, trainer.control)
    finally:
        trackers.close()
    dist.barrier()  # a rank that leaves early would break the last collectives of its peers
    return ExitCode.DRAINED if agreement.stopped else ExitCode.OK


def load_parts(
    order: WorkerOrder, task: WorkerTask, dtype: torch.dtype
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Return the model, with its adapter, and the tokenizer, which the task gets too."""
    plan = order.plan
    tokenizer = load_padding_tokenizer(Path(order.dataset if plan.new_tokens else order.model))
    task.use_tokenizer(tokenizer)
    model = load_model(
        task,
        Path(order.model),
        dtype,
        int(tokenizer.pad_token_id),
        new_ids(plan, tokenizer),
        Path(order.adapter) if order.adapter else None,
    )
    return model, tokenizer


def samples_in_order(order: WorkerOrder, task: WorkerTask, batching: Batching) -> VirtualDataset:
    """Return the rows of the run in their order."""
    rows = load_split(order, "train")
    schedule = order.plan.schedule
    return VirtualDataset(
        rows,
        schedule.seed,
        schedule.max_steps,
        order.plan.layout.global_batch,
        items=task.items(rows),
        dealt=batching.dealt,
        shards=rows.by_shard,
    )


def worker_exit_code(error: Exception) -> ExitCode:
    """Return the exit code of an exception. A lost connection to a peer means that this rank is not the cause."""
    if isinstance(error, errors.FineTuneError):
        return errors.exit_code(error)
    if isinstance(error, torch.OutOfMemoryError):
        return ExitCode.OUT_OF_MEMORY
    text = str(error)
    if "DefaultCPUAllocator: can't allocate memory" in text:  # torch has no exception type for CPU memory
        return ExitCode.OUT_OF_MEMORY
    if "loss scale already at minimum" in text:  # DeepSpeed in float16: every loss scale has overflowed
        return ExitCode.DIVERGED
    lost_peer = isinstance(error, dist.DistError | ConnectionError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    )
    return ExitCode.DISTRIBUTED if lost_peer else ExitCode.UNKNOWN

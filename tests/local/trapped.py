"""A rank of its own, for traps that only show in a whole process; prints what it found as JSON.

python -m tests.local.trapped <folder of the model> <folder of the data> <scratch>
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from finetune_api.errors import RunError
from finetune_api.messages import MethodType, Task
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker import rank_run as worker
from finetune_trainer.worker.arguments import training_arguments, weight_dtype
from finetune_trainer.worker.models.load import load_model
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.tasks import task_of
from finetune_trainer.worker.trainer import FineTuneTrainer
from tests.local.harness import make_plan, orders
from tests.support.plans import revised


def found(model: Path, data: Path, scratch: Path) -> dict[str, Any]:
    """Trains a step as a worker does, then once more with settings that make transformers leave DeepSpeed."""
    facts: dict[str, Any] = {}
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, world=1, stage=3, max_steps=1, eval_every_steps=0)
    [order] = orders(plan, model, data, scratch)
    facts |= as_it_is(order)
    facts["not on DeepSpeed"] = without_deepspeed(order)
    return facts


def as_it_is(order: WorkerOrder) -> dict[str, Any]:
    """What a worker's own start looks like from inside."""
    worker.join(order)
    args = training_arguments(order)
    model = load_model(task_of(order.plan), Path(order.model), weight_dtype(args), 0)
    return {
        "world as transformers sees it": args.world_size,
        "on CPU": args.device.type,
        "backend": torch.distributed.get_backend(),
        "ZeRO-3 while loading": is_deepspeed_zero3_enabled(),
        "weights sharded while loading": all(hasattr(weight, "ds_id") for weight in model.parameters()),
        "attention": model.config._attn_implementation,
        "engine": trained_on(order, model, args),
        "compiled": sorted(os.listdir(os.environ["TORCH_EXTENSIONS_DIR"])),  # noqa: PTH208
        "nan filter": args.logging_nan_inf_filter,
    }


def trained_on(order: WorkerOrder, model: torch.nn.Module, args: Any) -> str:
    """The engine that a step was made on."""
    return type(trained(order, model, args).model_wrapped).__name__


def trained(order: WorkerOrder, model: torch.nn.Module, args: Any) -> Trainer:
    """The trainer after the run."""
    batching = task_of(order.plan).batching(model, 0)
    rows = worker.load_split(order, "train")
    items = task_of(order.plan).items(rows)
    plan = order.plan
    data = worker.VirtualDataset(
        rows, plan.schedule.seed, plan.schedule.max_steps, plan.layout.global_batch, items=items, dealt=batching.dealt
    )
    reporter = Reporter(os.open(os.devnull, os.O_WRONLY), 1, 0)
    trainer = FineTuneTrainer(
        order,
        reporter,
        model,
        args,
        task=task_of(plan),
        head=task_of(plan).loss(model),
        data=data,
        train_dataset=data,
        data_collator=batching.collate,
    )
    trainer.train()
    return trainer


def without_deepspeed(order: WorkerOrder) -> str:
    """What a worker says when transformers leaves DeepSpeed: ACCELERATE_USE_CPU alone brings it there, in silence."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    args = training_arguments(order)
    args.deepspeed = args.deepspeed_plugin = args.hf_deepspeed_config = None
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    model = load_model(task_of(revised(order.plan, zero_stage=0)), Path(order.model), torch.float32, 0)
    try:
        return trained_on(order, model, args)
    except RunError as error:
        return error.problems[0].code


if __name__ == "__main__":
    print(json.dumps(found(*(Path(argument) for argument in sys.argv[1:]))))

"""The plan: every value a run needs, chosen by a rule where the user chose none, with the reason. Pure.

Steps are counted over a virtual data set (row k of the run is row k mod n of the k div n-th permutation), so every
batch is full and the last epoch may be a fraction.
"""

import math
from collections.abc import Mapping
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, Plan, Task
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.batch import Machine, choose_batch, machine_of
from finetune_trainer.prepare.plan.ledger import Ledger, problem
from finetune_trainer.prepare.plan.memory import Architecture, Load, lora_parameters

SEED = 42
EVALUATIONS = 10  # over the run
KEEP_LAST = 3
SCHEDULES = {
    Task.CLASSIFICATION: ("linear", "linear decay, as in the BERT paper"),
    Task.CAUSAL_LM: ("cosine", "cosine decay, as in the Llama 2 paper's fine-tuning"),
}
CEILING = {Task.CLASSIFICATION: 512, Task.CAUSAL_LM: 2048}

# fields of the plan: they do not travel in `training` as well
PLANNED = frozenset(
    {
        "global_batch_size",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "seed",
        "eval_steps",
        "metric_for_best_model",
        "greater_is_better",
    }
)


def seed_of(job: FineTuneJob) -> int:
    """The run's seed; also of the rows held out for evaluation."""
    return SEED if job.spec.training.seed is None else job.spec.training.seed


def length_limit(job: FineTuneJob, task: Task, positions: int) -> int:
    """Tokens at which rows are cut.

    Raises:
        SpecError: the user's limit is beyond what the model can take.
    """
    given = job.spec.dataset.max_length
    if given is not None and positions and given > positions:
        message = f"is {given}, but the model takes {positions} tokens"
        raise SpecError(problem("TooLong", "spec.dataset.maxLength", message, f"lower it to {positions} or less"))
    return given or min(positions or CEILING[task], CEILING[task])


def plan(
    job: FineTuneJob, task: Task, model: ModelFacts, architecture: Architecture, dataset: DatasetFacts, limit: int
) -> Plan:
    """Choose everything that is not given.

    Args:
        limit: tokens at which the data was cut.

    Raises:
        SpecError: given values contradict each other, or cannot work on the machine that is asked for.
    """
    spec, machine = job.spec, machine_of(job)
    given = spec.training.given()
    ledger = Ledger(given)
    world = spec.nodes * machine.processes
    stage = ledger.take("", 2, "shards gradients and optimizer states", "spec.deepspeed.stage", spec.deepspeed.stage)
    extra = _precision(ledger, machine)
    lora = _lora(job, ledger, task)
    length = _length(job, ledger, dataset, limit)
    load = Load(
        architecture=architecture,
        parameters=model.parameters,
        trained=lora_parameters(architecture, int(lora["r"])) if lora else model.parameters,
        weight_bytes=2 if extra.get("bf16") or extra.get("fp16") else 4,
        zero_stage=stage,
        world_size=world,
        recomputed=bool(given.get("activation_checkpointing") or given.get("gradient_checkpointing")),
        predicts_tokens=task is Task.CAUSAL_LM,
    )
    batch = choose_batch(ledger, load, machine, length, dataset.train.rows)
    steps, epochs = _steps(ledger, dataset.train.rows, batch.rows)
    rate, rate_reason = learning_rate(task, spec.method.type)
    warmup = _warmup(ledger, task, steps)
    shape, shape_reason = SCHEDULES[task]
    evaluated = dataset.eval is not None
    eval_every = _eval_every(ledger, steps, evaluated)
    save_every = ledger.take(
        "",
        eval_every or max(1, math.ceil(steps / EVALUATIONS)),
        "with each evaluation, so that the best is kept" if evaluated else f"{EVALUATIONS} over the run",
        "spec.checkpoint.everySteps",
        spec.checkpoint.every_steps,
    )
    metric, greater = _best(ledger, task, evaluated)
    return Plan(
        task=task,
        method=spec.method.type,
        model=model,
        dataset=dataset,
        nodes=spec.nodes,
        processes_per_node=machine.processes,
        zero_stage=stage,
        micro_batch=batch.micro,
        gradient_accumulation=batch.accumulation,
        global_batch=batch.rows,
        max_length=length,
        epochs=epochs,
        max_steps=steps,
        learning_rate=ledger.take("learning_rate", rate, rate_reason),
        warmup_steps=warmup,
        lr_scheduler_type=ledger.take("lr_scheduler_type", shape, shape_reason),
        seed=ledger.take("seed", SEED, "any fixed number makes the run repeatable"),
        eval_every_steps=eval_every,
        checkpoint_every_steps=save_every,
        keep_last=ledger.take(
            "", KEEP_LAST, "beside the best one", "spec.checkpoint.keepLast", spec.checkpoint.keep_last
        ),
        best_metric=metric,
        greater_is_better=greater,
        lora=lora,
        deepspeed=deepspeed_config(stage, spec.deepspeed.config, extra),
        training={name: value for name, value in given.items() if name not in PLANNED} | extra,
        choices=tuple(ledger.choices),
    )


def learning_rate(task: Task, method: MethodType) -> tuple[float, str]:
    """The peak learning rate when none is given, and where it comes from."""
    if method is not MethodType.FULL:
        if task is Task.CLASSIFICATION:
            return (
                1e-3,
                "adapter and new head of an encoder: measured with MiniLM, rank 16, 16 classes",
            )
        return 2e-4, "adapters of a language model: QLoRA paper (arXiv 2305.14314)"
    if task is Task.CLASSIFICATION:
        return 5e-5, "all weights of an encoder: BERT paper (arXiv 1810.04805), the largest of its three"
    return 2e-5, "all weights of a language model: Llama 2 paper's fine-tuning (arXiv 2307.09288)"


def epochs_for(rows: int) -> float:
    """Passes when none are given: 3, but at least 100 and at most 25,000 rows seen in all, and 1 to 25 passes.

    The rule of OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning").
    """
    if rows * 3 < 100:
        return float(min(25, math.ceil(100 / rows)))
    if rows * 3 > 25_000:
        return float(max(1, 25_000 // rows))
    return 3.0


def deepspeed_config(stage: int, user: Mapping[str, Any] | None, training: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration: the user's as it is, or ours, with "auto" where transformers fills in."""
    if user is not None:
        return dict(user)
    # Without gathering, a checkpoint of stage 3 holds shards only, and nothing that export could use.
    sharded: dict[str, Any] = {"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}
    config: dict[str, Any] = {
        "zero_optimization": {"stage": stage, **sharded},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "optimizer": {
            "type": "AdamW",
            # torch_adam: DeepSpeed's own is compiled at the first start, half a minute
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
        },
    }
    for kind in ("bf16", "fp16"):
        if training.get(kind):
            config[kind] = {"enabled": "auto"}
    return config


def _precision(ledger: Ledger, machine: Machine) -> dict[str, Any]:
    asked = {name: ledger.given[name] for name in ("bf16", "fp16") if name in ledger.given}
    if asked.get("fp16") and machine.device == "cpu":
        message = "is true, but DeepSpeed has no float16 on CPU"
        raise SpecError(problem("NotOnCPU", "spec.training.fp16", message, "use bf16, or ask for GPUs"))
    for name, value in asked.items():
        ledger.note(f"spec.training.{name}", value, "given", True)
    if asked:
        return asked
    if machine.device == "gpu":
        ledger.note("spec.training.bf16", True, "half the memory of float32 and faster on GPUs since Ampere", False)
        return {"bf16": True}
    ledger.note("spec.training.bf16", False, "float32 on CPU: a repeatable run", False)
    return {}


def _lora(job: FineTuneJob, ledger: Ledger, task: Task) -> dict[str, Any]:
    if job.spec.method.type is MethodType.FULL:
        return {}
    given = job.spec.method.lora.given() if job.spec.method.lora else {}
    rank = given.get("r", 16)
    rules: dict[str, tuple[Any, str]] = {
        "r": (16, "enough for most data sets; more rarely helps (LoRA paper, arXiv 2106.09685, section 7.2)"),
        "lora_alpha": (2 * rank, "twice the rank: the learning rate keeps its meaning when the rank changes"),
        "lora_dropout": (0.05, "light regularisation (QLoRA paper: 0.1 up to 13 billion parameters, 0.05 above)"),
        "target_modules": ("all-linear", "adapters on all layers reach full fine-tuning (QLoRA paper, section 4)"),
    }
    lora = dict(given)
    for name, (value, reason) in rules.items():
        lora[name] = ledger.take(name, value, reason, f"spec.method.lora.{name}", given.get(name))
    lora["task_type"] = "SEQ_CLS" if task is Task.CLASSIFICATION else "CAUSAL_LM"
    return lora


def _length(job: FineTuneJob, ledger: Ledger, dataset: DatasetFacts, limit: int) -> int:
    longest = max(dataset.train.longest, dataset.eval.longest if dataset.eval else 0)
    cut = dataset.train.truncated_rows + (dataset.eval.truncated_rows if dataset.eval else 0)
    reason = f"the longest row has {longest} tokens"
    if cut:
        reason = f"the model's limit, or what is affordable for the task; {cut} rows were cut"
    rule = min(limit, math.ceil(longest / 8) * 8)
    return ledger.take("", rule, reason, "spec.dataset.maxLength", job.spec.dataset.max_length)


def _steps(ledger: Ledger, rows: int, batch: int) -> tuple[int, float]:
    if "max_steps" in ledger.given:
        steps = int(ledger.given["max_steps"])
        epochs = steps * batch / rows
        ledger.note("spec.training.max_steps", steps, "given", True)
        ledger.note("spec.training.num_train_epochs", round(epochs, 4), "max_steps x global batch / rows", False)
        return steps, epochs
    rule = epochs_for(rows)
    reason = f"{rows} rows: 3 passes, at least 100 and at most 25,000 rows in all (OpenAI cookbook)"
    epochs = float(ledger.take("num_train_epochs", rule, reason))
    steps = max(1, math.ceil(round(epochs * rows / batch, 9)))
    ledger.note("spec.training.max_steps", steps, f"{epochs:g} epochs x {rows} rows / {batch} rows a step", False)
    return steps, epochs


def _warmup(ledger: Ledger, task: Task, steps: int) -> int:
    share, source = (
        (0.06, "RoBERTa paper, arXiv 1907.11692") if task is Task.CLASSIFICATION else (0.03, "QLoRA's training script")
    )
    given = ledger.given.get("warmup_steps")
    if isinstance(given, float) and given < 1:
        ledger.note("spec.training.warmup_steps", round(given * steps), f"{given:g} of {steps} steps, as given", True)
        return round(given * steps)
    return int(ledger.take("warmup_steps", round(share * steps), f"{share:.0%} of {steps} steps ({source})"))


def _eval_every(ledger: Ledger, steps: int, evaluated: bool) -> int:
    if not evaluated:
        return 0
    given = ledger.given.get("eval_steps")
    if isinstance(given, float) and given < 1:
        every = max(1, math.ceil(given * steps))  # rounded down, the last one would come twice
        ledger.note("spec.training.eval_steps", every, f"{given:g} of {steps} steps, as given", True)
        return every
    rule = max(1, math.ceil(steps / EVALUATIONS))
    return int(ledger.take("eval_steps", rule, f"{EVALUATIONS} evaluations over the run, and one at the end"))


def _best(ledger: Ledger, task: Task, evaluated: bool) -> tuple[str, bool]:
    if not evaluated:
        ledger.note(
            "spec.training.metric_for_best_model", "last", "without evaluation rows the last one is kept", False
        )
        return "last", True
    rule = "eval_macro_f1" if task is Task.CLASSIFICATION else "eval_loss"
    reason = "every label counts the same" if task is Task.CLASSIFICATION else "what training minimises, on unseen rows"
    metric = str(ledger.take("metric_for_best_model", rule, reason))
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    by_name = not metric.endswith(("loss", "perplexity"))
    return metric, bool(ledger.take("greater_is_better", by_name, f"follows from {metric}"))

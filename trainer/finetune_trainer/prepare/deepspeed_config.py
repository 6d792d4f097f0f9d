"""A DeepSpeed configuration of the user's own, checked where no GPU is paid for: against the job, against what is
promised (order of data, checkpoints that can be exported), against this image, and by DeepSpeed's own schema."""

import difflib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.plan.choice_log import problem
from finetune_trainer.prepare.plan.given_config import AUTO, SAME, config_value, settled

FIELD = "spec.deepspeed.config"
ZERO = "zero_optimization"
CPU_OPTIMIZER = "zero_force_ds_cpu_optimizer"
GATHER = f"{ZERO}.stage3_gather_16bit_weights_on_model_save"

# What would break a promise of the house: path, why, what to do instead. Refused where the value there is not false.
BREAKS: dict[str, tuple[str, str]] = {
    "elasticity.enabled": ("the number of ranks is the job's, and every step has the same rows", "spec.nodes"),
    "autotuning.enabled": ("it runs many short trials in place of the job", "leave it out"),
    "curriculum_learning.enabled": ("the order of data is a function of the seed alone", "leave it out"),
    "data_efficiency.enabled": ("the order of data is a function of the seed alone", "leave it out"),
    "progressive_layer_drop.enabled": ("the models of transformers do not support it", "leave it out"),
    "hybrid_engine.enabled": ("it is for reinforcement learning", "leave it out"),
    "compression_training": ("what is exported would not be what was trained", "leave it out"),
    "weight_quantization": ("what is exported would not be what was trained", "spec.method.type: qlora"),
    "sparse_attention": ("the models of transformers do not support it", "leave it out"),
    "amp.enabled": ("it needs NVIDIA's apex, which is not in the image", "bf16 or fp16"),
    "pipeline": ("the models of transformers are not pipelines", "leave it out"),
    "checkpoint.load_universal": ("which checkpoint is loaded is decided at each start", "leave it out"),
    "activation_checkpointing.partition_activations": (
        "the models of transformers recompute without DeepSpeed",
        "spec.training.activation_checkpointing",
    ),
    "activation_checkpointing.cpu_checkpointing": (
        "the models of transformers recompute without DeepSpeed",
        "spec.training.activation_checkpointing",
    ),
    "tensorboard.enabled": ("TensorBoard's events are always in storage", "leave it out"),
    "wandb.enabled": ("trackers are transformers'", "spec.training.report_to: [wandb]"),
    "comet.enabled": ("trackers are transformers'", "spec.training.report_to: [comet_ml]"),
    "csv_monitor.enabled": ("the worker's disk is not kept", "TensorBoard's events, which are in storage"),
}
KNOWN = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "bf16", "fp16", ZERO, "activation_checkpointing", "communication_data_type"),
    *("prescale_gradients", "gradient_predivide_factor", "zero_allow_untested_optimizer", CPU_OPTIMIZER),
    *("steps_per_print", "wall_clock_breakdown", "flops_profiler", "comms_logger", "data_types", "checkpoint", "aio"),
)
TORCH_ADAM = ("adam", "adamw")
COMPILED = (*TORCH_ADAM, "lamb", "lion", "adagrad", "onebitadam", "onebitlamb", "zerooneadam")  # by lower-case type


def check_config(job: FineTuneJob, device: Literal["cpu", "gpu"], world: int) -> None:
    """Refuse a configuration that cannot work, or that would not do what it says.

    Args:
        device: what the ranks run on.
        world: ranks in all.

    Raises:
        SpecError: all that is wrong, each with its path in the configuration.
    """
    config = job.spec.deepspeed.config
    if config is None:
        return
    given = job.spec.training.given()
    problems = [
        *_typos(config),
        *_contradictions(config, given),
        *_batches(config, given, world),
        *_without_effect(config, given),
    ]
    problems += [*_sharding(config), *_optimizer(config, device), *_precision(config, device), *promise_breaks(config)]
    if not problems:
        problems += _refused_by_deepspeed(config)
    if problems:
        raise SpecError(problems)


# ---------------------------------------------------------------- against the job


def _typos(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems of unknown blocks, which DeepSpeed ignores."""
    for name in config:
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.85)
        if near and name not in KNOWN:
            yield _problem("UnknownField", name, "is not a name of DeepSpeed's", f"did you mean {near[0]}?")


def _contradictions(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    settles: dict[str, tuple[str, Any]] = {}
    for path, names in SAME.items():
        value = config_value(config, path)
        if value is None or value == AUTO:
            continue
        each = value if len(names) > 1 and isinstance(value, list | tuple) else [value]
        for name, one in zip(names, each, strict=False):
            if name in given and given[name] != one:
                message = f"is {one}, and spec.training.{name} is {given[name]}"
                yield _problem("Conflict", path, message, f'write "auto" here, or leave spec.training.{name} out')
            before = settles.setdefault(name, (path, one))
            if before[1] != one:
                yield _problem("Conflict", path, f"is {one}, and {before[0]} is {before[1]}", "give both one value")


def _batches(config: Mapping[str, Any], given: Mapping[str, Any], world: int) -> Iterator[Problem]:
    sizes = {**given, **settled(config)}
    total, micro = sizes.get("global_batch_size"), sizes.get("per_device_train_batch_size")
    accumulation = sizes.get("gradient_accumulation_steps")
    path = next((path for path in list(SAME)[:3] if path in config and config[path] != AUTO), None)
    if path is None:
        return
    for size in list(SAME)[:3]:
        value = config.get(size, AUTO)
        if value != AUTO and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            yield _problem("InvalidValue", size, f"is {value!r}, not a number of rows or steps", 'write "auto"')
            return
    unit = world * (micro or 1) * (accumulation or 1)
    if total is not None and (total % unit or (micro and accumulation and total != unit)):
        parts = [f"{world} ranks", *(f"micro-batches of {micro}" for _ in [0] if micro)]
        parts += [f"accumulation of {accumulation}"] if accumulation else []
        whole = "the product" if micro and accumulation else "a multiple"
        message = f"makes a global batch of {total}, which is not {whole} of {' x '.join(parts)}"
        yield _problem("BatchMismatch", path, message, 'write "auto" for one of them')


def _without_effect(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems of values in `training` that this configuration would override or ignore."""
    cure = 'add it with the value "auto"'
    if given.get("max_grad_norm") and "gradient_clipping" not in config:
        message = f"is missing: spec.training.max_grad_norm {given['max_grad_norm']} would have no effect"
        yield _problem("NeedsOther", "gradient_clipping", message, cure)
    if "optimizer" in config:
        for path in (
            "optimizer.params.lr",
            "optimizer.params.betas",
            "optimizer.params.eps",
            "optimizer.params.weight_decay",
        ):
            named = [name for name in SAME[path] if name in given]
            if config_value(config, path) is None and (named or path.endswith(".lr")):
                what = f"spec.training.{named[0]}" if named else "the plan's learning rate"
                yield _problem("NeedsOther", path, f"is missing: {what} would have no effect", cure)
    if "scheduler" in config:
        for name in ("lr_scheduler_type", "lr_scheduler_kwargs"):
            if name in given:
                message = f"is given, and so is spec.training.{name}; there is one schedule"
                yield _problem("Conflict", "scheduler", message, "leave one of the two out")
        if str(config_value(config, "scheduler.type")).startswith("Warmup"):
            warms = config_value(config, "scheduler.type") != "WarmupCosineLR"
            for path in ("warmup_num_steps", *(["warmup_max_lr"] if warms else [])):
                if config_value(config, f"scheduler.params.{path}") is None:
                    message = "is missing: DeepSpeed would use its own default, not the plan's value"
                    yield _problem("NeedsOther", f"scheduler.params.{path}", message, cure)


# ---------------------------------------------------------------- against what DeepSpeed and the image can do


def _sharding(config: Mapping[str, Any]) -> Iterator[Problem]:
    zero = config.get(ZERO) or {}
    if not isinstance(zero, Mapping):
        yield _problem("InvalidValue", ZERO, "is not an object", 'write {"stage": 2}')
        return
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        yield _problem("InvalidValue", f"{ZERO}.stage", f"is {stage!r}", "write 0, 1, 2 or 3")
        return
    for block, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = config_value(zero, f"{block}.device")
        if device == "nvme":
            message = '"nvme" is not supported yet: nothing is kept on disks'
            yield _problem("NotSupportedYet", f"{ZERO}.{block}.device", message, 'use "cpu", the node\'s memory')
        elif device == "cpu" and stage < least:
            message = f"is cpu, and stage is {stage}; DeepSpeed needs stage {least} or more for that"
            yield _problem("NeedsOther", f"{ZERO}.{block}.device", message, f"set {ZERO}.stage to {least} or more")
    for old in ("cpu_offload", "cpu_offload_param"):
        if zero.get(old) is not None:
            new = "offload_param" if old.endswith("param") else "offload_optimizer"
            message = f"is DeepSpeed's old name of {new}"
            yield _problem("UnknownField", f"{ZERO}.{old}", message, f'write "{new}": {{"device": "cpu"}}')
    if stage == 3 and config_value(config, GATHER) is not True:
        message = "is not true, and stage is 3: a checkpoint would hold only shards, which cannot be exported"
        yield _problem("NeedsOther", GATHER, message, "set it to true")
    if config_value(zero, "offload_optimizer.device") == "cpu" and config.get(CPU_OPTIMIZER, True) is not False:
        ours = "optimizer" not in config or config_value(config, "optimizer.params.torch_adam")
        if ours:
            message = "is not false, and the optimizer is torch's: DeepSpeed offloads no optimizer but its own"
            yield _problem("NeedsOther", CPU_OPTIMIZER, message, "set it to false")


def _optimizer(config: Mapping[str, Any], device: str) -> Iterator[Problem]:
    kind = config_value(config, "optimizer.type")
    if "optimizer" in config and not isinstance(kind, str):
        yield _problem("InvalidValue", "optimizer.type", "is missing", "name the optimizer, such as AdamW")
        return
    if kind is None or kind.lower() not in COMPILED or config_value(config, "optimizer.params.torch_adam"):
        return
    on_host = device == "cpu" or config_value(config, f"{ZERO}.offload_optimizer.device") == "cpu"
    compiler = "c++" if on_host else "nvcc"
    if shutil.which(compiler) is None:
        message = f"is {kind}, which DeepSpeed compiles at its first start, and this image has no {compiler}"
        torch_own = 'add "torch_adam": true to optimizer.params, or leave the optimizer out'
        cure = torch_own if kind.lower() in TORCH_ADAM else "use AdamW with torch_adam, or an image with a compiler"
        yield _problem("NotInstalled", "optimizer.type", message, cure)


def _precision(config: Mapping[str, Any], device: str) -> Iterator[Problem]:
    half, brain = config_value(config, "fp16.enabled"), config_value(config, "bf16.enabled")
    if half is True and brain is True:
        yield _problem("Conflict", "fp16.enabled", "is true, and so is bf16.enabled", "enable one of the two")
    if half is True and device == "cpu":
        message = "is true, but DeepSpeed has no float16 on CPU"
        yield _problem("NotOnCPU", "fp16.enabled", message, "enable bf16, or ask for GPUs")


def promise_breaks(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each block that would break a promise of ours."""
    for path, (why, instead) in BREAKS.items():
        value = config_value(config, path)
        if value is not None and value is not False:
            cure = f"use {instead}" if instead != "leave it out" else instead
            yield _problem("NotSupportedYet", path, f"is not supported: {why}", cure)
    for path in ("tensor_parallel.autotp_size", "sequence_parallel_size"):
        if isinstance(size := config_value(config, path), int) and size > 1:
            yield _problem("NotSupportedYet", path, f"is {size}; every rank has rows of its own", "leave it out")


def _refused_by_deepspeed(config: Mapping[str, Any]) -> list[Problem]:
    """Yield the errors of DeepSpeed's own schema of a block; "auto" stands for values that transformers fills in."""
    with _named_accelerator():
        from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    blocks: dict[str, type[BaseModel]] = {
        ZERO: DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
    }
    problems = []
    for name, schema in blocks.items():
        block = {key: value for key, value in (config.get(name) or {}).items() if value != AUTO}
        try:
            schema(**block)
        except ValidationError as error:
            for one in error.errors():
                path = ".".join([name, *(str(part) for part in one["loc"])])
                problems.append(
                    _problem("InvalidValue", path, f"DeepSpeed: {one['msg']}", "see DeepSpeed's configuration page")
                )
    return problems


@contextmanager
def _named_accelerator() -> Iterator[None]:
    """Name an accelerator while DeepSpeed is imported: it would look for one and print what it finds."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = before or "cpu"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]


def _problem(code: str, path: str, message: str, cure: str) -> Problem:
    return problem(code, f"{FIELD}.{path}", message, cure)

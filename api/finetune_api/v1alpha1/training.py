"""Hyperparameters under their libraries' own names: `spec.training` (transformers) and `spec.method.lora` (PEFT).

A name that the library has and these models lack is in OWNED (another field of the job decides it), in NO_COUNTERPART
or in LATER.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.v1alpha1.base import (
    FlagOrWord,
    FreeObject,
    Names,
    StepsOrRatio,
    Text,
    Verbatim,
    Word,
    Words,
    Words256,
)

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Index = Annotated[int, Field(ge=0, le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

# reduce_lr_on_plateau and greedy are not here: DeepSpeed's schedule has no metric to follow.
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


class TrainingSpec(Verbatim):
    """Names and values of transformers' TrainingArguments, plus global_batch_size; what is omitted is planned."""

    global_batch_size: Count | None = None
    """Rows per optimizer step over all ranks: micro-batch x accumulation x world size."""
    per_device_train_batch_size: Count | None = None
    """Micro-batch: rows per rank and forward pass."""
    gradient_accumulation_steps: Count | None = None
    """Micro-batches per optimizer step."""
    per_device_eval_batch_size: Count | None = None
    """Rows per rank and forward pass in evaluation."""
    num_train_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Passes over the training data; may be a fraction."""
    max_steps: Count | None = None
    """Optimizer steps in the whole run; wins over num_train_epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate."""
    lr_scheduler_type: Scheduler | None = None
    """Shape of the learning rate over the run."""
    lr_scheduler_kwargs: FreeObject | None = None
    """Further arguments of the schedule."""
    warmup_steps: StepsOrRatio | None = None
    """Steps until the learning rate is at its peak; below 1 it is a ratio of all steps."""
    weight_decay: Fraction | None = None
    """AdamW's weight decay; not applied to biases and norms."""
    adam_beta1: BelowOne | None = None
    """Decay of Adam's first moment."""
    adam_beta2: BelowOne | None = None
    """Decay of Adam's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] | None = None
    """Adam's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Gradients are clipped to this norm; 0 = not clipped."""
    optim: Word | None = None
    """Optimizer by transformers' name."""
    optim_args: Text | None = None
    """Further arguments of the optimizer."""
    optim_target_modules: Words | None = None
    """Modules for optimizers that project gradients."""
    label_smoothing_factor: BelowOne | None = None
    """Label smoothing."""
    neftune_noise_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Noise on embeddings (NEFTune)."""
    average_tokens_across_devices: bool | None = None
    """Weigh each rank's loss by its tokens."""
    bf16: bool | None = None
    """Mixed precision in bfloat16."""
    fp16: bool | None = None
    """Mixed precision in float16 with loss scaling; needs a GPU."""
    bf16_full_eval: bool | None = None
    """Evaluate with bfloat16 weights."""
    fp16_full_eval: bool | None = None
    """Evaluate with float16 weights."""
    tf32: bool | None = None
    """TensorFloat-32 matrix products on Ampere and newer GPUs."""
    activation_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about 20 % slower."""
    activation_checkpointing_kwargs: FreeObject | None = None
    """Further arguments of activation checkpointing."""
    gradient_checkpointing: bool | None = None
    """Older name of activation_checkpointing."""
    gradient_checkpointing_kwargs: FreeObject | None = None
    """Older name of activation_checkpointing_kwargs."""
    torch_compile: bool | None = None
    """Compile the model with torch.compile."""
    torch_compile_backend: Word | None = None
    """Backend of torch.compile."""
    torch_compile_mode: Word | None = None
    """Mode of torch.compile."""
    use_liger_kernel: bool | None = None
    """Liger kernels."""
    liger_kernel_config: FreeObject | None = None
    """Which Liger kernels."""
    torch_empty_cache_steps: Count | None = None
    """Empty the GPU's cache every so many steps."""
    logging_steps: StepsOrRatio | None = None
    """Accepted, without effect: every step is reported."""
    logging_first_step: bool | None = None
    """Accepted, without effect: every step is reported."""
    logging_nan_inf_filter: bool | None = None
    """Accepted, without effect: a loss that is no number ends the run and is reported."""
    eval_steps: StepsOrRatio | None = None
    """Steps between two evaluations; below 1 it is a ratio of all steps."""
    eval_delay: Annotated[float, Field(ge=0)] | None = None
    """Steps before the first evaluation."""
    eval_on_start: bool | None = None
    """Evaluate before the first step."""
    eval_accumulation_steps: Count | None = None
    """Accepted, without effect: an evaluation keeps one prediction a row, there is nothing to move."""
    metric_for_best_model: Word | None = None
    """Metric that chooses the best checkpoint, such as eval_loss."""
    greater_is_better: bool | None = None
    """Whether a greater value of that metric is better."""
    early_stopping_patience: Count | None = None
    """Evaluations without a better metric_for_best_model after which the run ends; omitted = it runs to its end."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] | None = None
    """By how much the metric has to be better; only with early_stopping_patience."""
    mlm_probability: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the tokens that are hidden; only for the task masked-lm."""
    report_to: Names | None = None
    """Trackers by transformers' names, such as wandb or mlflow; TensorBoard's events are always in storage."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] | None = None
    """Seed of everything random, the order of samples included."""
    full_determinism: bool | None = None
    """Deterministic kernels only; slower."""
    dataloader_num_workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes per rank that load data."""
    dataloader_pin_memory: bool | None = None
    """Accepted, without effect: memory is pinned where there is a GPU."""
    dataloader_persistent_workers: bool | None = None
    """Keep loader processes between epochs."""
    dataloader_prefetch_factor: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Batches each loader process reads ahead."""

    def given(self) -> dict[str, Any]:
        """Only what the user wrote and has an effect, by its own name."""
        return {name: value for name, value in super().given().items() if name not in WITHOUT_EFFECT}


class LoraSpec(Verbatim):
    """Names and values of PEFT's LoraConfig; what is omitted is planned."""

    r: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Rank of the update matrices."""
    lora_alpha: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Scale of the update: alpha / r, or alpha / sqrt(r) with use_rslora."""
    lora_dropout: BelowOne | None = None
    """Dropout before the adapter."""
    target_modules: Words | None = None
    """Modules to adapt: names, a regular expression, or all-linear."""
    exclude_modules: Words | None = None
    """Modules not to adapt: names or a regular expression."""
    modules_to_save: Words256 | None = None
    """Modules trained and saved in full beside the adapter. Newly initialised ones always are."""
    use_rslora: bool | None = None
    """Rank-stabilised scale."""
    use_dora: bool | None = None
    """Weight-decomposed adapters (DoRA)."""
    bias: Literal["none", "all", "lora_only"] | None = None
    """Which biases are trained."""
    lora_bias: bool | None = None
    """A bias in the adapter's B matrix."""
    init_lora_weights: FlagOrWord | None = None
    """How the adapter starts: true, false, gaussian, pissa, olora ..."""
    layers_to_transform: Annotated[list[Index], Field(max_length=1024)] | None = None
    """Indices of the layers to adapt."""
    layers_pattern: Word | None = None
    """Name of the layer list, where layers_to_transform is given."""
    rank_pattern: Annotated[dict[str, Annotated[int, Field(ge=1, le=8192)]], Field(max_length=256)] | None = None
    """Ranks of single modules, by name or regular expression."""
    alpha_pattern: Annotated[dict[str, Annotated[int, Field(ge=1, le=65536)]], Field(max_length=256)] | None = None
    """Alphas of single modules, by name or regular expression."""
    target_parameters: Words256 | None = None
    """Parameters (not modules) to adapt, such as the experts of a mixture."""
    trainable_token_indices: Annotated[list[Index], Field(max_length=1024)] | None = None
    """Tokens whose embeddings are trained."""
    fan_in_fan_out: bool | None = None
    """Set where weights are stored (in, out), as in GPT-2."""


# ---------------------------------------------------------------- names of the libraries that the job decides elsewhere

_CHECKPOINT = "spec.checkpoint.everySteps"
_METRIC = "spec.training.metric_for_best_model"
_STORAGE = "spec.storage.uri"

TRAINING_OWNED: dict[str, str] = {
    "output_dir": _STORAGE,
    "logging_dir": _STORAGE,
    "deepspeed": "spec.deepspeed",
    "fsdp": "spec.deepspeed.stage",
    "fsdp_config": "spec.deepspeed.stage",
    "accelerator_config": "spec.deepspeed",
    "save_strategy": _CHECKPOINT,
    "save_steps": _CHECKPOINT,
    "save_total_limit": "spec.checkpoint.keepLast",
    "resume_from_checkpoint": "spec.resumeFrom",
    "load_best_model_at_end": _METRIC,
    "hub_token": "spec.model.tokenSecretRef",
    "use_cpu": "spec.resourcesPerNode",
    "no_cuda": "spec.resourcesPerNode",
    "ddp_timeout": "spec.recovery.hangTimeoutSeconds",
    "auto_find_batch_size": "spec.recovery.onOutOfMemory",
    "eval_strategy": "spec.training.eval_steps",
    "evaluation_strategy": "spec.training.eval_steps",
    "do_train": "spec.dataset.train",
    "do_eval": "spec.dataset.eval",
    "run_name": "metadata.name",
    "project": "metadata.name",
    "data_seed": "spec.training.seed",
    "remove_unused_columns": "spec.dataset.columns",
    "label_names": "spec.dataset.columns",
    "use_cache": "spec.training.activation_checkpointing",
    "warmup_ratio": "spec.training.warmup_steps",
    "tokenizer": "spec.model",
}

_LAUNCH = "the processes of a run are started and connected by finetune-operator"
_DDP = "DeepSpeed trains, not DDP; its settings are those of spec.deepspeed"
_WHOLE = "a checkpoint holds all that is needed to go on, as safetensors, each file once"
_REPORTS = "every step is reported: to the terminal, the object and TensorBoard's events"
_SCORES = "scores are computed batch by batch, and which there are follows from the task"
_ORDER = "the order of rows follows from spec.training.seed alone, also after a restart"
_HUB = "nothing is uploaded to a hub; upload the finished artifact with `hf upload`"
_PADDING = "batches hold no padding where the model's attention can do it, else rows of like length share one"
_TRACKIO = "trackio's settings are environment variables; see spec.podTemplate.env"

TRAINING_NO_COUNTERPART: dict[str, str] = {
    **dict.fromkeys(("local_rank", "parallelism_config"), _LAUNCH),
    **dict.fromkeys(
        (
            "ddp_backend",
            "ddp_broadcast_buffers",
            "ddp_bucket_cap_mb",
            "ddp_find_unused_parameters",
            "ddp_static_graph",
        ),
        _DDP,
    ),
    **dict.fromkeys(
        (
            "enable_jit_checkpoint",
            "restore_callback_states_from_checkpoint",
            "save_on_each_node",
            "save_only_model",
            "save_safetensors",
        ),
        _WHOLE,
    ),
    **dict.fromkeys(
        (
            "debug",
            "disable_tqdm",
            "include_num_input_tokens_seen",
            "log_level",
            "log_level_replica",
            "log_on_each_node",
            "logging_strategy",
            "skip_memory_metrics",
        ),
        _REPORTS,
    ),
    **dict.fromkeys(
        (
            "batch_eval_metrics",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "prediction_loss_only",
        ),
        _SCORES,
    ),
    **dict.fromkeys(("dataloader_in_order", "ignore_data_skip", "train_sampling_strategy"), _ORDER),
    **dict.fromkeys(
        ("hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "push_to_hub"), _HUB
    ),
    **dict.fromkeys(("group_by_length", "length_column_name"), _PADDING),
    **dict.fromkeys(("trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"), _TRACKIO),
    "do_predict": "rows without answers are not predicted; the snippet in the artifact's README.md does that",
    "overwrite_output_dir": "every run has a folder of its own, and nothing is overwritten",
    "dataloader_drop_last": "every row is trained once an epoch",
    "dataloader_multiprocessing_context": "loader processes are started in the way that is safe beside DeepSpeed",
}

# Accepted, because what they ask for happens whatever they say; `notes` tells so.
WITHOUT_EFFECT: dict[str, str] = {
    "logging_steps": "every step is reported",
    "logging_first_step": "every step is reported",
    "logging_nan_inf_filter": "a loss that is no number ends the run and is reported",
    "eval_accumulation_steps": "an evaluation keeps one prediction a row, there is nothing to move",
    "dataloader_pin_memory": "memory is pinned where there is a GPU",
}

LORA_OWNED: dict[str, str] = {
    "task_type": "spec.task",
    "peft_type": "spec.method.type",
    "auto_mapping": "spec.method.type",
    "peft_version": "spec.image",
    "base_model_name_or_path": "spec.model",
    "revision": "spec.model.revision",
    "inference_mode": "spec.export",
    "runtime_config": "spec.deepspeed.offload",
}

LORA_LATER: frozenset[str] = frozenset(
    {
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "kasa_config",
        "layer_replication",
        "loftq_config",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "monteclora_config",
        "qalora_group_size",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    }
)

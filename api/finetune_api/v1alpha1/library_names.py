"""Names of transformers' TrainingArguments and PEFT's LoraConfig that are not fields of a job.

OWNED: another field of the job decides it. NO_COUNTERPART: nothing here corresponds to it. LATER: not supported yet.
"""

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

_LAUNCH = "finetune-operator starts and connects the processes of a run"
_DDP = "training uses DeepSpeed instead of DDP; see spec.deepspeed"
_WHOLE = "a checkpoint holds everything that a resumed run needs, as safetensors, each file once"
_REPORTS = "every step is reported to the terminal, the status and the TensorBoard events"
_SCORES = "metrics are computed batch by batch; the task determines them"
_ORDER = "spec.training.seed alone determines the order of rows, also after a restart"
_HUB = "nothing is uploaded to a hub; upload the finished artifact with `hf upload`"
_PADDING = "batches have no padding if the attention of the model allows it; otherwise they hold rows of similar length"
_TRACKIO = "set the environment variables of trackio; see spec.podTemplate.env"

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
    "do_predict": "a job does not predict; use the snippet in the README.md of the artifact",
    "overwrite_output_dir": "every run has its own folder, and nothing is overwritten",
    "dataloader_drop_last": "every epoch trains every row once",
    "dataloader_multiprocessing_context": "loader processes are started in a way that is safe with DeepSpeed",
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

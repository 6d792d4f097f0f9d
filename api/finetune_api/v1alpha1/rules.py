"""Rules that span several fields. Each rule stands here twice: as a Python function, and in CEL for the API server.

The Python function reads the job as it was written, so that a rule is checked even if another field is malformed. A
value of the wrong type counts as not given; it has an error of its own.
"""

from finetune_api.messages import Task
from finetune_api.v1alpha1.evaluation_rules import EVALUATION_RULES
from finetune_api.v1alpha1.given import (
    adapted_and_saved,
    adapter,
    batch,
    biased,
    checkpointing,
    data_source,
    delimiter,
    form_of_method,
    has,
    indivisible_ranks,
    missing_schedule_values,
    model_source,
    mounts,
    not_with,
    offload,
    only_with,
    prefetch,
    warmup,
    whole_devices,
    whole_parameters,
)
from finetune_api.v1alpha1.judge_spec import JUDGE_RULES
from finetune_api.v1alpha1.preference_spec import PREFERENCE_RULES
from finetune_api.v1alpha1.push_spec import PUSH_RULES
from finetune_api.v1alpha1.rule import Rule, requires_task
from finetune_api.v1alpha1.serve_spec import SERVE_RULES
from finetune_api.v1alpha1.suite_spec import SUITE_RULES

_TRAINING = ("spec", "training")

RULES: tuple[Rule, ...] = (
    Rule(
        at=("spec", "model"),
        field="",
        code="ExactlyOne",
        broken=model_source,
        cure="give exactly one of `name` (hub), `uri` (s3:// or file://) and `persistentVolumeClaim`",
        cel="[has(self.name), has(self.uri), has(self.persistentVolumeClaim)].filter(given, given).size() == 1",
        says="must have exactly one of name, uri and persistentVolumeClaim",
    ),
    Rule(
        at=("spec", "model"),
        field="revision",
        code="NeedsOther",
        broken=only_with("revision", "name"),
        cure="leave it out, or set spec.model.name",
        cel="!has(self.revision) || has(self.name)",
        says="revision requires name: leave it out, or set name",
    ),
    Rule(
        at=("spec", "model"),
        field="tokenSecretRef",
        code="NeedsOther",
        broken=only_with("tokenSecretRef", "name"),
        cure="leave it out, or set spec.model.name",
        cel="!has(self.tokenSecretRef) || has(self.name)",
        says="tokenSecretRef requires name: leave it out, or set name",
    ),
    Rule(
        at=("spec", "method"),
        field="lora",
        code="Conflict",
        broken=lambda method: (
            "is given, but type is full; only lora and qlora train an adapter"
            if method.get("type") == "full" and has(method, "lora")
            else None
        ),
        cure="leave it out, or set spec.method.type to lora",
        cel="self.type != 'full' || !has(self.lora)",
        says="lora is given, but type is full: leave it out, or set type to lora",
    ),
    Rule(
        at=("spec", "dataset"),
        field="",
        code="ExactlyOne",
        broken=data_source,
        cure="give exactly one of `train` (one URI) and `mix` (several sources, each with a weight)",
        cel="has(self.train) != has(self.mix)",
        says="must have exactly one of train and mix",
    ),
    Rule(
        at=("spec", "dataset"),
        field="delimiter",
        code="Conflict",
        broken=delimiter,
        cure="leave it out, or set spec.dataset.format to csv, tsv (one character) or pairs (one or more)",
        cel="!has(self.delimiter) || !has(self.format) || self.format == 'pairs'"
        " || (self.format in ['csv', 'tsv'] && size(self.delimiter) == 1)",
        says="delimiter requires format pairs, or format csv or tsv and one character",
    ),
    Rule(
        at=("spec", "dataset"),
        field="documents",
        code="Conflict",
        broken=lambda dataset: (
            f"is given, but format is {dataset['format']}; only the format text has documents"
            if has(dataset, "documents") and dataset.get("format") not in (None, "text")
            else None
        ),
        cure="leave it out, or set spec.dataset.format to text",
        cel="!has(self.documents) || !has(self.format) || self.format == 'text'",
        says="documents requires format text",
    ),
    Rule(
        at=_TRAINING,
        field="fp16",
        code="Conflict",
        broken=lambda training: (
            "is true, and bf16 is true; only one of them can be true"
            if training.get("fp16") is True and training.get("bf16") is True
            else None
        ),
        cure="keep bf16 on Ampere and newer GPUs and on CPUs, keep fp16 on older GPUs",
        cel="!(has(self.fp16) && self.fp16 && has(self.bf16) && self.bf16)",
        says="fp16 and bf16 are both true: keep one",
    ),
    Rule(
        at=_TRAINING,
        field="gradient_checkpointing",
        code="Conflict",
        broken=checkpointing,
        cure="keep activation_checkpointing",
        cel="!has(self.gradient_checkpointing) || !has(self.activation_checkpointing)"
        " || self.gradient_checkpointing == self.activation_checkpointing",
        says="gradient_checkpointing and activation_checkpointing are two names of one setting: keep the second",
    ),
    Rule(
        at=_TRAINING,
        field="dataloader_prefetch_factor",
        code="NeedsOther",
        broken=prefetch,
        cure="set dataloader_num_workers to 1 or more, or leave it out",
        cel="!has(self.dataloader_prefetch_factor)"
        " || (has(self.dataloader_num_workers) && self.dataloader_num_workers > 0)",
        says="dataloader_prefetch_factor requires dataloader_num_workers of 1 or more",
    ),
    Rule(
        at=_TRAINING,
        field="warmup_steps",
        code="NeverReached",
        broken=warmup,
        cure="lower it to a tenth of the steps or less, or write a ratio such as 0.03",
        cel="!has(self.warmup_steps) || !has(self.max_steps) || self.warmup_steps < double(self.max_steps)",
        says="warmup_steps must be less than max_steps; otherwise the learning rate never reaches its peak",
    ),
    Rule(
        at=_TRAINING,
        field="lr_scheduler_type",
        code="NeedsOther",
        broken=missing_schedule_values,
        cure="add it, such as lr_scheduler_kwargs: {min_lr_rate: 0.1}, or use cosine",
        cel=None,
        says="lr_scheduler_kwargs must have min_lr or min_lr_rate for cosine_with_min_lr, and num_decay_steps for"
        " warmup_stable_decay",
    ),
    Rule(
        at=("spec", "method", "lora"),
        field="modules_to_save",
        code="Conflict",
        broken=adapted_and_saved,
        cure="remove it from one of the two",
        cel=None,
        says="modules_to_save and target_modules must not name the same module",
    ),
    Rule(
        at=("spec", "method"),
        field="freeze",
        code="Conflict",
        broken=lambda method: (
            f"is given, but type is {method['type']}; the whole base model of an adapter is frozen"
            if method.get("type") in ("lora", "qlora") and method.get("freeze")
            else None
        ),
        cure="leave it out, set spec.method.type to full, or name modules in lora.exclude_modules",
        cel="self.type == 'full' || !has(self.freeze) || size(self.freeze) == 0",
        says="freeze requires type full: the whole base model of an adapter is frozen",
    ),
    Rule(
        at=("spec",),
        field="model.adapter",
        code="Conflict",
        broken=adapter,
        cure="leave the adapter out, or set type to lora or qlora and leave method.lora and newTokens out",
        cel="!has(self.model.adapter) || (self.method.type != 'full' && !has(self.method.lora)"
        " && (!has(self.model.newTokens) || size(self.model.newTokens) == 0))",
        says="model.adapter requires type lora or qlora and excludes method.lora and model.newTokens: the adapter has"
        " its own configuration",
    ),
    requires_task("embedding", Task.EMBEDDING),
    Rule(
        at=("spec", "method", "lora"),
        field="layers_to_transform",
        code="Conflict",
        broken=lambda lora: (
            "is given, but target_modules is not a list of names; PEFT selects layers only from a list of names"
            if has(lora, "layers_to_transform") and not isinstance(lora.get("target_modules"), list)
            else None
        ),
        cure="name the modules, such as target_modules: [q_proj, v_proj]",
        cel=None,
        says="layers_to_transform requires target_modules as a list of names",
    ),
    Rule(
        at=("spec", "method", "lora"),
        field="lora_bias",
        code="Conflict",
        broken=biased,
        cure="leave out lora_bias or the other field",
        cel=None,
        says="lora_bias excludes use_dora and requires init_lora_weights true or false: PEFT supports nothing else",
    ),
    Rule(
        at=("spec", "method", "lora"),
        field="target_parameters",
        code="Conflict",
        broken=whole_parameters,
        cure="leave out the other fields, or name modules in target_modules instead",
        cel="!has(self.target_parameters) || !((has(self.lora_dropout) && self.lora_dropout > 0.0)"
        " || (has(self.use_dora) && self.use_dora) || (has(self.lora_bias) && self.lora_bias))",
        says="target_parameters excludes lora_dropout, use_dora and lora_bias: PEFT supports them for modules only",
    ),
    Rule(
        at=("spec", "deepspeed"),
        field="offload.parameters",
        code="NeedsOther",
        broken=offload,
        cure="set stage to 3, or offload only the optimizer",
        cel="!has(self.stage) || self.stage == 3 || !has(self.offload) || !has(self.offload.parameters)"
        " || self.offload.parameters == 'none'",
        says="offload.parameters requires stage 3",
    ),
    Rule(
        at=("spec", "resourcesPerNode", "limits"),
        field="",
        code="InvalidQuantity",
        broken=whole_devices,
        cure="write a whole number of devices",
        cel=None,
        says="the number of devices such as nvidia.com/gpu must be whole",
    ),
    Rule(
        at=("spec", "export"),
        field="forms",
        code="Conflict",
        broken=not_with("forms", "merge"),
        cure="leave merge out, and write `forms: [merged]`, or several forms",
        cel="!has(self.forms) || !has(self.merge)",
        says="forms excludes merge: leave merge out",
    ),
    Rule(
        at=("spec",),
        field="export.forms",
        code="NoAdapter",
        broken=form_of_method,
        cure="write `merged`, which is the trained model, or set method.type to lora or qlora",
        cel="!has(self.export) || !has(self.export.forms) || !('adapter' in self.export.forms)"
        " || self.method.type != 'full'",
        says="export.forms: adapter requires method.type lora or qlora",
    ),
    Rule(
        at=("spec",),
        field="processesPerNode",
        code="TooManyProcesses",
        broken=indivisible_ranks,
        cure="leave it out to get one rank per GPU, or request more GPUs in spec.resourcesPerNode.limits",
        cel=None,
        says="processesPerNode must not be greater than the number of GPUs of a node",
    ),
    Rule(
        at=("spec", "podTemplate"),
        field="volumeMounts",
        code="NeedsOther",
        broken=mounts,
        cure="add the volume to spec.podTemplate.volumes, or correct the name",
        cel=None,
        says="volumeMounts must name volumes from podTemplate.volumes",
    ),
    Rule(
        at=("spec", "method", "lora"),
        field="layers_pattern",
        code="NeedsOther",
        broken=only_with("layers_pattern", "layers_to_transform"),
        cure="name the layers in layers_to_transform, or leave it out",
        cel="!has(self.layers_pattern) || has(self.layers_to_transform)",
        says="layers_pattern requires layers_to_transform",
    ),
    Rule(
        at=("spec", "deepspeed"),
        field="config",
        code="Conflict",
        broken=not_with("config", "stage", "offload"),
        cure="write stage and offload into the config, or leave the config out",
        cel="!has(self.config) || !(has(self.stage) || has(self.offload))",
        says="config is used without changes: write stage and offload into it, or leave it out",
    ),
    Rule(
        at=("spec", "checkpoint"),
        field="everyMinutes",
        code="Conflict",
        broken=not_with("everyMinutes", "everySteps"),
        cure="keep one of the two",
        cel="!has(self.everyMinutes) || !has(self.everySteps)",
        says="everyMinutes and everySteps exclude each other",
    ),
    Rule(
        at=("spec", "scratch"),
        field="medium",
        code="Conflict",
        broken=not_with("medium", "storageClassName"),
        cure="keep medium for an emptyDir, or storageClassName for a volume",
        cel="!has(self.medium) || !has(self.storageClassName)",
        says="medium and storageClassName exclude each other",
    ),
    Rule(
        at=("spec",),
        field="training.global_batch_size",
        code="NotDivisible",
        broken=batch,
        cure="change it, or leave out one of the others; the plan then chooses that value",
        cel="!has(self.training) || !has(self.training.global_batch_size) || self.training.global_batch_size % ("
        "(has(self.training.per_device_train_batch_size) ? self.training.per_device_train_batch_size : 1)"
        " * (has(self.training.gradient_accumulation_steps) ? self.training.gradient_accumulation_steps : 1)"
        " * (has(self.processesPerNode) ? self.processesPerNode * self.nodes : 1)) == 0",
        says="training.global_batch_size must be a multiple of per_device_train_batch_size"
        " x gradient_accumulation_steps x processesPerNode x nodes; values that are not given are left out",
    ),
    *EVALUATION_RULES,
    *PREFERENCE_RULES,
    *JUDGE_RULES,
    *PUSH_RULES,
    *SERVE_RULES,
    *SUITE_RULES,
)

"""Hyperparameters under the names of their libraries: `spec.training` (transformers), `spec.method.lora` (PEFT).

`library_names.py` lists the names that the libraries have and these models lack.
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from finetune_api.optimizers import OPTIMIZERS, REFUSED
from finetune_api.v1alpha1.markers import KeepsData, Later, ShapesData, Supported, WithoutEffect, marker_of
from finetune_api.v1alpha1.spec_base import (
    ClassWeights,
    FlagOrWord,
    FreeObject,
    Names,
    StepsOrRatio,
    Text,
    Verbatim,
    Word,
    Words,
    Words256,
    broken,
    shown,
)

_PROJECTED = "optimizers that project gradients need whole matrices, and ZeRO gives an optimizer flat shares of them"
_EVALUATED = "evaluations run every eval_steps steps and at the end"

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Index = Annotated[int, Field(ge=0, le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

# reduce_lr_on_plateau and greedy are missing: the schedule of DeepSpeed gets no metric.
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


def _known_optimizer(name: str) -> str:
    """Return the name of an optimizer that exists and works here."""
    if name in OPTIMIZERS:
        return name
    if name in REFUSED:
        reason, instead = REFUSED[name]
        raise broken("NotSupportedYet", f"is {shown(name)}, which is not supported: {reason}", f"use {instead}")
    near = difflib.get_close_matches(name.lower().replace("-", "_"), OPTIMIZERS, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]}?" if near else "use adamw_torch"
    raise broken("InvalidValue", f"is {shown(name)}; must be one of {', '.join(OPTIMIZERS)}", cure)


class TrainingSpec(Verbatim):
    """Names and values of transformers' TrainingArguments, plus global_batch_size. The plan chooses what is omitted."""

    global_batch_size: Annotated[Count | None, Supported(), KeepsData()] = None
    """Rows per optimizer step over all ranks: micro-batch x accumulation x world size."""
    per_device_train_batch_size: Annotated[Count | None, Supported(), KeepsData()] = None
    """Micro-batch: rows per rank and forward pass."""
    gradient_accumulation_steps: Annotated[Count | None, Supported(), KeepsData()] = None
    """Micro-batches per optimizer step."""
    per_device_eval_batch_size: Annotated[Count | None, Supported(), KeepsData()] = None
    """Rows per rank and forward pass in evaluation."""
    num_train_epochs: Annotated[Annotated[float, Field(gt=0, le=10_000)] | None, Supported(), KeepsData()] = None
    """Passes over the training data; fractions are allowed."""
    max_steps: Annotated[Count | None, Supported(), KeepsData()] = None
    """Optimizer steps in the whole run; overrides num_train_epochs."""
    learning_rate: Annotated[Annotated[float, Field(gt=0, le=10)] | None, Supported(), KeepsData()] = None
    """Peak learning rate."""
    lr_scheduler_type: Annotated[Scheduler | None, Supported(), KeepsData()] = None
    """Schedule of the learning rate."""
    lr_scheduler_kwargs: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Additional arguments of the schedule."""
    warmup_steps: Annotated[StepsOrRatio | None, Supported(), KeepsData()] = None
    """Steps until the learning rate reaches its peak; a value below 1 is a ratio of all steps."""
    weight_decay: Annotated[Fraction | None, Supported(), KeepsData()] = None
    """Weight decay of the optimizer; does not apply to biases and norms."""
    adam_beta1: Annotated[BelowOne | None, Supported(), KeepsData()] = None
    """Decay of the first moment of Adam."""
    adam_beta2: Annotated[BelowOne | None, Supported(), KeepsData()] = None
    """Decay of the second moment of Adam."""
    adam_epsilon: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Supported(), KeepsData()] = None
    """Epsilon of Adam."""
    max_grad_norm: Annotated[Annotated[float, Field(ge=0, le=1_000_000)] | None, Supported(), KeepsData()] = None
    """Norm to which gradients are clipped; 0 = no clipping."""
    optim: Annotated[Annotated[Word, AfterValidator(_known_optimizer)] | None, Supported(), KeepsData()] = None
    """Optimizer, by its name in transformers, such as adamw_torch, adamw_bnb_8bit, lion_32bit, adafactor or muon."""
    optim_args: Annotated[Text | None, Supported(), KeepsData()] = None
    """Additional arguments of the optimizer, such as momentum=0.9,nesterov=true."""
    optim_target_modules: Annotated[Words | None, Later(_PROJECTED), KeepsData()] = None
    """Modules to which optimizers that project gradients apply."""
    label_smoothing_factor: Annotated[BelowOne | None, Supported(), KeepsData()] = None
    """Share of each target that is spread evenly over all classes or tokens; evaluations report the plain loss."""
    class_weights: Annotated[ClassWeights | None, Supported(), KeepsData()] = None
    """Weights of the labels in the loss: `balanced` (by their counts), or an object with a weight for each label.
    A label that the object does not name has the weight 1. For labels of texts (one each) and of words."""
    neftune_noise_alpha: Annotated[Annotated[float, Field(gt=0, le=1000)] | None, Supported(), KeepsData()] = None
    """Amount of noise on embeddings in training (NEFTune), such as 5."""
    average_tokens_across_devices: Annotated[
        bool | None, Later("losses are always weighted by tokens", harmless=(True,)), KeepsData()
    ] = None
    """Weight the loss of each rank by its number of tokens."""
    bf16: Annotated[bool | None, Supported(), KeepsData()] = None
    """Train in mixed precision with bfloat16."""
    fp16: Annotated[bool | None, Supported(), KeepsData()] = None
    """Train in mixed precision with float16 and loss scaling; requires a GPU."""
    bf16_full_eval: Annotated[bool | None, Later("evaluation uses the precision of training"), KeepsData()] = None
    """Evaluate with bfloat16 weights."""
    fp16_full_eval: Annotated[bool | None, Later("evaluation uses the precision of training"), KeepsData()] = None
    """Evaluate with float16 weights."""
    tf32: Annotated[bool | None, Supported(), KeepsData()] = None
    """Use TensorFloat-32 for matrix products on Ampere and newer GPUs."""
    activation_checkpointing: Annotated[bool | None, Supported(), KeepsData()] = None
    """Recompute activations in the backward pass: uses less memory and is about 20 % slower."""
    activation_checkpointing_kwargs: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Additional arguments of activation checkpointing."""
    gradient_checkpointing: Annotated[bool | None, Supported(), KeepsData()] = None
    """Old name of activation_checkpointing."""
    gradient_checkpointing_kwargs: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Old name of activation_checkpointing_kwargs."""
    torch_compile: Annotated[bool | None, Supported(), KeepsData()] = None
    """Compile the layers of the model with torch.compile; requires a compiler in the image."""
    torch_compile_backend: Annotated[Word | None, Supported(), KeepsData()] = None
    """Backend of torch.compile: inductor, aot_eager or eager."""
    torch_compile_mode: Annotated[Word | None, Supported(), KeepsData()] = None
    """Mode of the backend inductor: default or max-autotune-no-cudagraphs."""
    use_liger_kernel: Annotated[bool | None, Supported(), KeepsData()] = None
    """Use the Liger kernels; requires a GPU."""
    liger_kernel_config: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Which Liger kernels to use, such as {rope: false}; requires use_liger_kernel."""
    torch_empty_cache_steps: Annotated[Count | None, Supported(), KeepsData()] = None
    """Steps after which PyTorch releases cached GPU memory."""
    logging_steps: Annotated[StepsOrRatio | None, WithoutEffect("every step is reported"), KeepsData()] = None
    """Accepted, without effect: every step is reported."""
    logging_first_step: Annotated[bool | None, WithoutEffect("every step is reported"), KeepsData()] = None
    """Accepted, without effect: every step is reported."""
    logging_nan_inf_filter: Annotated[
        bool | None, WithoutEffect("a NaN loss ends the run and is reported"), KeepsData()
    ] = None
    """Accepted, without effect: a NaN loss ends the run and is reported."""
    eval_steps: Annotated[StepsOrRatio | None, Supported(), KeepsData()] = None
    """Steps between two evaluations; a value below 1 is a ratio of all steps."""
    eval_delay: Annotated[Annotated[float, Field(ge=0)] | None, Later(_EVALUATED), KeepsData()] = None
    """Steps before the first evaluation."""
    eval_on_start: Annotated[bool | None, Later(_EVALUATED), KeepsData()] = None
    """Evaluate before the first step."""
    eval_accumulation_steps: Annotated[
        Count | None, WithoutEffect("an evaluation keeps only one prediction per row"), KeepsData()
    ] = None
    """Accepted, without effect: an evaluation keeps only one prediction per row."""
    metric_for_best_model: Annotated[Word | None, Supported(), KeepsData()] = None
    """Metric that selects the best checkpoint, such as eval_loss."""
    greater_is_better: Annotated[bool | None, Supported(), KeepsData()] = None
    """Whether a greater value of that metric is better."""
    early_stopping_patience: Annotated[Count | None, Supported(), KeepsData()] = None
    """Evaluations without a better metric_for_best_model after which the run ends; omitted = no early stopping."""
    early_stopping_threshold: Annotated[Annotated[float, Field(ge=0)] | None, Supported(), KeepsData()] = None
    """Minimum improvement of the metric; requires early_stopping_patience."""
    mlm_probability: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Supported(), KeepsData()] = None
    """Share of the tokens that are masked; only for the task masked-lm."""
    router_aux_loss_coef: Annotated[Annotated[float, Field(ge=0, le=10)] | None, Supported(), KeepsData()] = None
    """Weight of the loss that balances the experts of a mixture; 0 = without it."""
    report_to: Annotated[Names | None, Supported(), KeepsData()] = None
    """Trackers by their names in transformers, such as wandb or mlflow. TensorBoard events are always stored."""
    seed: Annotated[Annotated[int, Field(ge=0, le=4_294_967_295)] | None, Supported(), ShapesData(through="seed")] = (
        None
    )
    """Seed of everything random, including the order of the rows."""
    full_determinism: Annotated[bool | None, Supported(), KeepsData()] = None
    """Use deterministic kernels only; this is slower."""
    dataloader_num_workers: Annotated[Annotated[int, Field(ge=0, le=256)] | None, Supported(), KeepsData()] = None
    """Number of processes per rank that load data."""
    dataloader_pin_memory: Annotated[
        bool | None, WithoutEffect("memory is pinned where there is a GPU"), KeepsData()
    ] = None
    """Accepted, without effect: memory is pinned where there is a GPU."""
    dataloader_persistent_workers: Annotated[bool | None, Supported(), KeepsData()] = None
    """Keep the loader processes between epochs."""
    dataloader_prefetch_factor: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, Supported(), KeepsData()] = None
    """Number of batches that each loader process reads ahead."""

    def given(self) -> dict[str, Any]:
        """Return the values that the user wrote and that have an effect, by their own names."""
        fields = type(self).model_fields
        return {
            name: value for name, value in super().given().items() if marker_of(fields[name], WithoutEffect) is None
        }


class LoraSpec(Verbatim):
    """Names and values of PEFT's LoraConfig. The plan chooses what is omitted."""

    r: Annotated[Annotated[int, Field(ge=1, le=8192)] | None, Supported(), KeepsData()] = None
    """Rank of the update matrices."""
    lora_alpha: Annotated[Annotated[int, Field(ge=1, le=65536)] | None, Supported(), KeepsData()] = None
    """Scale of the update: alpha / r, or alpha / sqrt(r) with use_rslora."""
    lora_dropout: Annotated[BelowOne | None, Supported(), KeepsData()] = None
    """Dropout on the input of the adapter."""
    target_modules: Annotated[Words | None, Supported(), KeepsData()] = None
    """Modules to adapt: names, a regular expression, or all-linear."""
    exclude_modules: Annotated[Words | None, Supported(), KeepsData()] = None
    """Modules not to adapt: names or a regular expression."""
    modules_to_save: Annotated[Words256 | None, Supported(), KeepsData()] = None
    """Modules to train and save in full, in addition to the adapter and to newly initialised modules."""
    use_rslora: Annotated[bool | None, Supported(), KeepsData()] = None
    """Use the rank-stabilised scale."""
    use_dora: Annotated[bool | None, Supported(), KeepsData()] = None
    """Train weight-decomposed adapters (DoRA)."""
    bias: Annotated[Literal["none", "all", "lora_only"] | None, Supported(), KeepsData()] = None
    """Which biases to train."""
    lora_bias: Annotated[bool | None, Supported(), KeepsData()] = None
    """Add a bias to the B matrix of the adapter."""
    init_lora_weights: Annotated[
        FlagOrWord | None,
        Later(
            "such an initialisation changes the weights of the base model, which an adapter does not store",
            "use true, gaussian or orthogonal",
            harmless=(True, False, "gaussian", "orthogonal"),
        ),
        KeepsData(),
    ] = None
    """Initialisation of the adapter: true, false, gaussian, pissa, olora ..."""
    layers_to_transform: Annotated[Annotated[list[Index], Field(max_length=1024)] | None, Supported(), KeepsData()] = (
        None
    )
    """Indices of the layers to adapt."""
    layers_pattern: Annotated[Word | None, Supported(), KeepsData()] = None
    """Name of the list of layers; requires layers_to_transform."""
    rank_pattern: Annotated[
        Annotated[dict[str, Annotated[int, Field(ge=1, le=8192)]], Field(max_length=256)] | None,
        Supported(),
        KeepsData(),
    ] = None
    """Ranks of individual modules, by name or regular expression."""
    alpha_pattern: Annotated[
        Annotated[dict[str, Annotated[int, Field(ge=1, le=65536)]], Field(max_length=256)] | None,
        Supported(),
        KeepsData(),
    ] = None
    """Alphas of individual modules, by name or regular expression."""
    target_parameters: Annotated[Words256 | None, Supported(), KeepsData()] = None
    """Parameters (not modules) to adapt, such as the experts of a mixture-of-experts model."""
    trainable_token_indices: Annotated[
        Annotated[list[Index], Field(max_length=1024)] | None, Supported(), KeepsData()
    ] = None
    """Ids of the tokens whose embeddings are trained."""
    fan_in_fan_out: Annotated[bool | None, Supported(), KeepsData()] = None
    """Whether the weights are stored as (in, out), as in GPT-2."""

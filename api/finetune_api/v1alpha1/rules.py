"""Rules that span several fields. Each is said twice, side by side: for us, and in CEL for the API server.

Our half reads the job as it was written, so that a rule is checked even where another field of the job is malformed; a
value of the wrong type counts as not given (its own error says so).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.v1alpha1.base import shown

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One rule on the object at `at`.

    Attributes:
        at: path of the object that the rule looks at.
        field: the field to blame, relative to `at`; empty = the object itself.
        code: identifier of the problem.
        broken: what is wrong, in words with the values seen, or None where the rule holds.
        cure: what to do.
        cel: the same rule for the API server.
        says: the message for the API server, which cannot name values.
    """

    at: tuple[str, ...]
    field: str
    code: str
    broken: Callable[[Given], str | None]
    cure: str
    cel: str
    says: str


def _has(given: Given, name: str) -> bool:
    return given.get(name) is not None


def _whole(given: Given, name: str) -> int | None:
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _part(given: Given, name: str) -> Given:
    value = given.get(name)
    return value if isinstance(value, Mapping) else {}


def _model_source(model: Given) -> str | None:
    sources = [name for name in ("name", "uri", "persistentVolumeClaim") if _has(model, name)]
    if len(sources) == 1:
        return None
    seen = "none of them" if not sources else " and ".join(sources)
    return f"has {seen}; must have exactly one of name, uri and persistentVolumeClaim"


def _batch(spec: Given) -> str | None:
    training = _part(spec, "training")
    whole = _whole(training, "global_batch_size")
    if whole is None:
        return None
    parts = {
        name: size
        for name, size in (
            ("per_device_train_batch_size", _whole(training, "per_device_train_batch_size")),
            ("gradient_accumulation_steps", _whole(training, "gradient_accumulation_steps")),
            ("processesPerNode", _whole(spec, "processesPerNode")),
        )
        if size is not None
    }
    nodes = spec.get("nodes", 1)
    if "processesPerNode" in parts and isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0:
        parts["nodes"] = nodes
    product = 1
    for size in parts.values():
        product *= size
    if whole % product == 0 and (len(parts) < 4 or whole == product):
        return None
    listed = " x ".join(f"{name} {size}" for name, size in parts.items())
    rule = "must be their product" if len(parts) == 4 else "must be a multiple of their product"
    return f"is {whole}, and {listed} = {product}; {rule}"


def _prefetch(training: Given) -> str | None:
    if not _has(training, "dataloader_prefetch_factor") or _whole(training, "dataloader_num_workers"):
        return None
    return f"is {shown(training['dataloader_prefetch_factor'])}; only loader processes read ahead, and there are none"


def _checkpointing(training: Given) -> str | None:
    new, old = training.get("activation_checkpointing"), training.get("gradient_checkpointing")
    if new is None or old is None or new == old:
        return None
    return f"is {shown(old)} and activation_checkpointing is {shown(new)}; they are two names of one thing"


def _only_with(name: str, other: str) -> Callable[[Given], str | None]:
    def broken(given: Given) -> str | None:
        if not _has(given, name) or _has(given, other):
            return None
        return f"is {shown(given[name])}; goes only with {other}"

    return broken


def _not_with(name: str, *others: str) -> Callable[[Given], str | None]:
    def broken(given: Given) -> str | None:
        both = [other for other in others if _has(given, other)]
        return (
            f"is given together with {' and '.join(both)}; they exclude each other"
            if _has(given, name) and both
            else None
        )

    return broken


_TRAINING = ("spec", "training")

RULES: tuple[Rule, ...] = (
    Rule(
        at=("spec", "model"),
        field="",
        code="ExactlyOne",
        broken=_model_source,
        cure="name the base model in one way: `name` (hub), `uri` (s3:// or file://) or `persistentVolumeClaim`",
        cel="[has(self.name), has(self.uri), has(self.persistentVolumeClaim)].filter(given, given).size() == 1",
        says="must have exactly one of name, uri and persistentVolumeClaim",
    ),
    Rule(
        at=("spec", "model"),
        field="revision",
        code="NeedsOther",
        broken=_only_with("revision", "name"),
        cure="leave it out, or name a model of the hub",
        cel="!has(self.revision) || has(self.name)",
        says="revision goes only with name: leave it out, or name a model of the hub",
    ),
    Rule(
        at=("spec", "model"),
        field="tokenSecretRef",
        code="NeedsOther",
        broken=_only_with("tokenSecretRef", "name"),
        cure="leave it out, or name a model of the hub",
        cel="!has(self.tokenSecretRef) || has(self.name)",
        says="tokenSecretRef goes only with name: leave it out, or name a model of the hub",
    ),
    Rule(
        at=("spec", "method"),
        field="lora",
        code="Conflict",
        broken=lambda method: (
            "is given, and type is full; only lora and qlora train an adapter"
            if method.get("type") == "full" and _has(method, "lora")
            else None
        ),
        cure="leave it out, or set spec.method.type to lora",
        cel="self.type != 'full' || !has(self.lora)",
        says="lora is given, and type is full: leave it out, or set type to lora",
    ),
    Rule(
        at=("spec", "dataset"),
        field="delimiter",
        code="Conflict",
        broken=lambda dataset: (
            f"is given, and format is {dataset['format']}; only csv has a delimiter"
            if _has(dataset, "delimiter") and dataset.get("format") not in (None, "csv")
            else None
        ),
        cure="leave it out, or set spec.dataset.format to csv",
        cel="!has(self.delimiter) || !has(self.format) || self.format == 'csv'",
        says="delimiter goes only with format csv",
    ),
    Rule(
        at=_TRAINING,
        field="fp16",
        code="Conflict",
        broken=lambda training: (
            "is true, and so is bf16; there is one kind of mixed precision"
            if training.get("fp16") is True and training.get("bf16") is True
            else None
        ),
        cure="keep bf16 on Ampere and newer GPUs and on CPU, fp16 on older GPUs",
        cel="!(has(self.fp16) && self.fp16 && has(self.bf16) && self.bf16)",
        says="fp16 and bf16 are both true: keep one",
    ),
    Rule(
        at=_TRAINING,
        field="gradient_checkpointing",
        code="Conflict",
        broken=_checkpointing,
        cure="keep activation_checkpointing",
        cel="!has(self.gradient_checkpointing) || !has(self.activation_checkpointing)"
        " || self.gradient_checkpointing == self.activation_checkpointing",
        says="gradient_checkpointing and activation_checkpointing differ: keep the second, they are one thing",
    ),
    Rule(
        at=_TRAINING,
        field="dataloader_prefetch_factor",
        code="NeedsOther",
        broken=_prefetch,
        cure="set dataloader_num_workers to 1 or more, or leave it out",
        cel="!has(self.dataloader_prefetch_factor)"
        " || (has(self.dataloader_num_workers) && self.dataloader_num_workers > 0)",
        says="dataloader_prefetch_factor goes only with dataloader_num_workers of 1 or more",
    ),
    Rule(
        at=("spec", "method", "lora"),
        field="layers_pattern",
        code="NeedsOther",
        broken=_only_with("layers_pattern", "layers_to_transform"),
        cure="name the layers in layers_to_transform, or leave it out",
        cel="!has(self.layers_pattern) || has(self.layers_to_transform)",
        says="layers_pattern goes only with layers_to_transform",
    ),
    Rule(
        at=("spec", "deepspeed"),
        field="config",
        code="Conflict",
        broken=_not_with("config", "stage", "offload"),
        cure="write stage and offload into the config, or leave the config out",
        cel="!has(self.config) || !(has(self.stage) || has(self.offload))",
        says="config is taken as it is: write stage and offload into it, or leave it out",
    ),
    Rule(
        at=("spec", "checkpoint"),
        field="everyMinutes",
        code="Conflict",
        broken=_not_with("everyMinutes", "everySteps"),
        cure="keep one of the two",
        cel="!has(self.everyMinutes) || !has(self.everySteps)",
        says="everyMinutes and everySteps exclude each other",
    ),
    Rule(
        at=("spec", "scratch"),
        field="medium",
        code="Conflict",
        broken=_not_with("medium", "storageClassName"),
        cure="keep medium for an emptyDir, or storageClassName for a volume",
        cel="!has(self.medium) || !has(self.storageClassName)",
        says="medium and storageClassName exclude each other",
    ),
    Rule(
        at=("spec",),
        field="training.global_batch_size",
        code="NotDivisible",
        broken=_batch,
        cure="change it, or leave out one of the others: the plan finds it",
        cel="!has(self.training) || !has(self.training.global_batch_size) || self.training.global_batch_size % ("
        "(has(self.training.per_device_train_batch_size) ? self.training.per_device_train_batch_size : 1)"
        " * (has(self.training.gradient_accumulation_steps) ? self.training.gradient_accumulation_steps : 1)"
        " * (has(self.processesPerNode) ? self.processesPerNode * self.nodes : 1)) == 0",
        says="training.global_batch_size must be a multiple of per_device_train_batch_size"
        " x gradient_accumulation_steps x processesPerNode x nodes, as far as they are given",
    ),
)

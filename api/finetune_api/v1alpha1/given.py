"""Functions for the rules in rules.py: each checks several fields of a job as it was written.

A function returns what is wrong, with the values seen, or None where the rule holds. A value of the wrong type counts
as not given; it has an error of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1.spec_base import shown

Given = Mapping[str, Any]


def has(given: Given, name: str) -> bool:
    """Return whether a field is given and not null."""
    return given.get(name) is not None


def whole_number_of(given: Given, name: str) -> int | None:
    """Return a field that holds a whole number above 0; None for any other value."""
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def part(given: Given, name: str) -> Given:
    """Return a field that holds an object; an empty object for any other value."""
    value = given.get(name)
    return value if isinstance(value, Mapping) else {}


def model_source(model: Given) -> str | None:
    """Check that the base model has exactly one source."""
    sources = [name for name in ("name", "uri", "persistentVolumeClaim") if has(model, name)]
    if len(sources) == 1:
        return None
    seen = "none of them" if not sources else " and ".join(sources)
    return f"has {seen}; must have exactly one of name, uri and persistentVolumeClaim"


def data_source(dataset: Given) -> str | None:
    """Check that the training data has exactly one source: one URI or a mix."""
    sources = [name for name in ("train", "mix") if has(dataset, name)]
    if len(sources) == 1:
        return None
    return f"has {'both train and mix' if sources else 'neither train nor mix'}; must have exactly one of them"


def delimiter(dataset: Given) -> str | None:
    """Check that a delimiter fits the format: one character for csv and tsv, any text for pairs."""
    mark, form = dataset.get("delimiter"), dataset.get("format")
    if not isinstance(mark, str) or form in (None, "pairs"):
        return None
    if form not in ("csv", "tsv"):
        return f"is given, but format is {form}; only csv, tsv and pairs have a delimiter"
    return f"is {shown(mark)}, but format is {form}; its delimiter must be one character" if len(mark) > 1 else None


def batch(spec: Given) -> str | None:
    """Check that the global batch is a multiple of the product of the given sizes, or equals it if all are given."""
    training = part(spec, "training")
    total = whole_number_of(training, "global_batch_size")
    if total is None:
        return None
    parts = {
        name: size
        for name, size in (
            ("per_device_train_batch_size", whole_number_of(training, "per_device_train_batch_size")),
            ("gradient_accumulation_steps", whole_number_of(training, "gradient_accumulation_steps")),
            ("processesPerNode", whole_number_of(spec, "processesPerNode")),
        )
        if size is not None
    }
    nodes = spec.get("nodes", 1)
    if "processesPerNode" in parts and isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0:
        parts["nodes"] = nodes
    product = 1
    for size in parts.values():
        product *= size
    if total % product == 0 and (len(parts) < 4 or total == product):
        return None
    listed = " x ".join(f"{name} {size}" for name, size in parts.items())
    rule = "must be their product" if len(parts) == 4 else "must be a multiple of their product"
    return f"is {total}, and {listed} = {product}; {rule}"


def prefetch(training: Given) -> str | None:
    """Check that there are loader processes where batches are to be read ahead."""
    if not has(training, "dataloader_prefetch_factor") or whole_number_of(training, "dataloader_num_workers"):
        return None
    return f"is {shown(training['dataloader_prefetch_factor'])}; requires dataloader_num_workers of 1 or more"


def checkpointing(training: Given) -> str | None:
    """Check that the old and the new name of activation checkpointing have the same value."""
    new, old = training.get("activation_checkpointing"), training.get("gradient_checkpointing")
    if new is None or old is None or new == old:
        return None
    return f"is {shown(old)} and activation_checkpointing is {shown(new)}; they are two names of one setting"


def only_with(name: str, other: str) -> Callable[[Given], str | None]:
    """Return a check that a field is given only together with another one."""

    def broken(given: Given) -> str | None:
        if not has(given, name) or has(given, other):
            return None
        return f"is {shown(given[name])}; requires {other}"

    return broken


def not_with(name: str, *others: str) -> Callable[[Given], str | None]:
    """Return a check that a field is not given together with any of the others."""

    def broken(given: Given) -> str | None:
        both = [other for other in others if has(given, other)]
        return (
            f"is given together with {' and '.join(both)}; they exclude each other"
            if has(given, name) and both
            else None
        )

    return broken


def warmup(training: Given) -> str | None:
    """Check that the warm-up ends before the run does."""
    rising, steps = whole_number_of(training, "warmup_steps"), whole_number_of(training, "max_steps")
    if rising is None or steps is None or rising < steps:
        return None
    return f"is {rising}, but the run has {steps} steps; the learning rate would never reach its peak"


_SCHEDULES = {  # transformers raises an error without one of these arguments
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def missing_schedule_values(training: Given) -> str | None:
    """Check that the schedule of the learning rate has the arguments that it requires."""
    kind = training.get("lr_scheduler_type")
    needed = _SCHEDULES.get(kind) if isinstance(kind, str) else None
    if needed is None or any(has(part(training, "lr_scheduler_kwargs"), name) for name in needed):
        return None
    return f"is {kind}; requires {' or '.join(needed)} in lr_scheduler_kwargs"


def _names(given: Given, name: str) -> set[str]:
    value = given.get(name)
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()


def adapted_and_saved(lora: Given) -> str | None:
    """Check that no module is both adapted and trained in full."""
    both = sorted(_names(lora, "target_modules") & _names(lora, "modules_to_save"))
    return (
        f"names {both[0]}, and target_modules names it too; a module is either adapted or trained in full"
        if both
        else None
    )


def biased(lora: Given) -> str | None:
    """Check that an adapter with a bias is plain LoRA with the default initialisation: PEFT supports nothing else."""
    if lora.get("lora_bias") is not True:
        return None
    if lora.get("use_dora") is True:
        return "is true, and use_dora is true; PEFT does not support a bias in DoRA"
    start = lora.get("init_lora_weights")
    return (
        f"is true, but init_lora_weights is {shown(start)}; PEFT does not support a bias with it"
        if isinstance(start, str)
        else None
    )


def whole_parameters(lora: Given) -> str | None:
    """Check that parameters (not modules) are adapted without dropout, bias and DoRA: PEFT does not support them."""
    wrong = [name for name in ("lora_dropout", "use_dora", "lora_bias") if lora.get(name)]
    if not has(lora, "target_parameters") or not wrong:
        return None
    return f"is given together with {' and '.join(wrong)}; PEFT does not support this for parameters"


def adapter(spec: Given) -> str | None:
    """Check that an adapter to start from is not given together with fields that contradict its configuration."""
    model = part(spec, "model")
    if not has(model, "adapter"):
        return None
    if model.get("newTokens"):
        return "is given together with newTokens; an existing adapter has no embeddings for new tokens"
    method = part(spec, "method")
    if method.get("type") == "full":
        return "is given, but method.type is full; only lora and qlora train an adapter"
    return "is given together with method.lora; the adapter has its own configuration" if has(method, "lora") else None


def form_of_method(spec: Given) -> str | None:
    """Check that an adapter is exported only by a method that trains one."""
    forms = part(spec, "export").get("forms")
    if not isinstance(forms, list) or "adapter" not in forms or part(spec, "method").get("type") != "full":
        return None
    return "has adapter, but method.type is full, which trains no adapter"


def offload(deepspeed: Given) -> str | None:
    """Check that parameters are offloaded only with stage 3."""
    stage, place = deepspeed.get("stage"), part(deepspeed, "offload").get("parameters")
    if place in (None, "none") or stage in (None, 3):
        return None
    return f"is {shown(place)}, but stage is {shown(stage)}; only stage 3 shards parameters"


def _devices(limits: Given) -> dict[str, Any]:
    return {name: amount for name, amount in limits.items() if "/" in name and amount is not None}


def whole_devices(limits: Given) -> str | None:
    """Check that the number of each kind of device is whole."""
    for name, amount in _devices(limits).items():
        if isinstance(amount, (int, float, str)) and not isinstance(amount, bool) and not _is_whole(amount):
            return f"has {name}: {amount}; the number of devices must be whole"
    return None


def _is_whole(amount: float | str) -> bool:
    try:
        return parse_quantity(amount if isinstance(amount, int) else str(amount)) % 1 == 0
    except ValueError:
        return True  # the value has an error of its own


def indivisible_ranks(spec: Given) -> str | None:
    """Check that a node has a GPU for each rank."""
    asked = whole_number_of(spec, "processesPerNode")
    limits = part(part(spec, "resourcesPerNode"), "limits")
    counts = [str(amount) for name, amount in _devices(limits).items() if name.endswith("/gpu")]
    try:
        gpus = sum(int(parse_quantity(count)) for count in counts)
    except ValueError:
        return None
    if asked is None or not gpus or asked <= gpus:
        return None
    return f"is {asked}, but a node has {gpus} GPU{'s' if gpus > 1 else ''}; each rank needs its own GPU"


def mounts(pod: Given) -> str | None:
    """Check that every mounted volume exists."""
    volumes, mounted = pod.get("volumes"), pod.get("volumeMounts")
    if not isinstance(mounted, list):
        return None
    known = [one.get("name") for one in volumes if isinstance(one, Mapping)] if isinstance(volumes, list) else []
    for mount in mounted:
        name = mount.get("name") if isinstance(mount, Mapping) else None
        if isinstance(name, str) and name not in known:
            return f"mounts {name}, but volumes has no volume of that name"
    return None

"""What is wrong with a job as it was written, for the rules that span several fields; the rules are in rules.py.

Each function returns words with the values seen, or None where the rule holds. A value of the wrong type counts as not
given: its own error says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1.base import shown

Given = Mapping[str, Any]


def has(given: Given, name: str) -> bool:
    return given.get(name) is not None


def whole(given: Given, name: str) -> int | None:
    value = given.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def part(given: Given, name: str) -> Given:
    value = given.get(name)
    return value if isinstance(value, Mapping) else {}


def model_source(model: Given) -> str | None:
    sources = [name for name in ("name", "uri", "persistentVolumeClaim") if has(model, name)]
    if len(sources) == 1:
        return None
    seen = "none of them" if not sources else " and ".join(sources)
    return f"has {seen}; must have exactly one of name, uri and persistentVolumeClaim"


def data_source(dataset: Given) -> str | None:
    """Training data comes from one uri or from a mix."""
    sources = [name for name in ("train", "mix") if has(dataset, name)]
    if len(sources) == 1:
        return None
    return f"has {'both train and mix' if sources else 'neither train nor mix'}; must have exactly one of them"


def delimiter(dataset: Given) -> str | None:
    """One character of CSV and TSV, any of pairs."""
    mark, form = dataset.get("delimiter"), dataset.get("format")
    if not isinstance(mark, str) or form in (None, "pairs"):
        return None
    if form not in ("csv", "tsv"):
        return f"is given, and format is {form}; only csv, tsv and pairs have a delimiter"
    return f"is {shown(mark)}, and format is {form}, whose delimiter is one character" if len(mark) > 1 else None


def batch(spec: Given) -> str | None:
    training = part(spec, "training")
    total = whole(training, "global_batch_size")
    if total is None:
        return None
    parts = {
        name: size
        for name, size in (
            ("per_device_train_batch_size", whole(training, "per_device_train_batch_size")),
            ("gradient_accumulation_steps", whole(training, "gradient_accumulation_steps")),
            ("processesPerNode", whole(spec, "processesPerNode")),
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
    if not has(training, "dataloader_prefetch_factor") or whole(training, "dataloader_num_workers"):
        return None
    return f"is {shown(training['dataloader_prefetch_factor'])}; only loader processes read ahead, and there are none"


def checkpointing(training: Given) -> str | None:
    new, old = training.get("activation_checkpointing"), training.get("gradient_checkpointing")
    if new is None or old is None or new == old:
        return None
    return f"is {shown(old)} and activation_checkpointing is {shown(new)}; they are two names of one thing"


def only_with(name: str, other: str) -> Callable[[Given], str | None]:
    def broken(given: Given) -> str | None:
        if not has(given, name) or has(given, other):
            return None
        return f"is {shown(given[name])}; goes only with {other}"

    return broken


def not_with(name: str, *others: str) -> Callable[[Given], str | None]:
    def broken(given: Given) -> str | None:
        both = [other for other in others if has(given, other)]
        return (
            f"is given together with {' and '.join(both)}; they exclude each other"
            if has(given, name) and both
            else None
        )

    return broken


def warmup(training: Given) -> str | None:
    rising, steps = whole(training, "warmup_steps"), whole(training, "max_steps")
    if rising is None or steps is None or rising < steps:
        return None
    return f"is {rising}, and the run has {steps} steps; the learning rate never reaches its peak"


_SCHEDULES = {  # what transformers' schedules refuse to start without
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}


def schedule(training: Given) -> str | None:
    kind = training.get("lr_scheduler_type")
    needed = _SCHEDULES.get(kind) if isinstance(kind, str) else None
    if needed is None or any(has(part(training, "lr_scheduler_kwargs"), name) for name in needed):
        return None
    return f"is {kind}, which needs {' or '.join(needed)} in lr_scheduler_kwargs"


def _names(given: Given, name: str) -> set[str]:
    value = given.get(name)
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()


def adapted_and_saved(lora: Given) -> str | None:
    both = sorted(_names(lora, "target_modules") & _names(lora, "modules_to_save"))
    return f"names {both[0]}, which target_modules names too; it is adapted or trained whole" if both else None


def biased(lora: Given) -> str | None:
    """PEFT has a bias in plain LoRA only, and only with its usual start."""
    if lora.get("lora_bias") is not True:
        return None
    if lora.get("use_dora") is True:
        return "is true, and so is use_dora; PEFT has no bias in DoRA"
    start = lora.get("init_lora_weights")
    return (
        f"is true, and init_lora_weights is {shown(start)}; PEFT has no bias then" if isinstance(start, str) else None
    )


def whole_parameters(lora: Given) -> str | None:
    """PEFT adapts parameters (not modules) without dropout, bias and DoRA."""
    wrong = [name for name in ("lora_dropout", "use_dora", "lora_bias") if lora.get(name)]
    if not has(lora, "target_parameters") or not wrong:
        return None
    return f"is given together with {' and '.join(wrong)}; PEFT does not do so for parameters"


def adapter(spec: Given) -> str | None:
    """An adapter to start from has a configuration of its own."""
    model = part(spec, "model")
    if not has(model, "adapter"):
        return None
    if model.get("newTokens"):
        return "is given together with newTokens; an adapter has no place for the rows of tokens that are new to it"
    method = part(spec, "method")
    if method.get("type") == "full":
        return "is given, and method.type is full; only lora and qlora train an adapter"
    return "is given together with method.lora; it has a configuration of its own" if has(method, "lora") else None


def offload(deepspeed: Given) -> str | None:
    stage, place = deepspeed.get("stage"), part(deepspeed, "offload").get("parameters")
    if place in (None, "none") or stage in (None, 3):
        return None
    return f"is {shown(place)}, and stage is {shown(stage)}; only stage 3 shards parameters"


def _devices(limits: Given) -> dict[str, Any]:
    return {name: amount for name, amount in limits.items() if "/" in name and amount is not None}


def whole_devices(limits: Given) -> str | None:
    for name, amount in _devices(limits).items():
        if isinstance(amount, (int, float, str)) and not isinstance(amount, bool) and not _is_whole(amount):
            return f"has {name}: {amount}; a device is given out whole"
    return None


def _is_whole(amount: float | str) -> bool:
    try:
        return parse_quantity(amount if isinstance(amount, int) else str(amount)) % 1 == 0
    except ValueError:
        return True  # its own error says so


def ranks(spec: Given) -> str | None:
    asked = whole(spec, "processesPerNode")
    limits = part(part(spec, "resourcesPerNode"), "limits")
    counts = [str(amount) for name, amount in _devices(limits).items() if name.endswith("/gpu")]
    try:
        gpus = sum(int(parse_quantity(count)) for count in counts)
    except ValueError:
        return None
    if asked is None or not gpus or asked <= gpus:
        return None
    return f"is {asked}, and a node has {gpus} GPU{'s' if gpus > 1 else ''}; each rank needs one of its own"


def mounts(pod: Given) -> str | None:
    volumes, mounted = pod.get("volumes"), pod.get("volumeMounts")
    if not isinstance(mounted, list):
        return None
    known = [one.get("name") for one in volumes if isinstance(one, Mapping)] if isinstance(volumes, list) else []
    for mount in mounted:
        name = mount.get("name") if isinstance(mount, Mapping) else None
        if isinstance(name, str) and name not in known:
            return f"mounts {name}, and volumes has no such volume"
    return None

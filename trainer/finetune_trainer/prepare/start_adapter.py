"""The adapter that a job starts from: found, checked, and mirrored once to the job's storage under its hash."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import adapter_prefix
from finetune_api.errors import ModelError, Problem
from finetune_api.messages import AdapterFacts, Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1.training import LoraSpec
from finetune_trainer.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, parse_json
from finetune_trainer.prepare.plan.lora import SavedAdapter
from finetune_trainer.prepare.weights import shapes_of
from finetune_trainer.storage import ObjectStore, hash_file, open_store, read_manifest, upload_files

FIELD = "spec.model.adapter"
# names of PEFT's LoraConfig (0.21) that say nothing of how an adapter is computed, or only beside another that does
IDLE = frozenset(
    {
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "megatron_core",
        "qalora_group_size",
        "ensure_weight_tying",
    }
)
# starts that leave the base model as it is; after any other an adapter fits only the base that it changed
STARTS = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class StartAdapter:
    """An adapter that can be trained further, on this machine.

    Attributes:
        files: to be mirrored, by name.
    """

    start: SavedAdapter
    files: Mapping[str, Path]


def find_adapter(uri: str, task: Task, environ: Mapping[str, str], folder: Path) -> StartAdapter:
    """Find and read an adapter.

    Args:
        folder: for downloads.

    Raises:
        ModelError: there is none, or it cannot be trained further for the task.
        StorageError: the store it lies in refuses or is unreachable.
    """
    store = open_store(uri, environ)
    names = {info.key for info in store.list() if "/" not in info.key}
    _check_names(names, uri)
    paths = {name: folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        store.get_file(name, path)
    config = parse_json(ADAPTER_CONFIG, paths[ADAPTER_CONFIG].read_bytes())
    _check_config(config, task)
    shapes = {name: tuple(shape) for name, shape in shapes_of(paths[ADAPTER_WEIGHTS]).items()}
    digest = hashlib.sha256()
    for name in sorted(paths):
        digest.update(f"{name}\0{hash_file(paths[name]).sha256}\n".encode())
    commit = digest.hexdigest()
    facts = AdapterFacts(commit=commit, prefix=adapter_prefix(commit), source=uri)
    known = (LoraSpec.model_fields.keys() | {"ensure_weight_tying"}) & config.keys()
    lora = {name: config[name] for name in sorted(known) if config[name] not in (None, {}, [])}
    return StartAdapter(SavedAdapter(facts, lora, shapes), paths)


def mirror_adapter(adapter: StartAdapter, store: ObjectStore) -> None:
    """Upload an adapter that is not there yet."""
    facts = adapter.start.facts
    if read_manifest(store, facts.prefix) is None:
        upload_files(store, adapter.files, facts.prefix, "artifact", facts.model_dump(mode="json"))


def _check_names(names: set[str], uri: str) -> None:
    if not names:
        raise _refused("AdapterNotFound", f"there is nothing at {uri}", "correct it, or upload the adapter")
    if ADAPTER_CONFIG not in names:
        message = f"{uri} has no {ADAPTER_CONFIG}: it is not an adapter as PEFT saves it"
        raise _refused("AdapterIncomplete", message, "name the folder that save_pretrained wrote")
    if ADAPTER_WEIGHTS not in names:
        message = f"{uri} has no {ADAPTER_WEIGHTS}; pickled weights are not loaded"
        raise _refused("NoSafetensors", message, "save it again with a recent save_pretrained")


def _check_config(config: Mapping[str, Any], task: Task) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        message = f"is an adapter of type {kind}; only LORA is trained further"
        raise _refused("AdapterNotSupported", message, "start from a LoRA adapter, or leave it out")
    made_for, wanted = config.get("task_type"), spec_of(task).peft_type
    if made_for is not None and made_for != wanted:
        message = f"was made for {made_for}, and the task is {task} ({wanted or 'no type of PEFT'})"
        raise _refused("AdapterNotForTask", message, "change spec.task, or start from another adapter")
    if (start := config.get("init_lora_weights", True)) not in STARTS:
        message = f"began with init_lora_weights {start}, which changed the weights of its base model"
        cure = "save it with PEFT's path_initial_model_for_weight_conversion: that makes a plain LoRA of it"
        raise _refused("AdapterNotSupported", message, cure)
    others = [name for name in config if config[name] and name not in LoraSpec.model_fields.keys() | IDLE]
    if others:
        message = f"uses {', '.join(sorted(others))}, which is not supported"
        raise _refused("AdapterNotSupported", message, "start from a plain LoRA adapter, or leave it out")


def _refused(code: str, message: str, cure: str) -> ModelError:
    return ModelError(Problem(code=code, field=FIELD, message=message, cure=cure))

"""The comparison of the files that decide which weights are loaded, and how: weight files, their index, configurations.

Equal tensors are not equal models: a second weight file hides the first, and `lora_alpha` scales every update.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import AutoConfig

from finetune_trainer.model.files import ADAPTER_CONFIG, CONFIG

# what transformers, peft and the servers of the card load weights from
WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".npz", ".onnx"}
)
INDEX = ".index.json"
PLACES = ("base_model_name_or_path",)  # may be a folder of the storage, which differs between two trainings
WRITERS = frozenset({"transformers_version", "peft_version", "_name_or_path", "inference_mode"})
UNORDERED = ("target_modules", "exclude_modules")  # peft writes sets


def file_differences(artifact: Path, again: Path, mirror: str = "") -> Iterator[tuple[str, str]]:
    """Yield each file that makes the artifact another model than the new one, with the reason.

    Args:
        artifact: the folder of the artifact.
        again: the folder of the same artifact of another training.
        mirror: key prefix of the base model in a storage; two places that end with it are the same base model.
    """
    old, new = _weight_files(artifact), _weight_files(again)
    yield from ((name, "the new training has no such file") for name in sorted(old - new))
    yield from ((name, "the artifact has no such file") for name in sorted(new - old))
    for name in sorted(_settings_files(artifact) | _settings_files(again)):
        one, other = artifact / name, again / name
        if not (one.is_file() and other.is_file()):
            yield name, f"{'the new training' if one.is_file() else 'the artifact'} has no such file"
            continue
        try:
            then, now = _settings(one), _settings(other)
        except (ValueError, RecursionError) as error:
            yield name, f"it cannot be read: {' '.join(str(error).split())[:100]}"
            continue
        yield from ((name, reason) for reason in _unlike(then, now, one.name, mirror.strip("/")))


def _weight_files(folder: Path) -> set[str]:
    return {_name(path, folder) for path in folder.rglob("*") if path.suffix.lower() in WEIGHT_SUFFIXES}


def _settings_files(folder: Path) -> set[str]:
    found = folder.rglob("*.json")
    paths = (path for path in found if path.name in (CONFIG, ADAPTER_CONFIG) or path.name.endswith(INDEX))
    return {_name(path, folder) for path in paths}


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _settings(path: Path) -> dict[str, Any]:
    """Return the values of a configuration that decide what is loaded; of an index the file of each tensor.

    Raises:
        ValueError: the file is not a JSON object.
    """
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if path.name.endswith(INDEX):
        return {"weight_map": value.get("weight_map")}
    for name in UNORDERED:
        if isinstance(value.get(name), list):
            value[name] = sorted(map(str, value[name]))
    return {name: one for name, one in value.items() if name not in WRITERS}


def _unlike(then: Mapping[str, Any], now: Mapping[str, Any], file: str, mirror: str) -> Iterator[str]:
    """Yield a reason for each value that differs. A value that one side leaves out is the library's default: versions
    of a library write other sets of names."""
    absent = _defaults(file, now) if then.keys() != now.keys() else {}
    for name in sorted(then.keys() | now.keys()):
        one, other = (side.get(name, absent.get(name)) for side in (then, now))
        if one == other or (name in PLACES and mirror and all(_is_place(each, mirror) for each in (one, other))):
            continue
        yield f"the artifact has {name} {_shown(one)}, the new training {_shown(other)}"


def _is_place(value: Any, mirror: str) -> bool:
    return isinstance(value, str) and value.rstrip("/").endswith(f"/{mirror}")


def _defaults(file: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    if file == ADAPTER_CONFIG:
        defaults: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
        return defaults
    try:
        found: dict[str, Any] = AutoConfig.for_model(str(settings.get("model_type"))).to_dict()
        return found
    except (ValueError, KeyError):  # it is not the configuration of a model
        return {}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:100]

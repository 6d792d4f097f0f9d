"""What an artifact's folder holds, in Hugging Face's layout: which files of a checkpoint go in and how they are mended.

An adapter's folder has no `config.json`: transformers (5.23, `auto_factory`) takes a folder that has one beside
`adapter_config.json` for a whole model and then misses its weights. The labels stand in `labels.json` instead.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_api.contract import File
from finetune_api.messages import MethodType, ModelFacts
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.model.files import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, WEIGHTS_INDEX
from finetune_trainer.storage import ObjectStore

ADAPTER_CONFIG = "adapter_config.json"
CARD = "README.md"


@dataclass(frozen=True)
class Layout:
    """The files of one kind of artifact.

    Attributes:
        kind: also the name of its folder below `artifacts/`.
        required: without these there is nothing to load.
        weights: matches the names of weight files; at least one is required.
        optional: taken where the checkpoint has them.
    """

    kind: Literal["adapter", "model"]
    required: frozenset[str]
    weights: re.Pattern[str]
    optional: frozenset[str]

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Those of a checkpoint's files that belong into the artifact."""
        wanted = self.required | self.optional
        return [name for name in names if name in wanted or self.weights.fullmatch(name)]

    def missing(self, names: Sequence[str]) -> list[str]:
        """What a checkpoint lacks to become an artifact."""
        lacking = sorted(self.required.difference(names))
        return lacking if any(self.weights.fullmatch(name) for name in names) else [*lacking, self.weights.pattern]


ADAPTER = Layout(
    kind="adapter",
    required=frozenset({ADAPTER_CONFIG}),
    weights=re.compile(r"adapter_model\.safetensors"),
    optional=frozenset(),
)
MODEL = Layout(
    kind="model",
    required=frozenset({CONFIG}),
    weights=re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    optional=frozenset({GENERATION_CONFIG, WEIGHTS_INDEX}),
)


def layout_of(method: MethodType) -> Layout:
    """What a method's runs leave: an adapter, or a whole model."""
    return MODEL if method is MethodType.FULL else ADAPTER


@dataclass(frozen=True)
class Base:
    """Where the base model is found by whoever loads an adapter.

    Attributes:
        location: name on the hub, folder, or s3:// uri of the mirror.
        revision: the hub's commit; None for a mirror, whose prefix holds the commit already.
        on_hub: whether `location` is a name on the hub.
    """

    location: str
    revision: str | None
    on_hub: bool


def base_of(model: ModelFacts, store: ObjectStore) -> Base:
    """The hub's name and commit if the model came from there, else the mirror in the job's storage."""
    if "://" not in model.source:
        return Base(model.source, model.commit, True)
    mirror = f"{store.uri}/{model.prefix}".rstrip("/")
    return Base(mirror.removeprefix("file://"), None, False)  # peft takes a folder's path, not its uri


def mend(folder: Path, plan: Plan, base: Base) -> None:
    """Rewrite the configurations of a checkpoint in place: the training node's paths go, base and labels come."""
    if plan.dataset.labels:
        (folder / File.LABELS).write_text(json.dumps(plan.dataset.labels, ensure_ascii=False, indent=1) + "\n", "utf-8")
    if spec_of(plan.task).labelled:
        _pad(folder / TOKENIZER_CONFIG)
    if plan.method is MethodType.FULL:
        config = _read(folder / CONFIG)
        config.pop("_name_or_path", None)
        config.pop("use_cache", None)  # off in training only: answers would take each token from the beginning
        if plan.dataset.problem_type:
            config["problem_type"] = str(plan.dataset.problem_type)
        if plan.dataset.labels:
            config["id2label"] = {str(index): label for index, label in enumerate(plan.dataset.labels)}
            config["label2id"] = {label: index for index, label in enumerate(plan.dataset.labels)}
        _write(folder / CONFIG, config)
        return
    adapter = _read(folder / ADAPTER_CONFIG)
    adapter["base_model_name_or_path"] = base.location
    adapter["revision"] = base.revision
    _write(folder / ADAPTER_CONFIG, adapter)


def _pad(path: Path) -> None:
    """Batches need padding: a tokenizer that has no token for it gets the one that the training padded with."""
    if path.exists() and not (config := _read(path)).get("pad_token") and config.get("eos_token"):
        _write(path, config | {"pad_token": config["eos_token"]})


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")

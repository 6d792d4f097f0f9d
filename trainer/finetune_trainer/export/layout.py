"""The files of an artifact, in Hugging Face's layout: those taken from a checkpoint, and the changes to them.

An adapter's folder has no `config.json`: if it had one beside `adapter_config.json`, transformers (5.23,
`auto_factory`) would load the folder as a whole model and miss its weights. The labels are in `labels.json` instead.
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
from finetune_trainer.model.files import ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, WEIGHTS_INDEX
from finetune_trainer.storage import ObjectStore

CARD = "README.md"


@dataclass(frozen=True)
class ArtifactFiles:
    """The files of one kind of artifact.

    Attributes:
        kind: also the name of its folder below `artifacts/`.
        required: an artifact cannot be loaded without these.
        weights: matches the names of weight files; at least one is required.
        optional: taken if the checkpoint has them.
    """

    kind: Literal["adapter", "model"]
    required: frozenset[str]
    weights: re.Pattern[str]
    optional: frozenset[str]

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Return the files of a checkpoint that belong to the artifact."""
        wanted = self.required | self.optional
        return [name for name in names if name in wanted or self.weights.fullmatch(name)]

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return the required files that a checkpoint lacks."""
        lacking = sorted(self.required.difference(names))
        return lacking if any(self.weights.fullmatch(name) for name in names) else [*lacking, self.weights.pattern]


ADAPTER = ArtifactFiles(
    kind="adapter",
    required=frozenset({ADAPTER_CONFIG}),
    weights=re.compile(r"adapter_model\.safetensors"),
    optional=frozenset(),
)
MODEL = ArtifactFiles(
    kind="model",
    required=frozenset({CONFIG}),
    weights=re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    optional=frozenset({GENERATION_CONFIG, WEIGHTS_INDEX}),
)


def layout_of(method: MethodType) -> ArtifactFiles:
    """Return the kind of artifact that a method makes: an adapter, or a whole model."""
    return MODEL if method is MethodType.FULL else ADAPTER


@dataclass(frozen=True)
class Base:
    """The base model that an adapter names.

    Attributes:
        location: name on the hub, folder, or s3:// uri of the mirror.
        revision: the hub's commit; None for a mirror, whose prefix already holds the commit.
        on_hub: whether `location` is a name on the hub.
    """

    location: str
    revision: str | None
    on_hub: bool


def base_of(model: ModelFacts, store: ObjectStore) -> Base:
    """Return the hub's name and commit if the model came from there, else the mirror in the job's storage."""
    if "://" not in model.source:
        return Base(model.source, model.commit, True)
    mirror = f"{store.uri}/{model.prefix}".rstrip("/")
    return Base(mirror.removeprefix("file://"), None, False)  # peft takes a folder's path, not its uri


def mend(folder: Path, plan: Plan, base: Base, *, merged: bool = False) -> None:
    """Rewrite the configurations of a checkpoint in place: remove paths of the training node, add base and labels.

    Args:
        merged: whether the folder holds a model that an adapter was merged into.
    """
    if plan.dataset.labels:
        (folder / File.LABELS).write_text(json.dumps(plan.dataset.labels, ensure_ascii=False, indent=1) + "\n", "utf-8")
    if spec_of(plan.task).named or spec_of(plan.task).compares:
        _pad(folder / TOKENIZER_CONFIG)
    if merged or plan.method is MethodType.FULL:
        config = _read(folder / CONFIG)
        config.pop("_name_or_path", None)
        config.pop("use_cache", None)  # training turns it off; generation would be slow without it
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
    """Give a tokenizer without a padding token the one that the training padded with, since batches need it."""
    if path.exists() and not (config := _read(path)).get("pad_token") and config.get("eos_token"):
        _write(path, config | {"pad_token": config["eos_token"]})


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")

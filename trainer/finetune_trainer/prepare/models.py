"""The base model: found, read without torch, and mirrored once to the job's storage under its commit."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from pydantic import ValidationError

from finetune_api.contract import Env, model_prefix
from finetune_api.errors import ModelError
from finetune_api.messages import Manifest, ModelFacts, Task
from finetune_api.v1alpha1 import ModelSpec
from finetune_api.v1alpha1.input_specs import VolumeClaimRef
from finetune_trainer.model.families import positions_of
from finetune_trainer.model.files import (
    CONFIG,
    SENTENCE_FILES,
    SMALL_FILES,
    TOKENIZER,
    WEIGHTS_INDEX,
    check_names,
    model_problem,
    parse_json,
    weight_names,
)
from finetune_trainer.prepare.headers import Header, Read, read_header
from finetune_trainer.prepare.hub import locate_on_hub
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.setting import Setting
from finetune_trainer.prepare.plan.shape import architecture_of
from finetune_trainer.prepare.tokens.conversion import converted_tokenizer
from finetune_trainer.prepare.weights import check_head, check_weights
from finetune_trainer.storage import (
    FolderStore,
    NotFoundError,
    ObjectInfo,
    ObjectStore,
    download_files,
    hash_file,
    open_store,
    read_manifest,
    upload_files,
)


class ModelSource(Protocol):
    """A model that exists, before its weights are read."""

    @property
    def name(self) -> str:
        """Name for the mirror's prefix."""

    @property
    def source(self) -> str:
        """What the user wrote."""

    @property
    def fingerprint(self) -> str:
        """Changes when the model does, and costs no reading of weights."""

    def config(self, folder: Path) -> dict[str, Any]:
        """Return `config.json`; `folder` is for downloads."""

    def small_files(self, folder: Path) -> dict[str, Path]:
        """Return configuration and tokenizer, on this machine, by name."""

    @property
    def pinned(self) -> str:
        """The commit where it is known without reading weights; else empty."""

    def headers(self, folder: Path) -> dict[str, Header]:
        """Return what each weight file holds, by name; read no weight."""

    def read_weights(self, name: str) -> Read:
        """Return the function that reads byte ranges of a weight file, where the file lies."""

    def files(self, folder: Path) -> dict[str, Path]:
        """Return every file that is mirrored, on this machine, by name."""

    def commit(self, files: Mapping[str, Path]) -> str:
        """Return the commit: the hub's, or a hash over the files."""


@dataclass(frozen=True)
class FolderModel:
    """A model in a folder behind s3:// or file://."""

    name: str
    source: str
    store: ObjectStore
    listing: tuple[ObjectInfo, ...]

    @property
    def fingerprint(self) -> str:
        """Over names, sizes and tags."""
        parts = [(self.store.uri, info.key, info.size, info.etag) for info in self.listing]
        return hashlib.sha256(json.dumps([self.source, parts]).encode()).hexdigest()

    def config(self, folder: Path) -> dict[str, Any]:
        """Return `config.json`; `folder` is for downloads."""
        return parse_json(CONFIG, self.store.get(CONFIG))

    def small_files(self, folder: Path) -> dict[str, Path]:
        """Return configuration and tokenizer, on this machine, by name."""
        return self._here([info.key for info in self.listing if info.key in SMALL_FILES | SENTENCE_FILES], folder)

    @property
    def pinned(self) -> str:
        """Known only when every file was read."""
        return ""

    def headers(self, folder: Path) -> dict[str, Header]:
        """Read where the files lie."""
        sizes = {info.key: info.size for info in self.listing}
        names = self._weights()
        self._check_readable(names)
        return {name: read_header(name, sizes[name], self.read_weights(name)) for name in names}

    def read_weights(self, name: str) -> Read:
        """Return the function that reads byte ranges of a weight file, where the file lies."""
        return partial(self.store.read, name)

    def files(self, folder: Path) -> dict[str, Path]:
        """Return every file that is mirrored, on this machine, by name."""
        return self._here([info.key for info in self.listing if info.key in SMALL_FILES] + self._weights(), folder)

    def _weights(self) -> list[str]:
        index = parse_json(WEIGHTS_INDEX, self.store.get(WEIGHTS_INDEX)) if self._has(WEIGHTS_INDEX) else None
        names = weight_names(index)
        missing = [name for name in names if not self._has(name)]
        if missing:
            raise ModelError(
                model_problem("ModelIncomplete", f"{self.source} has no {missing[0]}", "copy the whole model")
            )
        return names

    def _check_readable(self, names: list[str]) -> None:
        if not isinstance(self.store, FolderStore):
            return
        here = {name: self.store.path(name) for name in names}
        if locked := [name for name, path in here.items() if not os.access(path, os.R_OK)]:
            message = f"{locked[0]} in {self.source} may not be read by the user {os.getuid()}"
            raise ModelError(
                model_problem("ModelUnreadable", message, "give all users the right to read the model: chmod -R a+rX")
            )

    def _here(self, names: list[str], folder: Path) -> dict[str, Path]:
        self._check_readable(names)
        if isinstance(self.store, FolderStore):
            return {name: self.store.path(name) for name in names}
        paths = {name: folder / self.fingerprint / name for name in names}
        for name, path in paths.items():
            if not path.exists():
                self.store.get_file(name, path)
        return paths

    def commit(self, files: Mapping[str, Path]) -> str:
        """Return the commit: the hub's, or a hash over the files."""
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(f"{name}\0{hash_file(files[name]).sha256}\n".encode())
        return digest.hexdigest()

    def _has(self, name: str) -> bool:
        return any(info.key == name for info in self.listing)


def locate_model(spec: ModelSpec, environ: Mapping[str, str]) -> ModelSource:
    """Find the model and, on the hub, pin its commit.

    Raises:
        ModelError: it is not there, or lacks a file it needs.
        StorageError: the store it lies in refuses or is unreachable.
    """
    if spec.name is not None:
        return locate_on_hub(spec.name, spec.revision, environ)
    if claim := spec.persistent_volume_claim:
        source, uri = f"{claim.claim_name}/{claim.path.strip('/')}".rstrip("/"), _mounted(claim, environ)
    elif spec.uri is not None:
        source = uri = spec.uri
    else:
        raise ModelError(model_problem("NoModel", "neither name nor uri is given", "give one of the two"))
    store = open_store(uri, environ)
    listing = tuple(info for info in store.list() if "/" not in info.key or info.key in SENTENCE_FILES)
    names = {info.key for info in listing}
    check_names(names, source)
    kept = tuple(
        info for info in listing if info.key in SMALL_FILES | SENTENCE_FILES or info.key.endswith(".safetensors")
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
    return FolderModel(name, source, store, kept)


def _mounted(claim: VolumeClaimRef, environ: Mapping[str, str]) -> str:
    """Return the uri of a folder on a claim, where the pod has it mounted."""
    field = "spec.model.persistentVolumeClaim"
    volume = environ.get(Env.MODEL_VOLUME)
    if not volume:
        message = f"{claim.claim_name} is not mounted here: volumes are a cluster's"
        raise ModelError(model_problem("NoVolume", message, "use spec.model.uri with file:// on this machine", field))
    if ".." in Path(claim.path).parts:
        message = f"{claim.path!r} leads out of the volume"
        raise ModelError(
            model_problem("InvalidPath", message, "write a folder below the volume's root", f"{field}.path")
        )
    return f"file://{quote(str(Path(volume) / claim.path.strip('/')))}"


@dataclass(frozen=True)
class BaseModel:
    """A model that can be trained.

    Attributes:
        config: `config.json`.
        folder: where its configuration and tokenizer lie on this machine.
        files: what is to be mirrored, by name; empty until it is fetched, and if it is mirrored already.
        headers: of its weight files, by name; empty if it is mirrored already.
        converted: files of the tokenizer that was made of an older one, by name; mirrored beside the others.
    """

    facts: ModelFacts
    config: Mapping[str, Any]
    folder: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    headers: Mapping[str, Header] = field(default_factory=dict)
    converted: Mapping[str, Path] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shapes of the tensors in its files, by name; empty if an earlier job mirrored it, which looked at them."""
        return {name: shape for header in self.headers.values() for name, shape in header.shapes.items()}

    def check(self, task: Task, labels: Sequence[str]) -> None:
        """Refuse weights that are not those of the configuration, or of a head for other labels; imports torch.

        Args:
            labels: names of the data's labels, as they will be numbered; none for regression.

        Raises:
            ModelError: they do not fit.
        """
        check_head(self.config, task, labels)
        if shapes := self.shapes:
            check_weights(self.config, task, len(labels) or 1, shapes)

    def counted(self, setting: Setting, labels: int) -> Architecture:
        """Return the model's sizes and what a step of it keeps, in the setting of a job; imports torch.

        Raises:
            ModelError: transformers cannot build it.
            SpecError: it has no modules or parameters of the names that the method has.
        """
        return architecture_of(
            self.config,
            setting.task,
            setting.lora or None,
            setting.weight_bytes,
            setting.machine.device,
            max(2, labels),
            setting.freeze,
            len(setting.job.spec.model.new_tokens),
            setting.start.shapes if setting.start else {},
        )


def read_model(model: ModelSource, folder: Path, positions: int | None = None) -> BaseModel:
    """Read what a model is: its configuration, its tokenizer, and the headers of its weights.

    Args:
        positions: the longest row that it takes, in tokens, where that is known better than from its configuration.

    The commit of a model in a folder is a hash over all its files: it is empty until `fetch` has read them.

    Raises:
        ModelError: configuration or weights are damaged.
    """
    small, headers = model.small_files(folder), model.headers(folder)
    config = parse_json(CONFIG, small[CONFIG].read_bytes())
    converted = {} if TOKENIZER in small else converted_tokenizer(small, folder / "converted", model.source)
    facts = ModelFacts(
        name=model.name,
        commit=model.pinned,
        prefix=model_prefix(model.name, model.pinned),
        source=model.source,
        model_type=str(config["model_type"]),
        parameters=sum(header.parameters for header in headers.values()),
        size_bytes=sum(header.size for header in headers.values()),
        max_positions=positions_of(config) if positions is None else positions,
    )
    own = converted[TOKENIZER].parent if converted else small[CONFIG].parent
    return BaseModel(facts, config, own, headers=headers, converted=converted)


def fetch(base: BaseModel, model: ModelSource, folder: Path) -> BaseModel:
    """Return the model with all its files on this machine, and its commit; a mirrored model as it is.

    Raises:
        ModelError: a file cannot be had.
    """
    if not base.headers:
        return base
    files = {**model.files(folder), **base.converted}
    commit = model.commit(files)
    facts = base.facts.model_copy(update={"commit": commit, "prefix": model_prefix(model.name, commit)})
    return replace(base, facts=facts, files=files)


def find_mirrored(model: ModelSource, store: ObjectStore, folder: Path) -> BaseModel | None:
    """Return the model as an earlier job mirrored it, with configuration and tokenizer fetched; None without one."""
    try:
        facts = ModelFacts.model_validate_json(store.get(_index_key(model)))
    except (NotFoundError, ValidationError):  # none, or of another version
        return None
    manifest = read_manifest(store, facts.prefix)
    if manifest is None:
        return None
    local = folder / facts.commit
    download_files(store, facts.prefix, _small(manifest), local)
    config = parse_json(CONFIG, (local / CONFIG).read_bytes())
    return BaseModel(facts.model_copy(update={"source": model.source}), config, local)


def mirror(base: BaseModel, model: ModelSource, store: ObjectStore) -> None:
    """Upload a model that is not there yet, and remember its fingerprint."""
    if base.files:
        if read_manifest(store, base.facts.prefix) is None:
            upload_files(store, base.files, base.facts.prefix, "model", base.facts.model_dump(mode="json"))
        store.put(_index_key(model), base.facts.to_json().encode())


def _index_key(model: ModelSource) -> str:
    return f"models/index/{model.fingerprint}.json"


def _small(manifest: Manifest) -> list[Any]:
    return [entry for entry in manifest.files if entry.path in SMALL_FILES]

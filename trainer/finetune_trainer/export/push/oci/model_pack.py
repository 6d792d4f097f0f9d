"""The documents of an artifact in a registry: CNCF ModelPack (https://github.com/modelpack/model-spec), or an OCI image
of the same layers. Pure: equal artifacts give equal bytes.

Each file of weights is a layer, the other files are two. Layers are archives without compression: container runtimes
mount archives, and weights hardly shrink.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetune_api.messages import ExportForm
from finetune_trainer.export.evidence.evidence_paths import EVIDENCE
from finetune_trainer.export.layout import CARD
from finetune_trainer.export.push.copies import CommittedArtifact

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MODEL_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
FILE_PATH = "org.cncf.model.filepath"
PLATFORMS = ("amd64", "arm64")  # a runtime refuses an image of another platform than its own, even to mount it
WEIGHTS = (".safetensors", ".gguf")
OURS = "dev.finetune"


class LayerKind(StrEnum):
    """The media types of layers in ModelPack."""

    WEIGHTS = "application/vnd.cncf.model.weight.v1.tar"
    CONFIG = "application/vnd.cncf.model.weight.config.v1.tar"
    DOCS = "application/vnd.cncf.model.doc.v1.tar"


@dataclass(frozen=True)
class LayerFiles:
    """One layer: its kind, and the files in it."""

    kind: LayerKind
    names: tuple[str, ...]

    @property
    def path(self) -> str:
        """What the layer's annotation calls it: the file, or the kind of several files."""
        return self.names[0] if len(self.names) == 1 else self.kind.rpartition("model.")[2].partition(".v1")[0]


@dataclass(frozen=True)
class StoredLayer:
    """A layer with its place in the registry."""

    files: LayerFiles
    digest: str
    size: int

    def descriptor(self, media_type: str) -> dict[str, Any]:
        """Return the entry of a manifest."""
        annotations = {FILE_PATH: self.files.path}
        return {"mediaType": media_type, "digest": self.digest, "size": self.size, "annotations": annotations}


@dataclass(frozen=True)
class Document:
    """A JSON document of a registry.

    Attributes:
        tagged: whether the tag names it; the others are found by their digests.
    """

    media_type: str
    content: bytes
    tagged: bool = False

    @property
    def digest(self) -> str:
        """`sha256:` and the hash."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    @property
    def is_manifest(self) -> bool:
        """Whether registries store it as a manifest, and not as a blob."""
        return self.media_type in (MANIFEST_TYPE, INDEX_TYPE)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        """Return the entry in another document."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content), **more}


def layers_of(artifact: CommittedArtifact) -> list[LayerFiles]:
    """Return the layers of an artifact: one for each file of weights, the configurations, the papers."""
    names = sorted(artifact.names)
    weights = [name for name in names if name.endswith(WEIGHTS)]
    docs = tuple(name for name in names if name == CARD or name.startswith(EVIDENCE))
    others = tuple(name for name in names if name not in {*weights, *docs})
    groups = [(LayerKind.CONFIG, others), (LayerKind.DOCS, docs)]
    return [
        *(LayerFiles(LayerKind.WEIGHTS, (name,)) for name in weights),
        *(LayerFiles(kind, group) for kind, group in groups if group),
    ]


def model_pack(artifact: CommittedArtifact, layers: Sequence[StoredLayer]) -> list[Document]:
    """Return configuration and manifest of ModelPack, in the order in which a registry takes them."""
    plan, info = artifact.plan, artifact.manifest.info
    whole, gguf = artifact.form is not ExportForm.ADAPTER, artifact.form is ExportForm.GGUF
    formats = {
        "architecture": "transformer",
        "format": "gguf" if gguf else "safetensors",
        "paramSize": _count(plan.model.parameters) if whole else None,
        "precision": info.get("dtype") if whole and not gguf else None,
        "quantization": ",".join(info.get("quantizations", ())) or None if gguf else None,
    }
    descriptor = {
        "createdAt": artifact.manifest.created,
        "family": plan.model.model_type or None,
        "name": plan.model.name,
        "title": _title(artifact),
        "revision": artifact.digest,
    }
    config = _document(
        MODEL_CONFIG,
        {
            "descriptor": _given(descriptor),
            "config": _given(formats),
            "modelfs": {"type": "layers", "diffIds": [one.digest for one in layers]},
        },
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_ARTIFACT,
        "config": config.descriptor(),
        "layers": [one.descriptor(one.files.kind) for one in layers],
        "annotations": annotations_of(artifact),
    }
    return [config, _document(MANIFEST_TYPE, manifest, tagged=True)]


def image(artifact: CommittedArtifact, layers: Sequence[StoredLayer]) -> list[Document]:
    """Return an image of the layers for each platform, and the index that the tag names."""
    documents, entries = [], []
    for platform in PLATFORMS:
        config = _document(
            IMAGE_CONFIG,
            {
                "created": artifact.manifest.created,
                "architecture": platform,
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [one.digest for one in layers]},
            },
        )
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(),
            "layers": [one.descriptor(IMAGE_LAYER) for one in layers],
            "annotations": annotations_of(artifact),
        }
        manifest = _document(MANIFEST_TYPE, value)
        entries.append(manifest.descriptor(platform={"architecture": platform, "os": "linux"}))
        documents += [config, manifest]
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": entries,
        "annotations": annotations_of(artifact),
    }
    return [*documents, _document(INDEX_TYPE, index, tagged=True)]


def annotations_of(artifact: CommittedArtifact) -> dict[str, str]:
    """Return what a manifest says of the artifact, and of the base model by name, commit and digest."""
    model = artifact.plan.model
    values = {
        "org.opencontainers.image.created": artifact.manifest.created,
        "org.opencontainers.image.title": _title(artifact),
        f"{OURS}.artifact.form": str(artifact.form),
        f"{OURS}.artifact.digest": artifact.digest,
        f"{OURS}.base.name": model.name,
        f"{OURS}.base.commit": model.commit,
        f"{OURS}.base.digest": artifact.base_digest,
    }
    return {name: value for name, value in values.items() if value}


def _title(artifact: CommittedArtifact) -> str:
    return f"{artifact.plan.model.name}, fine-tuned"


def _count(parameters: int) -> str | None:
    """Return a number as ModelPack writes it: 7.1B."""
    for letter, unit in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= unit:
            return f"{parameters / unit:.1f}".removesuffix(".0") + letter
    return None


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _document(media_type: str, value: Mapping[str, Any], *, tagged: bool = False) -> Document:
    return Document(media_type, json.dumps(value, ensure_ascii=False, sort_keys=True).encode(), tagged)

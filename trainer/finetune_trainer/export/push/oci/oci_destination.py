"""A tag in an OCI registry. Layers come first, the manifest last: the tag names the old copy or the whole new one."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_trainer.export.push.copies import CommittedArtifact, Delivery
from finetune_trainer.export.push.oci.model_pack import StoredLayer, image, layers_of, model_pack
from finetune_trainer.export.push.oci.registry_client import BytesBlob, Registry
from finetune_trainer.export.push.oci.registry_login import DOCKER_HUB, LoginError, find_login
from finetune_trainer.export.push.oci.tar_layer import TarLayer
from finetune_trainer.export.push.push_retries import PushRetries

DOCKER_HUB_API = "registry-1.docker.io"
LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class OciDestination:
    """A tag.

    Attributes:
        reference: registry, repository and tag.
        plain: whether the registry speaks HTTP without encryption.
        logins: configuration of docker, which need not exist.
        ca: file with the CA certificate of the registry; None = those of the system.
    """

    reference: str
    layout: Literal["ModelPack", "Image"]
    plain: bool
    logins: Path
    ca: Path | None
    retries: PushRetries

    @property
    def uri(self) -> str:
        """The reference as an address."""
        return f"oci://{self.reference}"

    @property
    def identity(self) -> str:
        """The reference and the layout."""
        return f"{self.uri}#{self.layout}"

    def current(self) -> str | None:
        """Return the digest of the manifest that the tag names; None if there is no such tag."""
        with closing(self._registry()) as registry:
            return registry.manifest_digest(self._tag)

    def push(self, artifact: CommittedArtifact, folder: Path) -> Delivery:
        """Store the layers that the repository lacks, then the documents; the last one moves the tag."""
        with closing(self._registry()) as registry:
            return self._store(registry, artifact, folder)

    def _store(self, registry: Registry, artifact: CommittedArtifact, folder: Path) -> Delivery:
        stored = []
        for files in layers_of(artifact):
            layer = TarLayer.of({name: folder / name for name in files.names})
            if not registry.put_blob(layer):
                self.retries.report(f"push: {self.uri} has {files.path} already")
            stored.append(StoredLayer(files, layer.digest, layer.size))
        documents = (model_pack if self.layout == "ModelPack" else image)(artifact, stored)
        whole = documents[-1]
        if registry.manifest_digest(self._tag) == whole.digest:
            return Delivery(whole.digest, sent=False)
        for one in documents:
            if one.is_manifest:
                registry.put_manifest(self._tag if one.tagged else one.digest, one.content, one.media_type)
            else:
                registry.put_blob(BytesBlob(one.content, one.digest))
        return Delivery(whole.digest)

    @property
    def _tag(self) -> str:
        return self.reference.rpartition(":")[2]

    def _registry(self) -> Registry:
        host, _, repository = self.reference.rpartition(":")[0].partition("/")
        try:
            login = find_login(self.logins, host, repository)
        except LoginError as error:
            cure = "make the Secret with kubectl create secret docker-registry (on your machine: docker login)"
            raise self.retries.refused(str(error), cure) from error
        plain = self.plain or host.partition(":")[0] in LOOPBACK
        api = DOCKER_HUB_API if host == DOCKER_HUB else host
        return Registry(f"{'http' if plain else 'https'}://{api}", repository, login, self.ca, self.retries)

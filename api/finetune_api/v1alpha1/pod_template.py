"""`spec.podTemplate`: the parts of a pod that a job may add to. An allow-list: the rest of the pod is the operator's.

Objects whose shape is Kubernetes' own are kept as they are; the API server checks them when the pods are made.
"""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.v1alpha1.base import FreeObject, Kubernetes, StringMap, Subdomain, Text, Word
from finetune_api.v1alpha1.markers import KeepsData, Supported


class Toleration(Kubernetes):
    """A taint that the pods tolerate."""

    key: Annotated[Word | None, Supported(), KeepsData()] = None
    """Taint key; omitted with operator Exists = every taint."""
    operator: Annotated[Literal["Exists", "Equal"], Supported(), KeepsData()] = "Equal"
    """How key and value are compared."""
    value: Annotated[Text | None, Supported(), KeepsData()] = None
    """Taint value."""
    effect: Annotated[Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None, Supported(), KeepsData()] = None
    """Taint effect; omitted = all."""
    toleration_seconds: Annotated[Annotated[int, Field(ge=0, le=2_147_483_647)] | None, Supported(), KeepsData()] = None
    """How long NoExecute is tolerated."""


class LocalObjectRef(Kubernetes):
    """An object in the job's namespace."""

    name: Annotated[Subdomain, Supported(), KeepsData()]
    """Its name."""


class EnvVar(Kubernetes):
    """An environment variable of the training container."""

    name: Annotated[Word, Supported(), KeepsData()]
    """Its name."""
    value: Annotated[Text | None, Supported(), KeepsData()] = None
    """Its value."""
    value_from: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Where its value comes from, in Kubernetes' form."""


class VolumeMount(Kubernetes):
    """Where a volume of podTemplate.volumes appears in the training container."""

    name: Annotated[Word, Supported(), KeepsData()]
    """Name of the volume."""
    mount_path: Annotated[Text, Supported(), KeepsData()]
    """Folder in the container."""
    sub_path: Annotated[Text | None, Supported(), KeepsData()] = None
    """Folder in the volume."""
    read_only: Annotated[bool, Supported(), KeepsData()] = False
    """Mount it read-only."""


FreeObjects = Annotated[list[FreeObject], Field(max_length=32)]


class PodTemplate(Kubernetes):
    """Additions to every pod of the job, merged by name."""

    labels: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Labels."""
    annotations: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Annotations."""
    node_selector: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Labels of the nodes to run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that are tolerated."""
    affinity: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Affinity, in Kubernetes' form."""
    topology_spread_constraints: Annotated[FreeObjects, Supported(), KeepsData()] = Field(default_factory=list)
    """Spread over zones or racks, in Kubernetes' form."""
    volumes: Annotated[FreeObjects, Supported(), KeepsData()] = Field(default_factory=list)
    """Further volumes, in Kubernetes' form."""
    image_pull_secrets: Annotated[list[LocalObjectRef], Field(max_length=16)] = Field(default_factory=list)
    """Secrets for private registries."""
    service_account_name: Annotated[Subdomain | None, Supported(), KeepsData()] = None
    """Service account of the pods; no token of it is mounted."""
    runtime_class_name: Annotated[Subdomain | None, Supported(), KeepsData()] = None
    """Container runtime class."""
    scheduler_name: Annotated[Word | None, Supported(), KeepsData()] = None
    """Scheduler."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Further environment of the training container."""
    env_from: Annotated[FreeObjects, Supported(), KeepsData()] = Field(default_factory=list)
    """Environment from ConfigMaps and Secrets, in Kubernetes' form."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(default_factory=list)
    """Where the further volumes appear."""

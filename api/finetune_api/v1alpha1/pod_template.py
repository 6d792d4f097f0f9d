"""`spec.podTemplate`: the parts of a pod that a job may add to. An allow-list: the rest of the pod is the operator's.

Objects whose shape is Kubernetes' own are kept as they are; the API server checks them when the pods are made.
"""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.v1alpha1.base import FreeObject, Kubernetes, StringMap, Subdomain, Text, Word


class Toleration(Kubernetes):
    """A taint that the pods tolerate."""

    key: Word | None = None
    """Taint key; omitted with operator Exists = every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: Text | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; omitted = all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """How long NoExecute is tolerated."""


class LocalObjectRef(Kubernetes):
    """An object in the job's namespace."""

    name: Subdomain
    """Its name."""


class EnvVar(Kubernetes):
    """An environment variable of the training container."""

    name: Word
    """Its name."""
    value: Text | None = None
    """Its value."""
    value_from: FreeObject | None = None
    """Where its value comes from, in Kubernetes' form."""


class VolumeMount(Kubernetes):
    """Where a volume of podTemplate.volumes appears in the training container."""

    name: Word
    """Name of the volume."""
    mount_path: Text
    """Folder in the container."""
    sub_path: Text | None = None
    """Folder in the volume."""
    read_only: bool = False
    """Mount it read-only."""


FreeObjects = Annotated[list[FreeObject], Field(max_length=32)]


class PodTemplate(Kubernetes):
    """Additions to every pod of the job, merged by name."""

    labels: StringMap = Field(default_factory=dict)
    """Labels."""
    annotations: StringMap = Field(default_factory=dict)
    """Annotations."""
    node_selector: StringMap = Field(default_factory=dict)
    """Labels of the nodes to run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that are tolerated."""
    affinity: FreeObject | None = None
    """Affinity, in Kubernetes' form."""
    topology_spread_constraints: FreeObjects = Field(default_factory=list)
    """Spread over zones or racks, in Kubernetes' form."""
    volumes: FreeObjects = Field(default_factory=list)
    """Further volumes, in Kubernetes' form."""
    image_pull_secrets: Annotated[list[LocalObjectRef], Field(max_length=16)] = Field(default_factory=list)
    """Secrets for private registries."""
    service_account_name: Subdomain | None = None
    """Service account of the pods; no token of it is mounted."""
    runtime_class_name: Subdomain | None = None
    """Container runtime class."""
    scheduler_name: Word | None = None
    """Scheduler."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Further environment of the training container."""
    env_from: FreeObjects = Field(default_factory=list)
    """Environment from ConfigMaps and Secrets, in Kubernetes' form."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(default_factory=list)
    """Where the further volumes appear."""

"""`spec.podTemplate`: the allow-list of what a job may add to its pods. The operator sets everything else.

Objects in the form of Kubernetes are passed on unchanged; the API server checks them when the operator creates pods.
"""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.v1alpha1.markers import KeepsData, Supported
from finetune_api.v1alpha1.spec_base import FreeObject, Kubernetes, StringMap, Subdomain, Text, Word


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
    """Seconds for which NoExecute is tolerated; omitted = without limit."""


class LocalObjectRef(Kubernetes):
    """An object in the job's namespace."""

    name: Annotated[Subdomain, Supported(), KeepsData()]
    """Name of the object."""


class EnvVar(Kubernetes):
    """An environment variable of the training container."""

    name: Annotated[Word, Supported(), KeepsData()]
    """Name of the variable."""
    value: Annotated[Text | None, Supported(), KeepsData()] = None
    """Value of the variable."""
    value_from: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Source of the value, in the form of Kubernetes."""


class VolumeMount(Kubernetes):
    """Where a volume of podTemplate.volumes is mounted in the training container."""

    name: Annotated[Word, Supported(), KeepsData()]
    """Name of the volume."""
    mount_path: Annotated[Text, Supported(), KeepsData()]
    """Folder in the container."""
    sub_path: Annotated[Text | None, Supported(), KeepsData()] = None
    """Folder in the volume."""
    read_only: Annotated[bool, Supported(), KeepsData()] = False
    """Mount the volume read-only."""


FreeObjects = Annotated[list[FreeObject], Field(max_length=32)]


class PodTemplate(Kubernetes):
    """Additions to every pod of the job, merged by name."""

    labels: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Labels of the pods."""
    annotations: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Annotations of the pods."""
    node_selector: Annotated[StringMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Labels of the nodes on which the training pods may run."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that the pods tolerate."""
    affinity: Annotated[FreeObject | None, Supported(), KeepsData()] = None
    """Affinity, in the form of Kubernetes."""
    topology_spread_constraints: Annotated[FreeObjects, Supported(), KeepsData()] = Field(default_factory=list)
    """Spread of the pods over zones or racks, in the form of Kubernetes."""
    volumes: Annotated[FreeObjects, Supported(), KeepsData()] = Field(default_factory=list)
    """Additional volumes, in the form of Kubernetes."""
    image_pull_secrets: Annotated[list[LocalObjectRef], Field(max_length=16)] = Field(default_factory=list)
    """Secrets for private image registries."""
    service_account_name: Annotated[Subdomain | None, Supported(), KeepsData()] = None
    """Service account of the pods. Its token is not mounted."""
    runtime_class_name: Annotated[Subdomain | None, Supported(), KeepsData()] = None
    """RuntimeClass of the pods."""
    scheduler_name: Annotated[Word | None, Supported(), KeepsData()] = None
    """Name of the scheduler that places the pods."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Additional environment variables of the training container."""
    env_from: Annotated[FreeObjects, Supported(), KeepsData()] = Field(default_factory=list)
    """Environment variables from ConfigMaps and Secrets, in the form of Kubernetes."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(default_factory=list)
    """Where the additional volumes are mounted."""

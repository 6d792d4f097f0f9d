"""The object itself: FineTuneJob."""

from typing import Any, Literal

from pydantic import Field

from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_api.v1alpha1.spec_base import JobName, Kubernetes, Label, StringMap, Word
from finetune_api.v1alpha1.status import FineTuneJobStatus


class Metadata(Kubernetes):
    """Object metadata of Kubernetes. Fields that the API server writes are accepted, as in `kubectl get -o yaml`."""

    name: JobName
    """Name of the job. The names of its pods are made from it, so it must be short."""
    namespace: Label = "default"
    """Namespace of the job."""
    uid: Word | None = None
    """Identifier that the API server assigns."""
    labels: StringMap = Field(default_factory=dict)
    """Labels of the object."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the object."""
    generate_name: Any = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    finalizers: Any = None
    generation: Any = None
    managed_fields: Any = None
    owner_references: Any = None
    resource_version: Any = None
    self_link: Any = None


class FineTuneJob(Kubernetes):
    """A job that fine-tunes a Hugging Face model on your data with DeepSpeed, on one or many nodes."""

    api_version: Literal["finetune.dev/v1alpha1"]
    """API group and version."""
    kind: Literal["FineTuneJob"]
    """Kind of the object."""
    metadata: Metadata
    """Name, namespace, labels."""
    spec: FineTuneJobSpec
    """What the user asks for."""
    status: FineTuneJobStatus | None = None
    """The observed state. Only the operator writes it."""

"""The object itself: FineTuneJob."""

from typing import Any, Literal

from pydantic import Field

from finetune_api.v1alpha1.base import JobName, Kubernetes, Label, StringMap, Word
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_api.v1alpha1.status import FineTuneJobStatus


class Metadata(Kubernetes):
    """Kubernetes' object metadata. What the API server writes is accepted: `kubectl get -o yaml` can be fed back."""

    name: JobName
    """Name of the job: short enough for the names and labels made from it."""
    namespace: Label = "default"
    """Namespace."""
    uid: Word | None = None
    """Identity given by the API server."""
    labels: StringMap = Field(default_factory=dict)
    """Labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""
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
    """Fine-tunes a Hugging Face model on your data with DeepSpeed, over many nodes and GPUs."""

    api_version: Literal["finetune.dev/v1alpha1"]
    """API group and version."""
    kind: Literal["FineTuneJob"]
    """Kind of the object."""
    metadata: Metadata
    """Name, namespace, labels."""
    spec: FineTuneJobSpec
    """What is asked for."""
    status: FineTuneJobStatus | None = None
    """What is happening. Written by the operator only."""

"""Resources of a pod or of a container."""

from typing import Annotated

from pydantic import Field

from finetune_api.v1alpha1.markers import KeepsData, Supported
from finetune_api.v1alpha1.spec_base import Kubernetes, QuantityMap


class Resources(Kubernetes):
    """Resources of one pod."""

    limits: Annotated[QuantityMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Limits of the pod, such as {nvidia.com/gpu: 8, memory: 512Gi}."""
    requests: Annotated[QuantityMap, Supported(), KeepsData()] = Field(default_factory=dict)
    """Requests of the pod; omitted = the limits."""

"""The kinds of object the operator works with: where the API server keeps them. Pure."""

from enum import StrEnum

from finetune_api.contract import API_VERSION, PLURAL


class Kind(StrEnum):
    """Path of a kind in a namespace; `{}` stands for the namespace's part."""

    FINETUNEJOB = f"apis/{API_VERSION}/{{}}/{PLURAL}"
    JOB = "apis/batch/v1/{}/jobs"
    POD = "api/v1/{}/pods"
    SECRET = "api/v1/{}/secrets"
    EVENT = "api/v1/{}/events"
    LEASE = "apis/coordination.k8s.io/v1/{}/leases"

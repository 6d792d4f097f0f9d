"""Environment variables of containers: plain ones, fields of the pod, keys of Secrets, and access to storage. Pure."""

from collections.abc import Mapping

from finetune_api.contract import CREDENTIALS, Env, PodPath
from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Object


def variable(name: str, value: str) -> Object:
    """Return a variable with a value."""
    return {"name": str(name), "value": str(value)}


def literal(name: str, text: str) -> Object:
    """Return a variable with a text that others wrote. Kubernetes would expand `$(NAME)` to another variable."""
    return variable(name, text.replace("$", "$$"))


def from_field(name: str, path: str) -> Object:
    """Return a variable with the value of a field of the pod."""
    return {"name": str(name), "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_secret(name: str, secret: str, key: str, optional: bool = False) -> Object:
    """Return a variable with the value of a key of a Secret."""
    reference: Object = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": str(name), "valueFrom": {"secretKeyRef": reference}}


def storage_access(job: AcceptedJob) -> list[Object]:
    """Return the variables that open the storage of a job."""
    storage = job.spec.storage
    plain = {
        Env.STORAGE_ENDPOINT: storage.endpoint,
        Env.STORAGE_REGION: storage.region,
        Env.STORAGE_CA: PodPath.CA.value if storage.ca_secret_ref else None,
    }
    secret = storage.credentials_secret_ref
    return _access(plain, secret.name if secret else "", {one.name: one.name for one in CREDENTIALS})


def data_access(job: AcceptedJob) -> list[Object]:
    """Return the variables that open the storage of the data, if it is not the storage of the job."""
    storage = job.spec.dataset.storage
    if storage is None:
        return []
    plain = {
        Env.DATA_ENDPOINT: storage.endpoint,
        Env.DATA_REGION: storage.region,
        Env.DATA_CA: PodPath.DATA_CA.value if storage.ca_secret_ref else None,
    }
    secret = storage.credentials_secret_ref
    return _access(plain, secret.name if secret else "", {one.name: one.data_variable for one in CREDENTIALS})


def _access(plain: Mapping[Env, str | None], secret: str, names: Mapping[str, str]) -> list[Object]:
    """Build variables from values, and from a Secret unless its name is empty.

    Args:
        names: of the variables, by the name of the credential.
    """
    variables = [variable(name, value) for name, value in plain.items() if value]
    if secret:
        variables += [from_secret(names[one.name], secret, one.name, one.optional) for one in CREDENTIALS]
    return variables

"""From an item of spec.export.push to the place that it names, with the keys of the environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_api.contract import PushVariable, push_variable
from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1.push_spec import HubPush, OciPush, PushSpec
from finetune_trainer.export.push.copies import Destination, Report
from finetune_trainer.export.push.hub_destination import PUBLIC_HUB, HubDestination
from finetune_trainer.export.push.oci.oci_destination import OciDestination
from finetune_trainer.export.push.push_retries import PATIENCE_SECONDS, PushRetries
from finetune_trainer.export.push.storage_destination import StorageDestination, storage_environ

HUB_TOKEN, HUB_ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"  # names of the hub's library
DOCKER_CONFIG = "DOCKER_CONFIG"  # folder of docker's configuration


def field_of(index: int, push: PushSpec) -> str:
    """Return the field of the job that names a place."""
    if push.hub:
        return f"spec.export.push[{index}].hub"
    return f"spec.export.push[{index}].{'oci' if push.oci else 'storage'}"


def open_destination(
    index: int, push: PushSpec, environ: Mapping[str, str], report: Report, seconds: float = PATIENCE_SECONDS
) -> Destination:
    """Return the place of an item; nothing is contacted yet.

    Args:
        index: of the item, by which its keys are named.
        seconds: how long requests to a place that is away are repeated.
    """
    retries = PushRetries(field_of(index, push), report, seconds)
    if push.hub:
        return _hub(index, push.hub, environ, retries)
    if push.oci:
        return _oci(index, push.oci, environ, retries)
    if push.storage:
        opened = storage_environ(index, push.storage, environ)
        return StorageDestination(push.storage.uri.rstrip("/"), opened, retries)
    raise AssertionError("a rule demands exactly one place")


def hub_endpoint(hub: HubPush, environ: Mapping[str, str]) -> str:
    """Return the URL of an item's hub, without a trailing slash."""
    return (hub.endpoint or environ.get(HUB_ENDPOINT) or PUBLIC_HUB).rstrip("/")


def hub_token(index: int, hub: HubPush, environ: Mapping[str, str]) -> str | None:
    """Return the token for an item: its own one, else that of the hub's library.

    A job may name any server as its hub: the token of the library goes only to the hubs that the library itself uses.
    """
    if own := environ.get(push_variable(index, PushVariable.TOKEN)):
        return own
    return (environ.get(HUB_TOKEN) or None) if _is_hub_of_library(hub, environ) else None


def _is_hub_of_library(hub: HubPush, environ: Mapping[str, str]) -> bool:
    return hub_endpoint(hub, environ) in (PUBLIC_HUB, (environ.get(HUB_ENDPOINT) or PUBLIC_HUB).rstrip("/"))


def _oci(index: int, oci: OciPush, environ: Mapping[str, str], retries: PushRetries) -> OciDestination:
    own = environ.get(push_variable(index, PushVariable.DOCKER_CONFIG))
    folder = environ.get(DOCKER_CONFIG) or Path.home() / ".docker"
    ca = environ.get(push_variable(index, PushVariable.CA))
    return OciDestination(
        oci.reference,
        oci.layout,
        oci.plain_http,
        Path(own) if own else Path(folder) / "config.json",
        Path(ca) if ca else None,
        retries,
    )


def check_logins(pushes: Sequence[PushSpec], environ: Mapping[str, str]) -> None:
    """Refuse a job whose pushes lack a key that this machine could have, before anything is trained.

    Raises:
        SpecError: there is no token for a hub.
    """
    for index, push in enumerate(pushes):
        if push.hub and not hub_token(index, push.hub, environ):
            raise SpecError(_missing_token(index, push, push.hub, environ))


def _missing_token(index: int, push: PushSpec, hub: HubPush, environ: Mapping[str, str]) -> Problem:
    message = f"is {hub.repo}, and {HUB_TOKEN} is not set on this machine"
    variable = HUB_TOKEN
    if not _is_hub_of_library(hub, environ):
        variable, endpoint = push_variable(index, PushVariable.TOKEN), hub_endpoint(hub, environ)
        message = f"is {hub.repo} at {endpoint}, and {variable} is not set on this machine"
        message += f"; {HUB_TOKEN} goes only to {PUBLIC_HUB} and to the hub of {HUB_ENDPOINT}"
    cure = f"set {variable} to a token that may write to the repository, or leave the push out"
    return Problem(code="PushKeyMissing", field=field_of(index, push), message=message, cure=cure)


def _hub(index: int, hub: HubPush, environ: Mapping[str, str], retries: PushRetries) -> HubDestination:
    return HubDestination(hub_endpoint(hub, environ), hub.repo, hub.private, hub_token(index, hub, environ), retries)

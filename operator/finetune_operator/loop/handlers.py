"""The watches. Kopf only watches here: no annotation, no finalizer, no PATCH of its own. `News` says what events mean.

Events are wake-ups; a re-list after an expired watch brings every object again, but never tells what was deleted.
"""

import asyncio
from typing import Any

import kopf
from kopf import OperatorRegistry, OperatorSettings

from finetune_api.contract import GROUP, MANAGER, PLURAL, VERSION, Label
from finetune_operator.loop.news import News

WATCH_SECONDS = 300  # the server ends a watch after so long, and it begins anew
BACKOFFS = (1, 1, 2, 3, 5)  # seconds; also the lag after an outage of the API server


def registry(news: News) -> OperatorRegistry:
    """The watches of the operator: FineTuneJobs, and the Jobs and pods that it made."""
    watches = OperatorRegistry()

    async def job(*, event: Any, **_: Any) -> None:
        news.job(event["type"], event["object"])

    async def child(*, event: Any, **_: Any) -> None:
        news.child(event["object"])

    async def pod(*, event: Any, **_: Any) -> None:
        news.pod(event["object"])

    kopf.on.event(GROUP, VERSION, PLURAL, registry=watches, id="finetunejob")(job)
    kopf.on.event("batch", "v1", "jobs", registry=watches, id="job")(child)
    kopf.on.event("", "v1", "pods", registry=watches, id="pod")(pod)
    kopf.on.login(registry=watches)(_login)
    return watches


def _login(**arguments: Any) -> Any:
    """The pod's service account; out of a cluster, the user's kubeconfig."""
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)


def settings() -> OperatorSettings:
    """Kopf as a watch engine and nothing else."""
    made = OperatorSettings()
    made.scanning.disabled = True
    made.peering.standalone = True
    made.posting.enabled = False
    made.watching.server_timeout = WATCH_SECONDS
    made.networking.error_backoffs = BACKOFFS
    ours = f"{Label.MANAGED_BY}={MANAGER}"
    made.watching.label_selectors["batch", "v1", "jobs"] = ours
    made.watching.label_selectors["", "v1", "pods"] = ours
    return made


async def watch(namespaces: tuple[str, ...], identity: str, news: News, ready: asyncio.Event) -> None:
    """Watches until cancelled or told to stop (Kopf listens for signals too); raises when a watch cannot go on."""
    await kopf.operator(
        registry=registry(news),
        settings=settings(),
        standalone=True,
        identity=identity,  # type: ignore[arg-type] # a str; without one Kopf asks for a user name, which a pod may lack
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
    )

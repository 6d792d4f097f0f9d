"""The watches, by Kopf. Kopf only watches: it writes no annotation, no finalizer and no PATCH. `News` reads the events.

An event is a wake-up. A re-list after an interrupted watch returns every object again, but never reports deletions.
"""

import asyncio
from typing import Any

import kopf
from kopf import OperatorRegistry, OperatorSettings

from finetune_api.contract import GROUP, MANAGER, PLURAL, VERSION, Label
from finetune_operator.loop.news import News

WATCH_SECONDS = 300  # the API server ends a watch after this time, and Kopf starts it again
BACKOFFS = (1, 1, 2, 3, 5)  # seconds between tries; also the delay after an outage of the API server


def registry(news: News) -> OperatorRegistry:
    """Return the watches: FineTuneJobs, and the Jobs and pods that the operator created."""
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
    """Log in with the service account of the pod, or with the user's kubeconfig outside a cluster."""
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)


def settings() -> OperatorSettings:
    """Return settings that reduce Kopf to a watch engine."""
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
    """Watch until this task is cancelled or the process gets a signal; raise if a watch cannot continue.

    Args:
        ready: set as soon as the watches run.
    """
    await kopf.operator(
        registry=registry(news),
        settings=settings(),
        standalone=True,
        # A str. Without an identity Kopf asks for a user name, which a pod may lack.
        identity=identity,  # type: ignore[arg-type]
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
    )

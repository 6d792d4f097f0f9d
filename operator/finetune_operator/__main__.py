"""`python -m finetune_operator`: watches, elects, reconciles, polls, and serves /healthz, /readyz and /metrics."""

import asyncio
import logging
import signal
import sys

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_api.contract import ExitCode
from finetune_api.errors import SpecError
from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.cluster.lease import Elector, LostLeaseError
from finetune_operator.loop import metrics
from finetune_operator.loop.controller import Controller
from finetune_operator.loop.handlers import watch
from finetune_operator.loop.news import News
from finetune_operator.loop.pace import WritePace
from finetune_operator.loop.progress import Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.job_identity import JobKey
from finetune_operator.objects.kinds import Kind
from finetune_operator.settings import Settings, parse

log = logging.getLogger("operator")

CRD_SECONDS = 2.0  # between two checks for the CustomResourceDefinition


def main() -> int:
    """Run until the process is asked to stop, and return its exit code."""
    try:
        settings = parse()
    except SpecError as error:
        print(error, file=sys.stderr)
        return ExitCode.USER_ERROR
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s %(message)s", level=settings.log_level.upper(), stream=sys.stderr
    )
    for verbose in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    code = ExitCode.OK
    try:
        asyncio.run(run(settings))
    except* LostLeaseError as group:
        log.error("%s", group.exceptions[0])
        code = ExitCode.UNKNOWN
    return code


async def run(settings: Settings) -> None:
    """Run all parts together. If one part ends, all end, and Kubernetes restarts the pod."""
    queue: WorkQueue[JobKey] = WorkQueue()
    pace: WritePace[JobKey] = WritePace(settings.progress_seconds)
    poller = Poller(settings.token_key, settings.poll_seconds, queue.add, pace)
    kube = await Kube.connect(settings.requests)
    elector = Elector(kube, settings.lease_namespace, settings.identity, settings.lease_seconds)
    controller = Controller(kube, settings, queue, poller, pace, lambda: elector.leads)
    news = News(queue, poller)
    watching = asyncio.Event()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await _serve(settings.http_port, watching)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_watch(kube, settings, news, watching, stop)),
                group.create_task(elector.run()),
                group.create_task(_lead(elector, controller, poller)),
            ]
            await stop.wait()
            log.info("stopping")
            for task in tasks:
                task.cancel()
    finally:
        await elector.release()
        await server.cleanup()
        await kube.close()


async def _watch(kube: Kube, settings: Settings, news: News, watching: asyncio.Event, stop: asyncio.Event) -> None:
    """Watch as soon as the API server serves FineTuneJobs: the watch engine looks for its kinds only when it starts."""
    await _until_served(kube)
    await watch(settings.namespaces, settings.identity, news, watching)
    stop.set()


async def _until_served(kube: Kube) -> None:
    while True:
        try:
            if await kube.serves(Kind.FINETUNEJOB):
                return
            log.warning("the API server does not serve FineTuneJobs: install the CustomResourceDefinition")
        except KubeError as error:
            log.warning("the API server cannot be asked for FineTuneJobs: %s", error)
        await asyncio.sleep(CRD_SECONDS)


async def _lead(elector: Elector, controller: Controller, poller: Poller) -> None:
    """Reconcile and poll as soon as this replica is elected. Until then it only records events."""
    await elector.elected.wait()
    metrics.LEADS.set(1)
    async with asyncio.TaskGroup() as group:
        group.create_task(controller.run())
        group.create_task(poller.run())


async def _serve(port: int, watching: asyncio.Event) -> web.AppRunner:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if watching.is_set():
            return web.Response(text="ok\n")
        raise web.HTTPServiceUnavailable(text="the watches do not run yet\n")

    async def prometheus(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", prometheus)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner


if __name__ == "__main__":
    sys.exit(main())

"""An agent's HTTP server: GET /healthz and GET /metrics on every node; on the leader's node also POST /v1/beat for
agents and GET /progress for operator and CLI. A slow or silent client loses its connection."""

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from finetune_api.beats import Beat
from finetune_api.contract import PROGRESS_HEADER, progress_token
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.run_metrics import RunMetrics

POLL_SECONDS = 1.0
LARGEST_BEAT = 1 << 20  # bytes
IDLE_SECONDS = 30.0  # from the connection, or the request before, to the end of a request's header
BODY_SECONDS = 10.0  # for a request's body; a beat that took longer would be out of date
# Omitted unless the client declares that it skips unknown fields: operators before 0.1.0 refuse them.
ADDED: Any = {"outage": True, "metrics": True, "energy": True, "checkpoints": {"__all__": {"generation"}}}
OPEN = ("/healthz", "/metrics")  # need no token: kubelet and Prometheus have none


class AgentServer:
    """Serves one agent, and the leader on the leader's node.

    Args:
        token: bearer token of every request except /healthz and /metrics, which show figures only.
        healthy: returns whether the agent's beats are answered, which makes the pod ready.
        attempt: number of the train Job, from which the token for /progress alone is derived.
    """

    def __init__(self, token: str, healthy: Callable[[], bool], attempt: str = "") -> None:
        self._token = f"Bearer {token}".encode()
        self._progress_token = f"Bearer {progress_token(token, attempt)}".encode()
        self._healthy = healthy
        self._leader: Leader | None = None
        self._metrics = RunMetrics(healthy, lambda: self._leader.progress() if self._leader else None)
        self._runner: web.AppRunner | None = None

    async def listen(self, host: str, port: int) -> int:
        """Open a port and return it; 0 = any free port. Beats and /progress are answered with 503 until `lead`."""
        app = web.Application(middlewares=[self._checks_token], client_max_size=LARGEST_BEAT)
        app.router.add_post("/v1/beat", self._beat)
        app.router.add_get("/progress", self._progress)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._show_metrics)
        # A closed connection must cancel the handler: the leader detects a dead agent by it.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=IDLE_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    def lead(self, leader: Leader) -> None:
        """Hand beats to this leader from now on."""
        self._leader = leader

    async def close(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _checks_token(self, request: web.Request, handler: object) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode()
        may_read = request.path == "/progress" and hmac.compare_digest(shown, self._progress_token)
        if request.path not in OPEN and not (may_read or hmac.compare_digest(shown, self._token)):
            raise web.HTTPUnauthorized(text="wrong or missing bearer token\n")
        answer: web.StreamResponse = await handler(request)  # type: ignore[operator]
        return answer

    async def _beat(self, request: web.Request) -> web.Response:
        leader = self._current()
        beat = Beat.model_validate_json(await _body(request))
        leader.hear(beat)
        try:
            directive = await leader.next_directive(beat, POLL_SECONDS)
        except BaseException:
            leader.hear_closed(beat.node, beat.incarnation)
            raise
        return web.json_response(text=directive.model_dump_json())

    async def _progress(self, request: web.Request) -> web.Response:
        known = all(request.headers.get(name) == value for name, value in PROGRESS_HEADER.items())
        progress = self._current().progress()
        text = progress.model_dump_json(exclude_defaults=True, exclude=None if known else ADDED)
        return web.json_response(text=text)

    async def _healthz(self, request: web.Request) -> web.Response:
        if not self._healthy():
            raise web.HTTPServiceUnavailable(text="the leader has not answered a beat lately\n")
        return web.Response(text="ok\n")

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _current(self) -> Leader:
        if self._leader is None:
            raise web.HTTPServiceUnavailable(text="this node does not lead, or not yet\n")
        return self._leader


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_SECONDS:g} s\n") from None

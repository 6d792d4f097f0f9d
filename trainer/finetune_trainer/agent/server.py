"""An agent's HTTP server: GET /healthz and GET /metrics on every node; on the leader's POST /v1/beat for agents and GET
/progress for operator and CLI. A client that is slow, or says nothing, loses its connection."""

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from finetune_api.beats import Beat
from finetune_api.contract import PROGRESS_HEADER, progress_token
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.metrics import RunMetrics

POLL_SECONDS = 1.0
LARGEST_BEAT = 1 << 20  # bytes
IDLE_SECONDS = 30.0  # to the end of a request's header, from its connection or the request before
BODY_SECONDS = 10.0  # for a request's body; a beat that took longer would be of no use
# Left out for who does not say that it skips unknown fields: operators before 0.1.0 refuse an answer that has them.
ADDED: Any = {"outage": True, "checkpoints": {"__all__": {"generation"}}}
OPEN = ("/healthz", "/metrics")  # without a token: kubelet and Prometheus have none


class AgentServer:
    """Serves one agent, and the leader if it is the leader's.

    Args:
        token: bearer token that every caller must show, but for /healthz and /metrics, which tell figures alone.
        healthy: whether the agent's beats are answered: what makes a pod ready.
        attempt: number of the train Job, by which the token for /progress alone is derived.
    """

    def __init__(self, token: str, healthy: Callable[[], bool], attempt: str = "") -> None:
        self._token = f"Bearer {token}".encode()
        self._progress_token = f"Bearer {progress_token(token, attempt)}".encode()
        self._healthy = healthy
        self._leader: Leader | None = None
        self._metrics = RunMetrics(healthy, lambda: self._leader.progress() if self._leader else None)
        self._runner: web.AppRunner | None = None

    async def listen(self, host: str, port: int) -> int:
        """Opens the port; 0 = any. Returns the port. Answers 503 until `lead`."""
        app = web.Application(middlewares=[self._checks_token], client_max_size=LARGEST_BEAT)
        app.router.add_post("/v1/beat", self._beat)
        app.router.add_get("/progress", self._progress)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._show_metrics)
        # A closed connection must end the handler: that is how a dead agent is noticed.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=IDLE_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    def lead(self, leader: Leader) -> None:
        """From now on beats go to this leader."""
        self._leader = leader

    async def close(self) -> None:
        """Closes the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _checks_token(self, request: web.Request, handler: object) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode()
        reads = request.path == "/progress" and hmac.compare_digest(shown, self._progress_token)
        if request.path not in OPEN and not (reads or hmac.compare_digest(shown, self._token)):
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
            raise web.HTTPServiceUnavailable(text="no beat was answered lately\n")
        return web.Response(text="ok\n")

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _current(self) -> Leader:
        if self._leader is None:
            raise web.HTTPServiceUnavailable(text="there is no leader here, or not yet\n")
        return self._leader


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body was not here within {BODY_SECONDS:g} s\n") from None

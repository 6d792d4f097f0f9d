"""Who may ask an agent for what, and how long: the gang's token opens all, the one for /progress that alone."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from finetune_api.beats import CheckpointFacts, EvalMetrics, Outage, Progress, RecoveryCounts
from finetune_api.contract import PROGRESS_HEADER, progress_token
from finetune_api.energy import Energy
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent import server as server_module
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.roster import Limits
from finetune_trainer.agent.run_metrics import run_metrics
from finetune_trainer.agent.server import AgentServer
from finetune_trainer.storage import FolderStore
from tests.local.harness import make_plan

DEADLINE = 60.0
GANG = "the-gang-token"
READS = progress_token(GANG, "2")


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/healthz", "", 200),
        ("GET", "/metrics", "", 200),
        ("POST", "/metrics", "", 405),
        ("GET", "/progress", GANG, 503),  # let in; there is no leader here
        ("GET", "/progress", READS, 503),
        ("GET", "/progress", progress_token(GANG, "1"), 401),  # of another attempt
        ("GET", "/progress", "", 401),
        ("POST", "/v1/beat", READS, 401),
        ("POST", "/v1/beat", GANG, 503),
        ("GET", "/progress/", READS, 401),
        ("GET", "//progress", READS, 401),
    ],
)
def test_a_token_opens_what_it_is_for(method: str, path: str, token: str, status: int) -> None:
    async def test() -> None:
        server = AgentServer(GANG, lambda: True, "2")
        port = await server.listen("127.0.0.1", 0)
        try:
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.request(method, f"http://127.0.0.1:{port}{path}", allow_redirects=False) as answer,
            ):
                assert answer.status == status
        finally:
            await server.close()

    asyncio.run(test())


SLOW = {
    "nothing": b"",
    "half a header": b"GET /healthz HTTP/1.1\r\nHost: x",
    "half a body": b"POST /v1/beat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 99\r\n\r\n{"
    % GANG.encode(),
}


@pytest.mark.parametrize("sent", SLOW)
def test_a_client_that_stops_in_the_middle_of_a_request_loses_its_connection(
    sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.1)

    async def test() -> bytes:
        server = leading(tmp_path)
        port = await server.listen("127.0.0.1", 0)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(SLOW[sent])
            answer = await asyncio.wait_for(reader.read() if sent != "half a body" else reader.readline(), DEADLINE)
            writer.close()
            return answer
        finally:
            await server.close()

    assert asyncio.run(test()) == (b"HTTP/1.1 408 Request Timeout\r\n" if sent == "half a body" else b"")


def leading(folder: Path) -> AgentServer:
    """A server whose agent leads a gang that nobody has joined yet."""
    store, plan = FolderStore(folder), make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1)
    server = AgentServer(GANG, lambda: True, "2")
    server.lead(Leader(plan, store, store, "run/", "a:1", "l", Limits()))
    return server


@pytest.mark.parametrize("headers", [{}, PROGRESS_HEADER], ids=["an earlier operator", "this operator"])
def test_new_fields_are_shown_to_those_who_skip_what_they_do_not_know(
    headers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = "2026-01-01T00:00:00+00:00"
    progress = Progress(
        phase="train",
        generation=3,
        checkpoints=(CheckpointFacts(step=4, generation=2, saved=saved, size_bytes=1),),
        outage=Outage(since=saved, message="cannot connect"),
        energy=Energy(gpus=1.0, devices=1),
    )

    async def test() -> dict[str, Any]:
        server = leading(tmp_path)
        assert server._leader is not None
        monkeypatch.setattr(server._leader, "progress", lambda: progress)
        port = await server.listen("127.0.0.1", 0)
        try:
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {READS}", **headers}) as session,
                session.get(f"http://127.0.0.1:{port}/progress") as answer,
            ):
                shown: dict[str, Any] = await answer.json()
                return shown
        finally:
            await server.close()

    shown = asyncio.run(test())
    assert ("outage" in shown, "generation" in shown["checkpoints"][0]) == (bool(headers), bool(headers))
    assert ("energy" in shown) is bool(headers)


def test_what_a_leader_knows_of_its_run_is_shown_as_metrics(tmp_path: Path) -> None:
    server = leading(tmp_path)
    assert server._leader is not None
    progress = Progress(
        phase="train", generation=3, step=7, max_steps=12, loss=0.5, tokens=800, tokens_per_second=40.0,
        evals=(EvalMetrics(step=6, values={"eval_loss": 0.75}),), metrics={"rewards/margins": 0.25},
        checkpoints=(CheckpointFacts(step=4, saved="2026-01-01T00:00:00+00:00", size_bytes=1),),
        recovery_totals=RecoveryCounts(count=2, lost_steps=5),
        outage=Outage(since="2026-01-01T00:01:00+00:00", message="cannot connect"),
    )  # fmt: skip
    now = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    seen = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in run_metrics(progress, now)
        for sample in metric.samples
    }
    assert (
        seen.items()
        >= {
            ("finetune_train_step",): 7,
            ("finetune_train_step_metrics", "rewards/margins"): 0.25,
            ("finetune_train_loss",): 0.5,
            ("finetune_train_tokens_per_second",): 40,
            ("finetune_train_tokens_total",): 800,
            ("finetune_train_last_commit_age_seconds",): 120,
            ("finetune_train_outage",): 1,
            ("finetune_train_outage_seconds",): 60,
            ("finetune_train_recoveries_total",): 2,
            ("finetune_train_lost_steps_total",): 5,
            ("finetune_train_phase", "train"): 1,
            ("finetune_train_eval", "eval_loss"): 0.75,
        }.items()
    )
    assert ("finetune_train_mfu_ratio",) not in seen, "it is not known here"
    quiet = {metric.name for metric in run_metrics(Progress(phase="starting", generation=1), now)}
    assert not quiet & {
        "finetune_train_loss",
        "finetune_train_last_commit_age_seconds",
        "finetune_train_outage_seconds",
    }
    text = server._metrics.text().decode()
    assert "finetune_train_agent_healthy 1.0" in text
    assert 'finetune_train_phase{phase="starting"} 1.0' in text
    assert "finetune_train_step" not in AgentServer(GANG, lambda: False)._metrics.text().decode(), "it does not lead"

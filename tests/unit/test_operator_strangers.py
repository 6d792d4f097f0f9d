"""Leaders are strangers: whatever one of them answers, the operator lives on and the other jobs are asked as ever."""

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.contract import progress_token
from finetune_operator.cluster import asking
from finetune_operator.loop import progress
from finetune_operator.loop.pace import WritePace
from finetune_operator.loop.progress import UNUSABLE, Poller, pause
from finetune_operator.objects.job_identity import Owner
from finetune_operator.objects.resources import token
from finetune_operator.policy.world import ObservedJob
from tests.unit.operator_worlds import gang, polled, world

Send = Callable[[bytes], Awaitable[None]]
OPERATOR_KEY = b"0123456789abcdef"
STRANGER, NEIGHBOUR = ("team", "a"), ("team", "b")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GOOD = (polled().progress or pytest.fail("a leader that says something")).model_dump(mode="json")


def said(body: bytes, head: bytes = OK) -> Callable[[Send], Awaitable[None]]:
    """A leader that answers so."""

    async def answer(send: Send) -> None:
        await send(head + b"\r\n" + body)

    return answer


def says(**changes: Any) -> Callable[[Send], Awaitable[None]]:
    return said(json.dumps(GOOD | changes).encode())


def endless(head: bytes, more: bytes) -> Callable[[Send], Awaitable[None]]:
    async def answer(send: Send) -> None:
        await send(head)
        while True:
            await send(more)

    return answer


async def silent(send: Send) -> None:
    while True:  # until the other side has gone
        await send(b"")
        await asyncio.sleep(0.01)


async def drip(send: Send) -> None:
    await send(OK + b"\r\n")
    while True:
        await send(b" ")
        await asyncio.sleep(0.01)


WRONG = {
    "bytes that are no UTF-8": said(b"\xff" * 100),
    "an encoding that no text has": said(b'{"phase": "\xff"}', OK[:-2] + b"; charset=hex\r\n"),
    "a page": said(b"<html>hello</html>"),
    "nothing": said(b""),
    "a list": said(b"[1, 2]"),
    "another object": said(b'{"kind": "Secret"}'),
    "brackets without end": said(b"[" * 200_000),
    "a number of 100,000 digits": said(b'{"phase": "train", "generation": ' + b"9" * 100_000 + b"}"),
    "a generation that no status can hold": says(generation=1 << 63),
    "an object that lacks its phase": said(json.dumps({name: GOOD[name] for name in GOOD if name != "phase"}).encode()),
    "64 MiB of zeros, compressed": said(gzip.compress(bytes(64 << 20)), OK + b"Content-Encoding: gzip\r\n"),
    "a body without end": endless(OK + b"\r\n", b"0" * 65536),
    "a header without end": endless(OK + b"X: ", b"0" * 65536),
    "headers without end": endless(OK, b"X: 0\r\n" * 9999),
    "interim responses without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "chunks that are all header": endless(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"e" * 60000 + b"\r\na\r\n"
    ),
    "a redirect": said(b"", b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://%s/elsewhere\r\n"),
    "no permission": said(b"", b"HTTP/1.1 401 Unauthorized\r\n"),
    "an error": said(b"", b"HTTP/1.1 500 Internal Server Error\r\n"),
    "a status that is none": said(b"", b"HTTP/1.1 OK\r\n"),
    "another protocol": said(b"", b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a line break": said(b"", b"\r\n"),
    "silence": silent,
    "a byte now and then": drip,
}


class Pods:
    """Pods behind one port of loopback: whose token is shown, so the answer. Counts questions and bytes by job."""

    def __init__(self, **leaders: Callable[[Send], Awaitable[None]]) -> None:
        self.leaders = {token(OPERATOR_KEY, uid): (uid, answer) for uid, answer in leaders.items()}
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.paths: set[str] = set()
        self.serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())  # type: ignore[arg-type] # there is one
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.paths.add(request.split(" ")[1])
            uid, answer = self.leaders[request.partition("Bearer ")[2].partition("\r\n")[0]]
            self.asked[uid] += 1
            host = request.partition("Host: ")[2].partition("\r\n")[0]

            async def send(data: bytes) -> None:
                if reader.at_eof():
                    raise ConnectionResetError
                data = data.replace(b"http://%s", b"http://" + host.encode())
                self.sent[uid] += len(data)
                writer.write(data)
                await writer.drain()

            await answer(send)
        except ConnectionError:
            pass
        finally:
            writer.close()


def seen(uid: str, ip: str = "127.0.0.1", **changes: Any) -> ObservedJob:
    """A running job whose leader is at an address."""
    train, *pods = gang()
    pods = [replace(pod, ip=ip, controller=train.uid, **changes) for pod in pods]
    found = world(replace(train, controller=uid), *pods)
    return replace(found, owner=Owner(found.owner.name, found.owner.namespace, uid))


async def poll(
    monkeypatch: pytest.MonkeyPatch, pods: Pods, until: Callable[[Poller], bool], **followed: ObservedJob
) -> Poller:
    """Polls the jobs `stranger` and `neighbour` until something is true; the poller must live on to the end."""
    server = await asyncio.start_server(pods.serve, "127.0.0.1", 0)
    monkeypatch.setattr(progress, "AGENT_PORT", server.sockets[0].getsockname()[1])
    poller = Poller(OPERATOR_KEY, 0.01, lambda key: None, WritePace(60))
    for key in (STRANGER, NEIGHBOUR):
        poller.follow(key, followed.get(key[1], seen(key[1])))
    polling = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(30):
            while not until(poller):
                assert not polling.done(), polling
                await asyncio.sleep(0.005)
        return poller
    finally:
        polling.cancel()
        server.close()
        await asyncio.gather(polling, *pods.serving, return_exceptions=True)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_hurts_nobody_and_tells_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(asking, "SECONDS", 0.2)
    monkeypatch.setattr(progress, "WAITING_SHARE", 1)
    pods = Pods(a=WRONG[name], b=says())

    def until(poller: Poller) -> bool:
        told = poller.latest(STRANGER)
        return told is not None and pods.asked["b"] > 3

    poller = asyncio.run(poll(monkeypatch, pods, until))
    found, neighbour = poller.latest(STRANGER), poller.latest(NEIGHBOUR)
    assert found
    assert (found.progress, found.error) == (None, UNUSABLE), "one sentence for all: no way to tell ports apart"
    assert neighbour
    assert neighbour.error == ""
    assert pods.paths == {"/progress"}, "nothing is followed"
    assert pods.sent["a"] / pods.asked["a"] < 8 << 20, "the rest is left in the network's buffers"


RECOVERY = {"generation": 2, "category": "Preempted", "reason": "drained", "time": "2026-05-01T11:58:00+00:00"}


@pytest.mark.parametrize(
    ("broken", "kept"),
    [
        ({"step": 10**4299}, {"step": 0}),
        ({"step": "many"}, {"step": 0}),
        ({"loss": float("nan")}, {"loss": None}),
        ({"evals": [{"step": 1, "values": {"eval_loss": "low", "eval_f1": 0.5}}]}, {"metrics": {"eval_f1": 0.5}}),
        ({"recoveries": [RECOVERY | {"reason": None}, RECOVERY | {"category": "?"}]}, {"recoveries": ["drained"]}),
        ({"checkpoints": [{"step": 1, "saved": "yesterday", "size_bytes": 1}]}, {"checkpoints": [1]}),
        ({"checkpoints": [{"step": None}, {"step": 2, "saved": "", "size_bytes": 1}]}, {"checkpoints": [2]}),
        ({"failure": {"category": "Sabotage"}}, {"failure": None}),
        ({"outage": "long", "anything": {"else": 1}}, {"outage": None}),
        ({"recovery_totals": []}, {}),
        ({"phase": "a phase of a newer version"}, {"phase": "unknown"}),
    ],
    ids=str,
)
def test_an_item_that_cannot_be_read_loses_no_other(broken: dict[str, Any], kept: dict[str, Any]) -> None:
    found = asking._parse(json.dumps(GOOD | broken).encode())
    whole = asking._parse(json.dumps(GOOD).encode())
    untouched = {name: value for name, value in whole if name not in broken}
    assert {name: value for name, value in found if name not in broken} == untouched
    what = {
        "step": found.step,
        "loss": found.loss,
        "metrics": found.evals[0].values if found.evals else {},
        "recoveries": [one.reason for one in found.recoveries],
        "checkpoints": [one.step for one in found.checkpoints],
        "failure": found.failure,
        "outage": found.outage,
        "phase": found.phase,
    }
    assert {name: what[name] for name in kept} == kept


def test_a_slow_leader_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question to it is open all the time."""
    pods = Pods(a=silent, b=says())
    asyncio.run(poll(monkeypatch, pods, lambda _: pods.asked["a"] == 1 and pods.asked["b"] > 5))
    assert pods.asked["a"] == 1


@pytest.mark.parametrize(("took", "expected"), [(0.01, 5), (1, 5), (4, 20)])
def test_who_answers_slowly_is_asked_less_often(took: float, expected: float) -> None:
    assert pause(5, took) == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes", [{"controller": ""}, {"controller": "of another Job"}], ids=["no controller", "another's"]
)
def test_only_pods_that_our_job_made_are_asked(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    """Labels can be given to any pod."""
    foreign = seen("a")
    foreign = replace(foreign, pods=tuple(replace(pod, **changes) for pod in foreign.pods))  # type: ignore[arg-type]
    pods = Pods(a=says(), b=says())
    asyncio.run(poll(monkeypatch, pods, lambda _: pods.asked["b"] > 3, a=foreign))
    assert pods.asked["a"] == 0


def test_a_job_that_is_not_ours_has_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = seen("a")
    foreign = replace(foreign, jobs=tuple(replace(job, controller="of another") for job in foreign.jobs))
    pods = Pods(a=says(), b=says())
    asyncio.run(poll(monkeypatch, pods, lambda _: pods.asked["b"] > 3, a=foreign))
    assert pods.asked["a"] == 0


def test_what_is_kept_of_an_answer_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of everything, and no more than a status holds."""
    saved = [{"step": step, "saved": "2026-05-01T11:59:00+00:00", "size_bytes": 1} for step in range(1000)]
    pods = Pods(a=says(checkpoints=saved, note="x" * 50_000), b=says())
    poller = asyncio.run(poll(monkeypatch, pods, lambda poller: poller.latest(STRANGER) is not None))
    found = poller.latest(STRANGER)
    assert found
    assert found.progress
    assert [one.step for one in found.progress.checkpoints] == list(range(980, 1000))
    assert len(found.progress.note) == asking.LONGEST_TEXT


def test_the_operator_shows_a_token_that_only_reads_where_agents_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents of an older operator's Jobs know the gang's own token alone."""
    whole = token(OPERATOR_KEY, "a")
    for knows, shown in ((True, progress_token(whole, "1")), (False, whole)):
        found = seen("a")
        found = replace(found, jobs=tuple(replace(job, has_progress_token=knows) for job in found.jobs))
        pods = Pods(a=says(), b=says())
        pods.leaders |= {shown: ("shown", says())}
        asyncio.run(poll(monkeypatch, pods, lambda _, pods=pods: pods.asked["shown"] > 1, a=found))


def test_a_leader_that_starts_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = Pods(a=said(b"", b"HTTP/1.1 503 Service Unavailable\r\n"), b=says())
    poller = asyncio.run(poll(monkeypatch, pods, lambda _: pods.asked["a"] > 4))
    assert poller.latest(STRANGER) is None

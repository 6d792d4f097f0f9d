"""Beats go on whatever storage does, and find the leader wherever it is."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from finetune_api.beats import Action, AgentState, Beat, Directive, GenerationRecord
from finetune_api.contract import File
from finetune_trainer.agent import heart as hearts
from finetune_trainer.agent.heart import Heart
from finetune_trainer.storage import FolderStore

DEADLINE = 20.0


def beat() -> Beat:
    return Beat(node=1, incarnation="i", host="h", generation=1, state=AgentState.READY)


def heart(store: FolderStore) -> Heart:
    return Heart(store, "run/", "token", None, beat)


@asynccontextmanager
async def leader(answer: Callable[[], Awaitable[web.Response]]) -> AsyncIterator[str]:
    async def handle(_: web.Request) -> web.Response:
        return await answer()

    app = web.Application()
    app.router.add_post("/v1/beat", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def beating(
    one: Heart, answers: asyncio.Queue[Directive], done: asyncio.Event | None = None
) -> AsyncIterator[None]:
    ended = done or asyncio.Event()
    task = asyncio.create_task(one.run(lambda directive, _: answers.put_nowait(directive), ended.set))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def named(store: FolderStore, address: str) -> None:
    record = GenerationRecord(generation=1, leader=address, incarnation="l")
    store.put("run/" + File.GENERATION, record.to_json().encode())


async def answering() -> web.Response:
    return web.json_response(text=Directive(generation=1, action=Action.HOLD).model_dump_json())


def test_a_storage_that_stalls_holds_up_no_beat(tmp_path: Path) -> None:
    """The leader refuses one beat; the look for another leader hangs; the known one answers again at once."""
    store, stalled, release = FolderStore(tmp_path), threading.Event(), threading.Event()
    refused = False

    async def refuse_once() -> web.Response:
        nonlocal refused
        if not refused:
            refused = True
            raise web.HTTPServiceUnavailable
        await asyncio.to_thread(stalled.wait, DEADLINE)  # the look is under way by now
        return await answering()

    get = store.get

    def stall(key: str) -> bytes:
        if refused:
            stalled.set()
            release.wait(DEADLINE)
        return get(key)

    store.get = stall  # type: ignore[method-assign]

    async def play() -> None:
        answers: asyncio.Queue[Directive] = asyncio.Queue()
        async with leader(refuse_once) as address:
            named(store, address)
            one = heart(store)
            async with beating(one, answers):
                assert (await asyncio.wait_for(answers.get(), DEADLINE)).action is Action.HOLD
                assert not release.is_set()
                assert one.healthy
                release.set()

    asyncio.run(play())


def test_a_leader_that_moved_is_found(tmp_path: Path) -> None:
    async def play() -> None:
        store, answers = FolderStore(tmp_path), asyncio.Queue[Directive]()
        named(store, "127.0.0.1:9")
        one = heart(store)
        async with beating(one, answers), leader(answering) as address:
            assert not one.healthy
            named(store, address)
            await asyncio.wait_for(answers.get(), DEADLINE)
            assert one.healthy

    asyncio.run(play())


def test_a_run_that_is_done_needs_no_leader(tmp_path: Path) -> None:
    async def play() -> None:
        store, done = FolderStore(tmp_path), asyncio.Event()
        named(store, "127.0.0.1:9")
        store.put("run/" + File.DONE, b"{}")
        async with beating(heart(store), asyncio.Queue(), done):
            await asyncio.wait_for(done.wait(), DEADLINE)

    asyncio.run(play())


def test_news_that_never_stop_leave_the_leader_time_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader holds an answer back until it has something new to say. A node that saves every moment has news sooner:
    it would not be heard, and not upload what it has saved."""
    monkeypatch.setattr(hearts, "LISTEN_SECONDS", 0.05)

    async def hold() -> web.Response:
        await asyncio.sleep(0.2)
        return await answering()

    async def play() -> None:
        store, answers = FolderStore(tmp_path), asyncio.Queue[Directive]()

        async def saves() -> None:
            while True:
                one.notify()
                await asyncio.sleep(0.01)

        async with leader(hold) as address:
            named(store, address)
            one = heart(store)
            saving = asyncio.create_task(saves())
            async with beating(one, answers):
                await asyncio.wait_for(answers.get(), DEADLINE)
                await asyncio.wait_for(answers.get(), DEADLINE)
            saving.cancel()

    asyncio.run(play())

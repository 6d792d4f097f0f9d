"""The work queue: each key once, by one worker at a time, and again after failures."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from finetune_operator.loop.queue import FIRST_DELAY, LONGEST_DELAY, WorkQueue


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_a_key_that_is_named_often_is_worked_on_once() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for key in ("a", "b", "a", "a"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        assert len(queue) == 0

    run(test())


def test_a_key_named_while_it_is_worked_on_comes_again_afterwards() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.01)
        queue.done("a")
        assert await queue.get() == "a"

    run(test())


def test_failures_wait_longer_and_longer_until_one_goes_well() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        delays = [queue.add_failed("a") for _ in range(12)]
        assert delays[:3] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
        assert delays[-1] == LONGEST_DELAY
        assert await queue.get() == "a", "due after the first of these delays"
        queue.done("a")
        assert queue.add_failed("a") == FIRST_DELAY

    run(test())


def test_the_earliest_of_several_times_counts() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("a", 60)
        queue.add_after("a", 0.01)
        queue.add_after("a", 60)
        assert await queue.get() == "a"

    run(test())

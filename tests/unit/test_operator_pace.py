"""The pace of status writes, and values that are read once for all who ask."""

import asyncio
from collections.abc import Callable

import pytest

from finetune_operator.cluster.recent import Recent
from finetune_operator.loop.pace import WritePace


class Clock:
    """Monotonic seconds that only a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_figures_of_a_job_are_written_once_a_minute(clock: Clock) -> None:
    writes: WritePace[str] = WritePace(60, clock)
    assert writes.grant("a")
    assert not writes.grant("a"), "one is under way"
    assert writes.granted("a")
    writes.settle("a")
    assert not writes.granted("a")
    clock.now += 59
    assert not writes.grant("a")
    clock.now += 1
    assert writes.grant("a")


def test_the_grant_of_a_write_that_failed_stays_open_until_the_job_is_gone(clock: Clock) -> None:
    writes: WritePace[str] = WritePace(60, clock)
    assert writes.grant("a")
    clock.now += 100
    assert writes.granted("a")
    writes.forget("a")
    assert not writes.granted("a")


def test_all_jobs_together_are_written_no_faster_than_the_limit(clock: Clock) -> None:
    """1,000 jobs are due: a second allows 20 of them, and each later second 20 more."""
    writes: WritePace[int] = WritePace(60, clock)
    for _ in range(5):
        assert sum(writes.grant(job) for job in range(1000)) == 20
        for job in range(1000):
            if writes.granted(job):
                writes.settle(job)
        clock.now += 1


def test_figures_give_way_to_news(clock: Clock) -> None:
    """Of 20 writes that a second allows, news takes what it needs, and figures get the rest."""
    writes: WritePace[str] = WritePace(60, clock)
    for news, figures in ((15, 5), (20, 0), (1000, 0), (0, 20)):
        for _ in range(news):
            writes.spend()
        granted = [job for job in map(str, range(30)) if writes.grant(job)]
        assert len(granted) == figures
        for job in granted:
            writes.forget(job)
        clock.now += 1


def test_what_is_recent_is_read_once_for_all_who_ask(clock: Clock) -> None:
    reads: list[str] = []

    async def read(name: str) -> int:
        reads.append(name)
        await asyncio.sleep(0)
        return len(reads)

    async def test() -> None:
        recent = Recent(read, 60, clock)
        assert await asyncio.gather(*(recent.get("a") for _ in range(8))) == [1] * 8
        clock.now += 59
        assert await recent.get("a") == 1
        assert await recent.get("b") == 2
        clock.now += 1
        assert await recent.get("a") == 3
        assert reads == ["a", "b", "a"]

    asyncio.run(test())


def test_a_value_that_grew_old_while_others_waited_for_it_is_dropped_like_any(clock: Clock) -> None:
    """Who waits holds a lock that nobody knows any more: a read that takes longer than a value lives."""
    reads: list[str] = []
    slow = asyncio.Event()

    async def read(name: str) -> int:
        reads.append(name)
        if reads == ["a"]:
            await slow.wait()
        return len(reads)

    async def test() -> None:
        recent = Recent(read, 60, clock)
        waiting = [asyncio.create_task(recent.get("a")) for _ in range(2)]
        await asyncio.sleep(0)
        clock.now += 60
        slow.set()
        other = asyncio.create_task(recent.get("b"))  # runs between the end of the read and who waited for it
        await asyncio.gather(*waiting, other)
        assert reads == ["a", "b", "a"]
        clock.now += 60
        assert await recent.get("b") == 4

    asyncio.run(test())


def test_an_error_is_not_kept(clock: Clock) -> None:
    answers: list[Callable[[], int]] = [lambda: 1 // 0, lambda: 7]

    async def read(_: str) -> int:
        return answers.pop(0)()

    async def test() -> None:
        recent = Recent(read, 60, clock)
        with pytest.raises(ZeroDivisionError):
            await recent.get("a")
        assert await recent.get("a") == 7

    asyncio.run(test())

"""The queue of jobs to look at. A key stands in the queue once, and one worker at a time works on it. A key that is
added during the work comes again afterwards; a key whose work failed comes again after a growing delay."""

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

_Item = TypeVar("_Item", bound=Hashable)

FIRST_DELAY = 0.2  # seconds
LONGEST_DELAY = 60.0
FACTOR = 2.0


class WorkQueue(Generic[_Item]):
    """A queue of keys. Not thread-safe: all runs on one event loop, without an await between check and change."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[_Item] = asyncio.Queue()
        self._dirty: set[_Item] = set()  # added, and not taken since
        self._working: set[_Item] = set()
        self._timers: dict[_Item, asyncio.TimerHandle] = {}
        self._failures: dict[_Item, int] = {}

    def __len__(self) -> int:
        return len(self._dirty)

    def add(self, key: _Item) -> None:
        """Add a key now."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._waiting.put_nowait(key)

    def add_after(self, key: _Item, seconds: float) -> None:
        """Add a key after a delay, unless an earlier timer runs for it."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def add_failed(self, key: _Item) -> float:
        """Add a key after a delay that grows with its consecutive failures, and return the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(FIRST_DELAY * FACTOR**failures, LONGEST_DELAY)
        self.add_after(key, delay)
        return delay

    async def get(self) -> _Item:
        """Wait for the next key and return it. The caller calls `done` after its work."""
        key = await self._waiting.get()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: _Item, *, succeeded: bool = True) -> None:
        """End the work on a key; success resets its failures."""
        self._working.discard(key)
        if succeeded:
            self._failures.pop(key, None)
        if key in self._dirty:
            self._waiting.put_nowait(key)

    def _due(self, key: _Item) -> None:
        del self._timers[key]
        self.add(key)

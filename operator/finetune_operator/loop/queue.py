"""Which jobs to look at: each key once, however many events named it, and by one worker at a time. A key that is added
while it is being worked on comes again afterwards; one that failed comes again after a growing delay."""

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_DELAY = 0.2  # seconds
LONGEST_DELAY = 60.0
FACTOR = 2.0


class WorkQueue(Generic[Key]):
    """A queue of keys. Not thread-safe: all happens on one event loop, with no await between check and change."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Key] = asyncio.Queue()
        self._dirty: set[Key] = set()  # to be worked on
        self._working: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._dirty)

    def add(self, key: Key) -> None:
        """Work on a key as soon as possible."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._waiting.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Work on a key after a while, unless it is due earlier anyway."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def add_failed(self, key: Key) -> float:
        """Work on a key again after a delay that grows with its failures in a row; returns the delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(FIRST_DELAY * FACTOR**failures, LONGEST_DELAY)
        self.add_after(key, delay)
        return delay

    async def get(self) -> Key:
        """The next key; the caller says `done` when it has worked on it."""
        key = await self._waiting.get()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: Key, *, well: bool = True) -> None:
        """A key has been worked on; if well, its failures are forgotten."""
        self._working.discard(key)
        if well:
            self._failures.pop(key, None)
        if key in self._dirty:
            self._waiting.put_nowait(key)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

"""Values that many reconciles read and that may be a little old: one read serves all of them until it is too old."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_Name = TypeVar("_Name", bound=Hashable)
_Value = TypeVar("_Value")


class Recent(Generic[_Name, _Value]):
    """A cache of values by name, each with a highest age.

    Args:
        read: reads one value. Its error reaches every caller that waits for the value, and is not kept.
        seconds: highest age of a value.
        clock: monotonic seconds.
    """

    def __init__(
        self, read: Callable[[_Name], Awaitable[_Value]], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._known: dict[_Name, tuple[float, _Value]] = {}
        self._locks: dict[_Name, asyncio.Lock] = {}

    async def get(self, name: _Name) -> _Value:
        """Return the value; read it first if none is fresh enough."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            self._drop_old()
            if name not in self._known:
                began = self._clock()
                self._known[name] = (began, await self._read(name))
            return self._known[name][1]

    def _drop_old(self) -> None:
        """Drop the old values of all names, so that names that are no longer read do not fill the memory."""
        now = self._clock()
        for name, (began, _) in list(self._known.items()):
            if now - began >= self._seconds:
                del self._known[name]
                lock = self._locks.get(name)
                if lock is not None and not lock.locked():
                    del self._locks[name]

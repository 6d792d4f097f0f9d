"""The pace of status writes. A write of figures alone (steps, losses, rates) happens at most once in an interval per
job, and only while all writes together stay below a limit. News does not wait, or else a thousand new jobs would start
one after another. News uses up the limit first."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Name = TypeVar("_Name", bound=Hashable)

WRITES_PER_SECOND = 20.0  # of figures and news together; above it, figures wait for the next poll
BURST = 20.0  # writes that are allowed at once after a quiet time


class WritePace(Generic[_Name]):
    """The pace of one replica's status writes.

    Args:
        seconds: between two writes of a job for its figures alone.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._written: dict[_Name, float] = {}
        self._granted: set[_Name] = set()
        self._left = BURST
        self._refilled = clock()

    def grant(self, name: _Name) -> bool:
        """Grant a job one write of its figures if one is due, and return whether it was granted."""
        now = self._clock()
        due = now - self._written.get(name, float("-inf")) >= self._seconds
        if not due or name in self._granted or self._refill() < 1:
            return False
        self._left -= 1
        self._granted.add(name)
        return True

    def granted(self, name: _Name) -> bool:
        """Return whether a granted write is still open. It stays open after a failed write, for the next try."""
        return name in self._granted

    def spend(self) -> None:
        """Count a write of news."""
        self._left = max(0.0, self._refill() - 1)

    def settle(self, name: _Name) -> None:
        """Record that the status of a job is up to date: all figures are written, or nothing has changed."""
        self._granted.discard(name)
        self._written[name] = self._clock()

    def forget(self, name: _Name) -> None:
        """Drop a job that no longer exists."""
        self._written.pop(name, None)
        self._granted.discard(name)

    def _refill(self) -> float:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._refilled) * WRITES_PER_SECOND)
        self._refilled = now
        return self._left

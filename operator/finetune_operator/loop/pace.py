"""How often statuses are written for figures alone (steps, losses, rates): at most once in a while a job, and only
while all writes together stay below a limit. News does not wait, or a thousand new jobs would start one after another;
figures give way to it."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

WRITES_PER_SECOND = 20.0  # of figures and news together, before figures wait for the next poll
BURST = 20.0  # writes that may come at once after a quiet time


class Pace(Generic[Name]):
    """The pace of one replica's status writes.

    Args:
        seconds: between two writes of a job for its figures alone.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._written: dict[Name, float] = {}
        self._granted: set[Name] = set()
        self._left = BURST
        self._refilled = clock()

    def grant(self, name: Name) -> bool:
        """Grants a job a write for its figures, if one is due and no grant is open."""
        now = self._clock()
        due = now - self._written.get(name, float("-inf")) >= self._seconds
        if not due or name in self._granted or self._refill() < 1:
            return False
        self._left -= 1
        self._granted.add(name)
        return True

    def granted(self, name: Name) -> bool:
        """Whether a grant is open. It stays open when the write fails, for the next try."""
        return name in self._granted

    def spend(self) -> None:
        """A write of news is made."""
        self._left = max(0.0, self._refill() - 1)

    def settle(self, name: Name) -> None:
        """A job's status is up to date, with all figures: it has been written, or there was nothing to write."""
        self._granted.discard(name)
        self._written[name] = self._clock()

    def forget(self, name: Name) -> None:
        """The job is gone."""
        self._written.pop(name, None)
        self._granted.discard(name)

    def _refill(self) -> float:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._refilled) * WRITES_PER_SECOND)
        self._refilled = now
        return self._left

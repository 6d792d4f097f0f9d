"""Work spread over processes, results in order. For data that is worth it; a small file is done by the caller."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # items in flight per process: enough to keep it busy, and all that memory has to hold


class _Quiet(SpawnProcess):
    """A process that ignores Ctrl-C: its parent stops, and reports that once."""

    def start(self) -> None:
        """Start it with SIGINT ignored, which it inherits; only a main thread can say so."""
        if threading.current_thread() is not threading.main_thread():
            super().start()
            return
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            super().start()
        finally:
            signal.signal(signal.SIGINT, before)


class _Spawn(SpawnContext):
    Process: ClassVar[Any] = _Quiet


def map_in_order(work: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[R]:
    """Yield the result of each item, in the items' order; hold at most `AHEAD` x `processes` items at a time.

    Args:
        work: sent to each process with every item: a function of a module, or a small frozen value with `__call__`.
        processes: 1 = no other process.

    Raises:
        BrokenProcessPool: a process died, for example without memory; errors of `work` are raised as they are.
    """
    if processes <= 1:
        yield from map(work, items)
        return
    # a fresh interpreter each: a fork would copy locked locks of threads that libraries keep
    with ProcessPoolExecutor(processes, _Spawn()) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

"""Lines of progress by share of the bytes, for work that is long enough to be watched."""

from collections.abc import Callable, Sequence

WATCHED = 64 << 20  # bytes; less is done before anybody reads a line
STEPS = 10


def amount(size: int) -> str:
    """Return bytes as people say them: `1.2 GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


class ByteProgress:
    """Reports of every tenth of all files' bytes.

    Args:
        done: what happens to them: `checked`, `fetched`.
        sizes: bytes of each file.
        report: called with the line.
    """

    def __init__(self, done: str, sizes: Sequence[int], report: Callable[[str], None]) -> None:
        self._done = done
        self._before = [sum(sizes[:index]) for index in range(len(sizes))]
        self._total = sum(sizes)
        self._report = report
        self._reported = 0

    def at(self, index: int, end: int, faults: int = 0) -> None:
        """Report that the file of that index is done up to byte `end`."""
        here = self._before[index] + end
        step = here * STEPS // max(1, self._total)
        if self._total >= WATCHED and self._reported < step < STEPS:
            self._reported = step
            wrong = f", {faults:,} invalid" if faults else ""
            self._report(f"dataset: {self._done} {amount(here)} of {amount(self._total)}{wrong}")

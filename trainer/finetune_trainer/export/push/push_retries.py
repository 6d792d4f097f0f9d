"""Retries of requests to a place that is away for a while: growing pauses, for the patience of the stage."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from finetune_api.errors import Problem, SpecError, StorageError

PATIENCE_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})  # status codes that another try may cure
# Parts of the messages of OpenSSL: both sides speak, and another try ends in the same way.
TLS_REFUSALS = (
    "CERTIFICATE_VERIFY_FAILED",
    "CERTIFICATE_REQUIRED",
    "HANDSHAKE_FAILURE",
    "PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
)
T = TypeVar("T")


class OutageError(Exception):
    """A place is away, overloaded or busy.

    Args:
        pause: seconds that the place asks to wait; None = it does not say.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


@dataclass(frozen=True)
class PushRetries:
    """How long requests are repeated.

    Attributes:
        field: the field of the job that names the place.
        report: called with a line before each pause.
        seconds: from the first failure of a request. A try that ran longer than PATIENCE_SECONDS was a transfer that
            went well for most of its time: its failure counts as the first.
    """

    field: str
    report: Callable[[str], None] = print
    seconds: float = PATIENCE_SECONDS
    first_pause: float = FIRST_PAUSE_SECONDS

    def call(self, work: Callable[[], T]) -> T:
        """Call a function, and again after a pause while it raises OutageError; return its result.

        Raises:
            StorageError: the patience is used up.
        """
        end: float | None = None
        pause = self.first_pause
        while True:
            begun = time.monotonic()
            try:
                return work()
            except OutageError as outage:
                now = time.monotonic()
                if end is None or now - begun > max(self.seconds, PATIENCE_SECONDS):
                    end, pause = now + self.seconds, self.first_pause
                wait = max(pause, outage.pause or 0.0)
                if now + wait > end:
                    raise self._gave_up(outage) from outage
                self.report(f"push: {outage}; next attempt in {wait:.0f} s")
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def refused(self, message: str, cure: str) -> SpecError:
        """Return the error for a refusal that another try does not cure."""
        return SpecError(Problem(code="PushRefused", field=self.field, message=message, cure=cure))

    def _gave_up(self, outage: OutageError) -> StorageError:
        message = f"{outage}, for {self.seconds:.0f} seconds"
        cure = "check the address, the network and the state of that service; then export again"
        return StorageError(Problem(code="PushUnreachable", field=self.field, message=message, cure=cure))


def asked_pause(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; None without a number, which is its other form, a date."""
    return min(float(header), 10 * LONGEST_PAUSE_SECONDS) if header and header.strip().isdecimal() else None


def is_tls_refusal(message: str) -> bool:
    """Return whether the message of a failed connection says that one side refuses the encryption of the other."""
    return any(part in message for part in TLS_REFUSALS)

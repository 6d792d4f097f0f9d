"""Retries of storage at a start: a pod that exits instead would repeat all its imports, which take long."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from finetune_api.errors import StorageError
from finetune_trainer.storage import ChangedError, ConditionalWritesError, NotFoundError

log = logging.getLogger("agent")

PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
T = TypeVar("T")


async def patiently(work: Callable[..., T], *args: object, seconds: float = PATIENCE_SECONDS) -> T:
    """Call a function of storage in a thread, and again while storage refuses; return its result.

    Raises:
        NotFoundError, ChangedError, ConditionalWritesError: at once, since waiting does not help.
        StorageError: the last error, when the time is over.
    """
    end = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await asyncio.to_thread(work, *args)
        except (NotFoundError, ChangedError, ConditionalWritesError):
            raise
        except StorageError as error:
            if time.monotonic() + pause > end:
                raise
            log.warning("storage, next attempt in %.1f s: %s", pause, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

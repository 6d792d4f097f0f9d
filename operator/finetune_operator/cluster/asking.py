"""One request for the progress of a leader. The pod is not trusted: its image is the user's, and any pod can answer in
its place. A large, slow or malformed answer costs at most LARGEST bytes and SECONDS, and raises `UnusableAnswerError`.

The request is written by hand because the bound covers every byte that arrives, not only the body: an HTTP client reads
interim responses and chunk headers without limit. Redirects are not followed, and nothing is decompressed or stored.
"""

import asyncio
import json
from contextlib import suppress
from itertools import islice
from math import isfinite
from typing import Any

from pydantic import ValidationError

from finetune_api.beats import Progress
from finetune_api.contract import PROGRESS_HEADER
from finetune_api.lenient import read

SECONDS = 4.0  # from the connection to the last byte
LARGEST = 256 << 10  # bytes of an answer with its headers; our own leaders send a few thousand
CHUNK = 16 << 10
# Limits of the kept answer: a status holds no more, and the answers of all jobs are in memory at once.
LONGEST_TEXT = 2000  # characters
LONGEST_LIST = 20
MOST_NAMES = 64
LARGEST_INTEGER = 1 << 63  # the limit of the API server's numbers
NOT_LEADING_STATUS = 503  # the agent runs, but it does not lead yet


class UnusableAnswerError(Exception):
    """A missing answer, or one that is not progress. Its sentence belongs in the operator's log and never in the job's
    status, because it would show users which addresses of the network answer."""


async def ask(host: str, port: int, bearer: str) -> Progress | None:
    """Return the progress of a gang from its leader; None while the leader starts.

    Args:
        bearer: token that opens /progress.

    Raises:
        UnusableAnswerError: any error.
    """
    try:
        async with asyncio.timeout(SECONDS):
            answer = await _exchange(host, port, bearer)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == NOT_LEADING_STATUS:
            return None
        if status != 200:
            raise ValueError(f"HTTP status {status}")
        return _parse(body)
    except Exception as error:
        raise UnusableAnswerError(f"{type(error).__name__}: {str(error)[:200]}") from error


async def _exchange(host: str, port: int, bearer: str) -> bytes:
    """Send the request, and return all bytes until the other side closes the connection.

    Raises:
        ValueError: the answer is too large.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=CHUNK)
    try:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = (
            "GET /progress HTTP/1.1",
            f"Host: {authority}",
            f"Authorization: Bearer {bearer}",
            *(f"{name}: {value}" for name, value in PROGRESS_HEADER.items()),
            "Accept: application/json",
            "Accept-Encoding: identity",
            "Connection: close",
        )
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        answer = bytearray()
        while chunk := await reader.read(CHUNK):
            answer += chunk
            if len(answer) > LARGEST:
                raise ValueError(f"more than {LARGEST} bytes")
        return bytes(answer)
    finally:
        writer.transport.abort()  # close() would wait for the other side


def _parse(body: bytes) -> Progress:
    """Return the progress in the body of an answer, clipped to what a status can hold. Unreadable items are left out.

    Raises:
        ValueError: the body is not progress.
        RecursionError: the body is nested too deeply.
    """
    answer = _clipped(json.loads(body))
    with suppress(ValidationError):
        return Progress.model_validate(answer)  # the usual case, a third faster than `read`
    progress = read(Progress, answer)
    if progress is None:
        raise ValueError("it lacks a field that every leader sends")
    return progress


def _clipped(value: Any) -> Any:
    """Return a JSON value with shortened texts, the last items of long lists, the first names of large objects, and
    null for numbers that a status cannot hold."""
    match value:
        case str():
            return value[:LONGEST_TEXT]
        case list():
            return [_clipped(one) for one in value[-LONGEST_LIST:]]
        case dict():
            return {name[:LONGEST_TEXT]: _clipped(one) for name, one in islice(value.items(), MOST_NAMES)}
        case float() if not isfinite(value):
            return None
        case int() if abs(value) >= LARGEST_INTEGER:
            return None
        case _:
            return value

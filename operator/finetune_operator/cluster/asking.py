"""Asks one leader for its progress. The pod is a stranger: its image is the user's, and anybody who may run pods can
answer in its place. Whatever it sends, however large, slow or malformed, costs at most LARGEST bytes and SECONDS, and
ends in `UnusableAnswerError`.

The request is written by hand because the bound is on every byte that comes in, not on the body alone: an HTTP client
reads interim responses and chunk headers without end. Nothing is followed, decompressed or remembered.
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
LARGEST = 256 << 10  # bytes of an answer, its headers included; our own leaders send a few thousand
CHUNK = 16 << 10
# What is kept of an answer: the status holds no more, and the answers of all jobs are in memory at once.
LONGEST_TEXT = 2000  # characters
LONGEST_LIST = 20
MOST_NAMES = 64
LARGEST_INTEGER = 1 << 63  # as large as the API server's numbers
STARTING = 503  # the agent runs, and does not lead yet


class UnusableAnswerError(Exception):
    """No answer, or none that is progress. The sentence is for the operator's log, never for the job's status: it tells
    one address from another."""


async def ask(host: str, port: int, bearer: str) -> Progress | None:
    """The progress of a gang by its leader's word; None while the leader starts.

    Raises:
        UnusableAnswerError: whatever went wrong.
    """
    try:
        async with asyncio.timeout(SECONDS):
            answer = await _exchange(host, port, bearer)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == STARTING:
            return None
        if status != 200:
            raise ValueError(f"HTTP status {status}")
        return _understood(body)
    except Exception as error:
        raise UnusableAnswerError(f"{type(error).__name__}: {str(error)[:200]}") from error


async def _exchange(host: str, port: int, bearer: str) -> bytes:
    """Sends the request; returns all that comes until the other side closes.

    Raises:
        ValueError: it is too much.
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
        writer.transport.abort()  # a close would wait for the other side


def _understood(body: bytes) -> Progress:
    """An answer's body as progress that a status can hold, item by item: one that cannot be read loses no other.

    Raises:
        ValueError: it is something else; RecursionError, if it is nested too deeply.
    """
    answer = _clipped(json.loads(body))
    with suppress(ValidationError):
        return Progress.model_validate(answer)  # nearly always, and in two thirds of the time
    progress = read(Progress, answer)
    if progress is None:
        raise ValueError("it lacks what every leader says")
    return progress


def _clipped(value: Any) -> Any:
    """A JSON value with long texts cut, the last items of long lists, the first names of large objects, and null for
    numbers that a status cannot hold."""
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

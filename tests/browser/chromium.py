"""A headless Chromium that opens pages and tells what they do: over its debugging protocol, without a driver.

https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import debian

DEADLINE = 60.0  # seconds, for anything the browser is asked
FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root in containers; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
NOISY = ("Page", "Runtime", "Log", "Network")


@dataclass
class Page:
    """An open page.

    Attributes:
        requests: addresses it asked for, its own among them.
        complaints: console messages, exceptions and browser log entries.
    """

    socket: aiohttp.ClientWebSocketResponse
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _number: int = 0

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its answer; events that come meanwhile are noted."""
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._next()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    async def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        for domain in NOISY:
            await self.ask(f"{domain}.enable")
        await self.ask("Page.navigate", url=address)
        while (await self._next()).get("method") != "Page.loadEventFired":
            pass

    async def value(self, expression: str) -> Any:
        """A JavaScript expression's value (the page's own policy does not bind the debugger)."""
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def resize(self, width: int, height: int = 900) -> None:
        """Another window."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self, whole: bool = False) -> bytes:
        """What is seen, as PNG; the whole page, or its first screen."""
        answer = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self.socket.receive(DEADLINE)).data)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(" ".join(str(own.get("value")) for own in params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(params["exceptionDetails"]["text"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
        return message


@asynccontextmanager
async def browse() -> AsyncIterator[Page]:
    """A browser with one empty page, closed at the end."""
    debian.require("chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        program = shutil.which("chromium") or "chromium"
        process = await asyncio.create_subprocess_exec(
            program,
            *FLAGS,
            f"--user-data-dir={folder}",
            "about:blank",
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # its processes end together, whatever happens
        )
        try:
            port = await _port(process, Path(folder))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    targets = await answer.json()
                page = next(target for target in targets if target["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _port(process: asyncio.subprocess.Process, folder: Path) -> int:
    async with asyncio.timeout(DEADLINE):
        while process.returncode is None:
            with suppress(FileNotFoundError, IndexError, ValueError):
                return int((folder / "DevToolsActivePort").read_text().splitlines()[0])
            await asyncio.sleep(0.05)
    raise RuntimeError(f"chromium ended with {process.returncode}")


def colours(png: bytes) -> int:
    """How many different pixels a picture has, at most 1,000: one, if it is blank.

    Rows are compared unfiltered, which suffices: a blank picture is the same in every row and column.
    """
    width, bits, kind = struct.unpack(">I4xBB", png[16:26])
    channels = {2: 3, 6: 4}[kind]
    assert bits == 8
    data, at = b"", 8
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += size + 12
    return _distinct(zlib.decompress(data), width, channels)


def _distinct(raw: bytes, width: int, channels: int) -> int:
    """Distinct pixels after undoing PNG's row filters (PNG specification, section 9)."""
    stride = width * channels
    before = bytearray(stride)
    seen: set[bytes] = set()
    for start in range(0, len(raw), stride + 1):
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for index in range(stride) if kind else ():
            left = row[index - channels] if index >= channels else 0
            above = before[index]
            corner = before[index - channels] if index >= channels else 0
            row[index] = (row[index] + _predicted(kind, left, above, corner)) & 255
        seen.update(bytes(row[at : at + channels]) for at in range(0, stride, channels))
        if len(seen) >= 1000:
            return 1000
        before = row
    return len(seen)


def _predicted(kind: int, left: int, above: int, corner: int) -> int:
    if kind == 4:
        guess = left + above - corner
        return min((left, above, corner), key=lambda value: abs(guess - value))
    return (0, left, above, (left + above) // 2)[kind]

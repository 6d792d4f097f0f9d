"""A web server that imitates the behaviour of real ones, faults included, on a free loopback port."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Web:
    """A running server.

    Attributes:
        files: path -> content.
        tags: path -> ETag; a file without an entry has none.
        statuses: path -> statuses of the next responses, before the normal one.
        breaks: path -> bytes after which the connection of each next response breaks.
        redirects: path -> target.
        ranges: whether the server supports ranges.
        lengths: whether the server sends sizes.
        seen: every request as (path with query, Range).
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    seen: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def start_web() -> Iterator[Web]:
    """Serve until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    web = Web(f"http://127.0.0.1:{server.server_port}")
    server.web = web  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Log nothing: the requests are in `Web.seen`."""

    def do_GET(self) -> None:
        web: Web = self.server.web  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        web.seen.append((self.path, self.headers["Range"]))
        if path in web.redirects:
            return self._head(302, {"Location": web.redirects[path], "Content-Length": "0"})
        if web.statuses.get(path):
            return self._head(web.statuses[path].pop(0), {"Content-Length": "0"})
        if path not in web.files:
            return self._head(404, {"Content-Length": "0"})
        content = web.files[path]
        headers = {"ETag": web.tags[path]} if path in web.tags else {}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked.group(1)) if asked and web.ranges and self.headers["If-Range"] == web.tags.get(path) else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if web.lengths:
            headers["Content-Length"] = str(len(content) - start)
        else:
            self.close_connection = True
        self._head(206 if start else 200, headers)
        # a client that reads only the head has disconnected by now
        try:
            if web.breaks.get(path) and len(web.seen) > 1:
                self.wfile.write(content[start : start + web.breaks[path].pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(content[start:])
        except OSError:
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()

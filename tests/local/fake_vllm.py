"""A program that looks like `vllm serve` and misbehaves as VLLM_FAKE says. Only faults are tested with it."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULT = os.environ.get("VLLM_FAKE", "")
ANSWERS: dict[str, list[int]] = json.loads(os.environ.get("VLLM_FAKE_ANSWERS", "{}"))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send({"version": "0.0-fake"} if self.path == "/version" else {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.send({"error": "no key"}, 401)
        elif FAULT == "dies when asked":
            print("ValueError: a bad layer", flush=True)
            os._exit(3)
        elif FAULT == "never answers":
            time.sleep(600)
        elif FAULT == "refuses":
            self.send({"error": {"message": "no such model"}}, 404)
        elif FAULT == "is no server of ours":
            self.send({"choices": [{"text": "Hello", "finish_reason": "stop"}]})
        else:
            tokens = ANSWERS.get(str(asked.get("prompt")), [1, 1, 1])
            self.send({"choices": [{"token_ids": tokens, "finish_reason": "stop" if tokens[-1] == 2 else "length"}]})

    def send(self, body: Any, status: int = 200) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    if FAULT == "dies at once":
        print("RuntimeError: no kernel for this model", flush=True)
        sys.exit(1)
    if FAULT == "lacks memory":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
        print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
        sys.exit(1)
    if FAULT == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if folder := os.environ.get("VLLM_FAKE_FOLDER"):
        leaver = "import os, time; os.setsid(); time.sleep(600)"  # leaves the session, and outlives its parent
        child = subprocess.Popen([sys.executable, "-c", leaver])
        seen = {"environ": dict(os.environ), "pids": [os.getpid(), child.pid], "arguments": sys.argv[1:]}
        Path(folder, "seen.json").write_text(json.dumps(seen))
    if FAULT == "takes memory":
        kept = bytearray(1 << 30)
        kept[:: 1 << 12] = b"x" * len(kept[:: 1 << 12])
    if FAULT in ("takes memory", "is never ready"):
        time.sleep(600)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()

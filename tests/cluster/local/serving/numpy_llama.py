"""`vllm serve FOLDER --port PORT`: a LLaMA in float32 computed with numpy, behind the part of vLLM's API that is asked.

It runs in the container of `spec.export.serveTest.image`, and refuses to serve if that container holds a key.
"""

import json
import math
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, Any]
KEYS = ("AWS_", "FINETUNE_", "HF_TOKEN")  # how the names of variables of the job begin
PLACES = ("/var/run/secrets", "/etc/finetune", "/etc/finetune-ca", "/etc/finetune-signing")


class NumpyLlama:
    """A LLaMA with the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}
        generation = json.loads((folder / "generation_config.json").read_text())
        ends = generation["eos_token_id"]
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def answer(self, prompt: list[int], most: int) -> tuple[list[int], bool]:
        """Return the greedy answer, and whether it ends by itself."""
        written: list[int] = []
        while len(written) < most:
            written.append(int(self._logits([*prompt, *written]).argmax()))
            if written[-1] in self.ends:
                return written, True
        return written, False

    def _logits(self, ids: list[int]) -> Array:
        hidden = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            hidden = hidden + self._attend(self._norm(hidden, f"{name}.input_layernorm"), f"{name}.self_attn")
            hidden = hidden + self._feed(self._norm(hidden, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        return self._linear(self._norm(hidden, "model.norm")[-1], "lm_head")

    def _linear(self, hidden: Array, name: str) -> Array:
        product: Array = hidden @ self.weights[f"{name}.weight"].T
        return product

    def _norm(self, hidden: Array, name: str) -> Array:
        size = np.sqrt((hidden**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        normed: Array = hidden / size * self.weights[f"{name}.weight"]
        return normed

    def _feed(self, hidden: Array, name: str) -> Array:
        gate = self._linear(hidden, f"{name}.gate_proj")
        return self._linear(gate / (1 + np.exp(-gate)) * self._linear(hidden, f"{name}.up_proj"), f"{name}.down_proj")

    def _attend(self, hidden: Array, name: str) -> Array:
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        length = len(hidden)
        query = self._rotated(self._linear(hidden, f"{name}.q_proj").reshape(length, heads, -1))
        key = self._rotated(self._linear(hidden, f"{name}.k_proj").reshape(length, groups, -1))
        value = self._linear(hidden, f"{name}.v_proj").reshape(length, groups, -1)
        key, value = (one.repeat(heads // groups, axis=1) for one in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
        scores = scores + np.triu(np.full((length, length), -np.inf, np.float32), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True)
        return self._linear(np.einsum("hqk,khd->qhd", shares, value).reshape(length, -1), f"{name}.o_proj")

    def _rotated(self, heads: Array) -> Array:
        half = heads.shape[-1] // 2
        base = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]
        angles = np.outer(np.arange(len(heads)), base ** (-np.arange(half) / half)).astype(np.float32)[:, None]
        first, second = heads[..., :half], heads[..., half:]
        turned = (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles))
        return np.concatenate(turned, axis=-1)


class Handler(BaseHTTPRequestHandler):
    """The part of vLLM's API that the export asks."""

    model: NumpyLlama

    def do_GET(self) -> None:
        self._send(200, {"version": "numpy"} if self.path == "/version" else {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._send(401, {"error": "no key"})
        elif self.path != "/v1/completions":
            self._send(404, {"error": "no such path"})
        else:
            tokens, ended = self.model.answer(asked["prompt"], asked["max_tokens"])
            self._send(200, {"choices": [{"token_ids": tokens, "finish_reason": "stop" if ended else "length"}]})

    def _send(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def keys_in_sight() -> list[str]:
    """Return the variables and files of this container that may hold a key of the job or of the cluster."""
    return [*(name for name in os.environ if name.startswith(KEYS)), *(one for one in PLACES if Path(one).exists())]


def main() -> None:
    if seen := keys_in_sight():
        sys.exit(f"RuntimeError: the container holds {', '.join(seen)}")
    Handler.model = NumpyLlama(Path(sys.argv[2]))
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()


if __name__ == "__main__":
    main()

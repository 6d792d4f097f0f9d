"""Asks a server for greedy answers to token ids: vLLM over the API of OpenAI, llama.cpp over its own."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_trainer.serving.comparing import answer_of
from finetune_trainer.serving.serve_records import GreedyAnswer

MOST_BYTES = 8 << 20  # of an answer of the server
POLL_SECONDS = 0.5
ANSWER_SECONDS, TOKEN_SECONDS = 120.0, 2.0  # for one answer, or for each of its tokens if that is more
TURN = "Hello"
NEUTRAL: Mapping[str, Any] = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0}  # what is not given is the model's own


class ServerError(Exception):
    """A server that gave no usable answer; the text is the reason."""


class ServerGoneError(ServerError):
    """A server that cannot be reached, or that closed the connection."""


class NothingShownError(ServerError):
    """A failure that shows nothing of the artifact: too little memory, no program, or no token ids."""


@dataclass(frozen=True)
class ServerClient:
    """A client of one server.

    Attributes:
        url: of the server, without a path and without a slash at the end.
        model: name of the model in requests.
        key: that the server asks for; empty = none.
    """

    url: str
    model: str
    key: str = ""
    kind: Literal["vLLM", "llama.cpp"] = "vLLM"

    def wait(self, seconds: float, alive: Callable[[], bool]) -> bool:
        """Wait until the server is ready; return whether it is.

        Args:
            alive: whether its process still runs.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and alive():
            try:
                self._call("/health", None, 5.0)
            except (ServerError, ValueError):
                time.sleep(POLL_SECONDS)
            else:
                return True
        return False

    def version(self) -> str:
        """Return name and version of the server, as far as it tells."""
        try:
            told = self._call("/version" if self.kind == "vLLM" else "/props", None, 10.0)
        except ServerError:
            return self.kind
        version = told.get("version") or told.get("build_info")
        return f"{self.kind} {version}" if isinstance(version, str) else self.kind

    def answer(self, prompt: Sequence[int], tokens: int, ends: Collection[int]) -> GreedyAnswer:
        """Return the greedy answer to a prompt.

        Args:
            prompt: token ids.
            tokens: most tokens of the answer.
            ends: tokens that should end it.

        Raises:
            ServerError: the server refused, broke off (ServerGoneError), or took too long.
        """
        return self._vllm(prompt, tokens, ends) if self.kind == "vLLM" else self._llama(prompt, tokens, ends)

    def turn(self) -> list[int]:
        """Return the token ids of `TURN` as a user's turn, as the server writes it with its chat template; empty if it
        cannot tell."""
        if self.kind != "vLLM":
            return []
        asked = {"model": self.model, "messages": [{"role": "user", "content": TURN}], "add_generation_prompt": True}
        try:
            told = self._call("/tokenize", asked, ANSWER_SECONDS)
        except ServerError:
            return []
        return _ids(told.get("tokens")) or []

    def _vllm(self, prompt: Sequence[int], tokens: int, ends: Collection[int]) -> GreedyAnswer:
        asked = {
            **NEUTRAL,
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }
        told = self._call("/v1/completions", asked, answer_seconds(tokens))
        choices = told.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ServerError("its answer has no choices")
        written = _ids(choices[0].get("token_ids"))
        if written is None:
            raise NothingShownError("it tells no token ids: use vLLM 0.11 or newer")
        return answer_of(written, choices[0].get("finish_reason") == "stop", ends)

    def _llama(self, prompt: Sequence[int], tokens: int, ends: Collection[int]) -> GreedyAnswer:
        asked = {
            **NEUTRAL,
            "prompt": list(prompt),
            "n_predict": tokens,
            "top_k": 1,
            "repeat_penalty": 1.0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        told = self._call("/completion", asked, answer_seconds(tokens))
        written = _ids(told.get("tokens"))
        if written is None:
            raise NothingShownError("it tells no token ids: use a newer llama.cpp")
        return answer_of(written, told.get("stop_type") in ("eos", "word"), ends)

    def _call(self, path: str, body: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Return a JSON object that the server sends; empty if it sends nothing."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # http:// only, on this machine
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=seconds) as answer:
                raw = answer.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode(errors="replace")
            raise ServerError(f"it refuses {path} with status {error.code}: {said[:300]}") from error
        except TimeoutError as error:
            raise ServerError(f"it did not answer {path} within {seconds:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise ServerError(f"it did not answer {path} within {seconds:g} seconds") from error
            raise ServerGoneError(f"it cannot be reached: {reason}") from error
        return _parsed(raw, path)


def answer_seconds(tokens: int) -> float:
    """Return the time for an answer of at most so many tokens: on a CPU a large model may write one in a second."""
    return max(ANSWER_SECONDS, tokens * TOKEN_SECONDS)


def _parsed(raw: bytes, path: str) -> dict[str, Any]:
    if not raw.strip():
        return {}
    try:
        told = json.loads(raw)
    except ValueError as error:
        raise ServerError(f"its answer to {path} is not JSON: {raw[:100].decode(errors='replace')}") from error
    if not isinstance(told, dict):
        raise ServerError(f"its answer to {path} is not a JSON object")
    return told


def _ids(value: Any) -> list[int] | None:
    if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
        return None
    return value

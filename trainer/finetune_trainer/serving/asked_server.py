"""Asks a server for the answers that transformers gave, and says what came of it."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finetune_api.contract import Env
from finetune_trainer.serving.comparing import server_result
from finetune_trainer.serving.running_server import RunningServer
from finetune_trainer.serving.serve_records import ExpectedAnswers, Outcome, ServeSettings, ServeTestResult
from finetune_trainer.serving.server_client import NothingShownError, ServerClient, ServerError, ServerGoneError
from finetune_trainer.serving.server_order import ordered_server
from finetune_trainer.serving.server_process import kept_server

READY_SECONDS = 1800.0  # a large model is read, and its kernels are made
LONGEST_MESSAGE = 400  # characters


def ask_server(
    command: Sequence[str],
    client: ServerClient,
    expected: ExpectedAnswers,
    settings: ServeSettings,
    report: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> ServeTestResult:
    """Start a server here, or in the container beside this one; compare its answers, and end it. Whatever the server
    does is a result. So is a fault of this machine, such as a full disk: the artifact is good without the test.

    Args:
        command: that starts it; address and port are added.
        client: for the model and the kind of the server; URL and key are replaced.
    """
    try:
        folder = environ.get(Env.SERVE_FOLDER)
        place = ordered_server(command, client, Path(folder)) if folder else kept_server(command, client, environ)
        with place as server:
            server.wait_ready(READY_SECONDS)
            return _compare(server, expected, settings, report)
    except NothingShownError as error:
        return concluded(settings, None, "NotTested", f"{client.kind} was not compared: {error}")
    except ServerError as error:
        return concluded(settings, False, "ServerFailed", f"{client.kind} failed with the artifact: {error}")
    except OSError as error:
        return concluded(settings, None, "NotTested", f"{client.kind} could not be started or read here: {error}")


def concluded(settings: ServeSettings, served: bool | None, reason: Outcome, message: str) -> ServeTestResult:
    """Return a result without compared answers."""
    short = message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 3]}..."
    return ServeTestResult(settings=settings.digest, served=served, reason=reason, message=short)


def _compare(
    server: RunningServer, expected: ExpectedAnswers, settings: ServeSettings, report: Callable[[str], None]
) -> ServeTestResult:
    name = server.client.version()
    report(f"serve: {name} answers {len(expected.prompts)} prompts")
    try:
        found = [server.client.answer(prompt, settings.tokens, expected.ends) for prompt in expected.prompts]
    except ServerGoneError as error:
        raise (server.failure() if server.ends_soon() else ServerError(str(error))) from error
    return server_result(expected, found, settings, name, server.client.turn() if expected.turn else ())

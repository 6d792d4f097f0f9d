"""An operator that is there before the CustomResourceDefinition, or after it: never ready while it can see no job."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from charts.generate import CHART, NAMESPACE
from tests.chart.conftest import Server

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEFINITION = f"{DEFINITIONS}/finetunejobs.finetune.dev"
JOBS = "/apis/finetune.dev/v1alpha1/namespaces/team-a/finetunejobs"
BAD_JOB = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "a"},
    "spec": {
        "model": {"uri": "file://relative"},  # refused by the operator without any child
        "dataset": {"train": "s3://d/x.jsonl"},
        "method": {"type": "lora"},
        "storage": {"uri": "s3://b/x"},
    },
}


def wait_for(what: str, holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@contextmanager
def operator(server: Server, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    key = folder / "key"
    key.write_text("0" * 64)
    settings = {
        "TRAINER_IMAGE": "trainer:1",
        "TOKEN_KEY_FILE": str(key),
        "HTTP_PORT": str(port),
        "RESYNC_SECONDS": "3600",  # a job is seen by the watch, or not at all
    }
    environment = {
        **os.environ,
        **{f"FINETUNE_OPERATOR_{name}": value for name, value in settings.items()},
        "KUBECONFIG": str(server.kubeconfig),
        "POD_NAME": "one",
        "POD_NAMESPACE": NAMESPACE,
        "NO_PROXY": "127.0.0.1",
    }
    with (folder / "operator.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "finetune_operator"], env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def answer(port: int, path: str) -> int:
    """The HTTP status; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_an_operator_is_ready_once_jobs_are_served_and_watched_and_ends_when_they_are_not_any_more(
    server: Server, tmp_path: Path
) -> None:
    api = server.api
    definition = yaml.safe_load((CHART / "files" / "crd.yaml").read_text())
    api.call("DELETE", DEFINITION)
    wait_for("it is gone", lambda: api.call("GET", DEFINITION).status == 404)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "operator.log"
    with operator(server, tmp_path, port) as process:
        wait_for("it has asked and waits", lambda: "does not serve FineTuneJobs" in log.read_text())
        assert (answer(port, "/healthz"), answer(port, "/readyz")) == (200, 503)
        assert api.call("POST", DEFINITIONS, definition).status == 201
        wait_for("it is ready", lambda: answer(port, "/readyz") == 200)
        wait_for("the job is made", lambda: api.call("POST", JOBS, BAD_JOB).status in {201, 409})
        wait_for(
            "it sees the job", lambda: api.call("GET", f"{JOBS}/a").body.get("status", {}).get("phase") == "Failed"
        )
        api.call("DELETE", DEFINITION)
        wait_for("it ends, to start anew", lambda: process.poll() is not None or answer(port, "/readyz") == 503)

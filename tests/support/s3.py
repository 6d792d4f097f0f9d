"""A real S3 server for tests: versitygw over a folder, on a free loopback port."""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.tools import tool

START_SECONDS = 30.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        environ: the environment variables that a client needs.
        folder: the folder of the buckets, each a folder.
    """

    endpoint: str
    access_key: str
    secret_key: str
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its uri."""
        from finetune_trainer.storage.s3 import make_client

        make_client(self.environ).create_bucket(Bucket=name)
        return f"s3://{name}"

    def add_user(self, name: str) -> dict[str, str]:
        """Add a user without permissions and return the environment of the user's client."""
        secret = secrets.token_hex(16)
        ours = ["--access", self.access_key, "--secret", self.secret_key, "--endpoint-url", self.endpoint]
        made = ["create-user", "--access", name, "--secret", secret, "--role", "user"]
        subprocess.run([tool("versitygw"), "admin", *ours, *made], check=True, capture_output=True)
        return {**self.environ, "AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": secret}

    def allow(self, bucket: str, user: str, *actions: str) -> None:
        """Set the permissions of a user in a bucket, such as `s3:GetObject`; they replace earlier ones."""
        from finetune_trainer.storage.s3 import make_client

        where = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        each = [
            {"Effect": "Allow", "Principal": {"AWS": [user]}, "Action": action, "Resource": place}
            for action in actions
            for place in (where if action == "s3:*" else where[:1] if action == "s3:ListBucket" else where[1:])
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": each})
        make_client(self.environ).put_bucket_policy(Bucket=bucket, Policy=policy)


@contextmanager
def start_s3(folder: Path) -> Iterator[S3Server]:
    """Serve `folder` until the block ends; the server's own log is `folder`/server.log."""
    access_key, secret_key = "test-key", secrets.token_hex(16)
    buckets, sidecar, users = folder / "buckets", folder / "sidecar", folder / "users"
    for made in (buckets, sidecar, users):
        made.mkdir(parents=True)
    port = free_port()
    command = [str(tool("versitygw")), "--port", f"127.0.0.1:{port}", "--health", "/health", "--iam-dir", str(users)]
    # metadata in separate files, because some file systems of temporary folders lack user xattrs
    command += ["posix", "--sidecar", str(sidecar), str(buckets)]
    environ = {**os.environ, "ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": secret_key}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        wait_until_open("versitygw", port, process, folder / "server.log")
        yield S3Server(f"http://127.0.0.1:{port}", access_key, secret_key, buckets)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_open(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server accepts connections.

    Raises:
        RuntimeError: it ended, or needs too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        _pause(process)
    raise RuntimeError(f"{name} did not open port {port}: {log.read_text()[-2000:]}")


def _pause(process: subprocess.Popen[bytes]) -> None:
    # not a sleep: ends as soon as the server does
    try:
        process.wait(0.02)
    except subprocess.TimeoutExpired:
        return

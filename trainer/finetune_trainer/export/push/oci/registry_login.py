"""Logins to registries, as docker and Kubernetes store them (config.json, kubernetes.io/dockerconfigjson).

Programs that keep passwords (credsStore, credHelpers) are asked by docker's own protocol.
"""

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCKER_HUB = "docker.io"
HELPER_SECONDS = 30


class LoginError(Exception):
    """A stored login cannot be read."""


@dataclass(frozen=True)
class RegistryLogin:
    """What a registry, or its token server, is told.

    Attributes:
        identity: a token that stands for the password; empty if there is none.
    """

    user: str
    password: str = field(repr=False)
    identity: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The header of HTTP's basic authentication."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(config: Path, registry: str, repository: str) -> RegistryLogin | None:
    """Return the login for a repository; None if the file does not exist or has none.

    Raises:
        LoginError: the file or its entry cannot be read, or the program that keeps the password fails.
    """
    try:
        stored = json.loads(config.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LoginError(f"{config} is not a configuration of docker: {error}") from None
    if not isinstance(stored, dict):
        raise LoginError(f"{config} is not a configuration of docker")
    auths = stored.get("auths") or {}
    entries = {_name(key): value for key, value in auths.items()} if isinstance(auths, dict) else {}
    for place in _places(registry, repository):
        helper = _helper(stored, place)
        if helper and (found := _ask(helper, place)):
            return found
        if isinstance(entry := entries.get(place), dict) and (found := _entry(entry, config, place)):
            return found
    return None


def _places(registry: str, repository: str) -> list[str]:
    """Return the names of an entry, the most exact first: Kubernetes takes paths, too."""
    parts = repository.split("/")
    return [*("/".join([registry, *parts[:length]]) for length in range(len(parts), 0, -1)), registry]


def _name(key: str) -> str:
    """Return the registry of a key, which may be a URL; docker writes its own hub as one of an old API."""
    name = key.partition("://")[2] or key
    for ending in ("/", "/v1", "/v2"):
        name = name.removesuffix(ending)
    return DOCKER_HUB if name in ("index.docker.io", "registry-1.docker.io") else name


def _entry(entry: Mapping[str, Any], config: Path, place: str) -> RegistryLogin | None:
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise LoginError(f"the login for {place} in {config} is not base64") from None
    identity = str(entry.get("identitytoken") or "")
    return RegistryLogin(user, password.rstrip("\0"), identity) if password or identity else None


def _helper(stored: Mapping[str, Any], place: str) -> str:
    helpers = stored.get("credHelpers")
    own = helpers.get(place) if isinstance(helpers, dict) else None
    return str(own or stored.get("credsStore") or "")


def _ask(helper: str, place: str) -> RegistryLogin | None:
    """Return what the program that keeps passwords answers; None if it has no login for the place."""
    asked = "https://index.docker.io/v1/" if place == DOCKER_HUB else place
    command = [f"docker-credential-{helper}", "get"]
    try:
        done = subprocess.run(command, input=asked.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoginError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        return None
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise LoginError(f"{command[0]} answers no login") from None
    return RegistryLogin("", "", secret) if user == "<token>" else RegistryLogin(user, secret)

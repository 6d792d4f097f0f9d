"""buildah with a store of its own, and a base image made of this machine's files: images are built, none is pulled."""

import ensurepip
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.local import images
from tests.support.debian import ProgramsMissingError, require

BASE = "localhost/base:1"


@dataclass(frozen=True)
class Buildah:
    """The program on one store."""

    store: Path

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        # vfs and chroot need neither overlay mounts nor namespaces, so they work inside a container too
        where = ("--storage-driver", "vfs", "--root", self.store / "root", "--runroot", self.store / "run")
        done = subprocess.run(
            ["buildah", *where, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_OPTS": ""},
        )
        assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def out(self, *arguments: str | Path) -> str:
        return self(*arguments).stdout.strip()

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        """A container of an image, to run commands in."""
        name = self.out("from", "--pull-never", image)
        try:
            yield name
        finally:
            self("rm", name)


def installed() -> None:
    """Skip without root or buildah, but never where CI=true."""
    try:
        if os.geteuid() != 0:
            raise PermissionError("images are built as root: only root may keep files of several users")
        require("buildah")
    except (PermissionError, ProgramsMissingError) as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


def make_base(buildah: Buildah, folder: Path) -> None:
    """The image BASE: the programs, libraries and Python of this machine, with pip's own installer."""
    layer = folder / "base.tar"
    (pip,) = ensurepip.__path__  # pods need none, so the cluster's images have none
    images.write_layer(layer, [*images.layer_files(), *images.tree(Path(pip))])
    container = buildah.out("from", "scratch")
    buildah("add", container, layer, "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
    buildah("commit", "--rm", "--quiet", container, BASE)
    layer.unlink()
